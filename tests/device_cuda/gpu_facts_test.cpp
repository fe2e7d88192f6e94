#include "device/cuda/gpu_facts.h"

#include "libraries.h"

using namespace octet;

namespace {

GpuFacts gpu(const std::string& name, int capability, int processors = 0, double clock_hz = 0) {
  GpuFacts facts;
  facts.name = name;
  facts.capability = capability;
  facts.processors = processors;
  facts.clock_hz = clock_hz;
  return facts;
}

DeviceCount count_error(cudaError_t error, int driver, const std::string& visible = "") {
  return {.error = error,
          .count = 0,
          .driver_version = driver,
          .runtime_version = 13000,
          .visible_devices = visible};
}

}  // namespace

TEST_CASE("every reason for having no GPU has its own message and remedy") {
  struct Reason {
    DeviceCount count;
    std::string cause, remedy;
  };
  const Reason reasons[] = {
      {count_error(cudaErrorInsufficientDriver, 0), "no NVIDIA driver", "install the driver"},
      {count_error(cudaErrorInsufficientDriver, 12040), "speaks CUDA 12.4, this build needs 13.0",
       "update the driver"},
      {count_error(cudaErrorNoDevice, 13000), "it has no GPU", "nvidia-smi"},
      {count_error(cudaErrorNoDevice, 13000, "7"), "CUDA_VISIBLE_DEVICES is '7'", "nvidia-smi's list"},
      {count_error(cudaErrorSystemNotReady, 13000), "cudaErrorSystemNotReady", "dmesg"},
      {count_error(cudaSuccess, 13000), "it has no GPU", "nvidia-smi"}};
  for (const Reason& reason : reasons) {
    const Error error = error_of([&] { check_device_count(reason.count); });
    CHECK(error.code() == ExitCode::Hardware);
    CHECK_THAT(error.what(), contains_text(reason.cause));
    CHECK_THAT(error.hint(), contains_text(reason.remedy));
    CHECK_THAT(error.hint(), contains_text("--device cpu"));
  }
  DeviceCount one;
  one.count = 1;
  CHECK_NOTHROW(check_device_count(one));
}

TEST_CASE("a GPU before Ampere is refused, and so is one this build has no kernels for") {
  const Error old = error_of([] { check_architecture(gpu("Tesla V100", 70), "70 80 90a"); });
  CHECK_THAT(old.what(), contains_text("Tesla V100 has compute capability 7.0, at least 8.0"));
  const Error other = error_of([] { check_architecture(gpu("NVIDIA A100", 80), "90a"); });
  CHECK_THAT(other.what(), contains_text("for 90a"));
  CHECK_THAT(other.hint(), contains_text("OCTET_CUDA_ARCHITECTURES=\"80\""));
}

TEST_CASE("an architecture runs on what NVIDIA says it runs on") {
  const auto runs = [](const char* architectures, int capability) {
    try {
      check_architecture(gpu("a GPU", capability), architectures);
      return true;
    } catch (const Error&) {
      return false;
    }
  };
  CHECK(runs("90a", 90));
  CHECK_FALSE(runs("90a", 100));
  CHECK(runs("80", 86));  // binaries run on later minor versions
  CHECK(runs("80", 89));
  CHECK_FALSE(runs("89", 86));
  CHECK_FALSE(runs("80", 90));
  CHECK(runs("100f", 103));  // a family
  CHECK_FALSE(runs("100f", 120));
  CHECK_FALSE(runs("100a", 103));
  CHECK(runs("90a 120-virtual", 121));  // PTX runs on everything later
  CHECK_FALSE(runs("120-virtual", 90));
}

TEST_CASE("the peak is the data sheet's for boards known by name") {
  CHECK(device_info(gpu("NVIDIA H200", 90)).peak_flops == 989.4e12);
  CHECK(device_info(gpu("NVIDIA H100 80GB HBM3", 90)).peak_flops == 989.4e12);
  CHECK(device_info(gpu("NVIDIA H100 PCIe", 90)).peak_flops == 756e12);
  CHECK(device_info(gpu("NVIDIA A100-SXM4-80GB", 80)).peak_flops == 312e12);
  CHECK(device_info(gpu("NVIDIA A10", 86)).peak_flops == 125e12);
  CHECK(device_info(gpu("NVIDIA L40S", 89)).peak_flops == 362e12);  // and not the L4's
  CHECK(device_info(gpu("NVIDIA L4", 89)).peak_flops == 121e12);
  CHECK_THAT(device_info(gpu("NVIDIA H200", 90)).peak_source, contains_text("data sheet of the H200"));
}

TEST_CASE("the peak of another board is its multiprocessors' at their clock, and says so") {
  // An A100's numbers under another name: 108 x 1.41 GHz x 2048 = 311.9 TFLOP/s.
  const DeviceInfo info = device_info(gpu("NVIDIA Unheard-of", 80, 108, 1.41e9));
  CHECK(info.peak_flops == 1.41e9 * 108 * 2048);
  CHECK_THAT(info.peak_source, contains_text("108 multiprocessors x 1.41 GHz x 2048"));
  CHECK(device_info(gpu("NVIDIA GeForce RTX 5080", 120, 84, 2.6e9)).peak_flops == 2.6e9 * 84 * 512);
  const DeviceInfo unknown = device_info(gpu("NVIDIA Later", 170, 200, 3e9));
  CHECK(unknown.peak_flops == 0);
  CHECK(unknown.peak_source == "unknown for this GPU");
}
