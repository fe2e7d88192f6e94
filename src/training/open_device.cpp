#include "training/open_device.h"

#include <fmt/format.h>

#include <filesystem>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "device/gpu/interpreted/interpreted_backend.h"
#if defined(OCTET_HAS_CUDA)
#include "device/cuda/cuda_device.h"
#endif

namespace octet {
namespace {

std::unique_ptr<Device> open_cuda(const DeviceOptions& options) {
#if defined(OCTET_HAS_CUDA)
  return make_cuda_device(options);
#else
  (void)options;
  throw Error(ExitCode::Hardware, "--device cuda: this build of octet has no CUDA device",
              "build it where the CUDA toolkit is, or use --device cpu: the same training with the same FP8 "
              "rounding");
#endif
}

std::unique_ptr<Device> open_cpu(const DeviceOptions& options) {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  if (cores > 0 && options.threads > cores)
    log_warning("run.threads {}: this process may use {}, and threads that share one wait for each other",
                options.threads, plural(cores, "core"));
  return make_cpu_device(options);
}

// The driver's device file: somebody expects a GPU to be used here.
bool driver_is_there() {
  std::error_code ignored;
  return std::filesystem::exists("/dev/nvidiactl", ignored);
}

}  // namespace

std::unique_ptr<Device> open_device(const std::string& name, const DeviceOptions& options) {
  if (name == "cpu") return open_cpu(options);
  if (name == "cuda") return open_cuda(options);
  if (name == "interpreter") return make_interpreted_device(options);
  if (name != "auto")
    throw Error(ExitCode::Usage, fmt::format("--device {}: unknown", escape_control(name)),
                "auto, cpu, cuda, or interpreter (the CUDA kernels on this CPU: slow, for tests)");
  if (!driver_is_there()) return open_cpu(options);
  try {
    return open_cuda(options);
  } catch (const Error& error) {  // never silently: the user of a GPU machine did not mean the CPU
    log_warning("the CPU is used although there is an NVIDIA driver: {}. {}", error.what(), error.hint());
    return open_cpu(options);
  }
}

DeviceOptions device_options(const RunConfig& config, int local_rank) {
  return {.deterministic = config.run.deterministic,
          .threads = config.run.threads,
          .graphs = config.run.cuda_graphs,
          .local_rank = local_rank};
}

}  // namespace octet
