#include "device/cuda/cuda_device.h"

#include <cuda_runtime.h>
#include <link.h>

#include <algorithm>
#include <vector>

#include "libraries.h"

using namespace octet;

namespace {

// What the loader opens before main(): the program's own DT_NEEDED entries.
std::vector<std::string> needed_libraries() {
  const char* names = nullptr;
  for (const ElfW(Dyn)* entry = _DYNAMIC; entry->d_tag != DT_NULL; ++entry)
    if (entry->d_tag == DT_STRTAB) names = reinterpret_cast<const char*>(entry->d_un.d_ptr);
  std::vector<std::string> needed;
  for (const ElfW(Dyn)* entry = _DYNAMIC; entry->d_tag != DT_NULL; ++entry)
    if (entry->d_tag == DT_NEEDED) needed.emplace_back(names + entry->d_un.d_val);
  return needed;
}

}  // namespace

TEST_CASE("a program with the CUDA device in it needs none of NVIDIA's libraries to start") {
  const std::vector<std::string> needed = needed_libraries();
  const auto any = [&](const std::string& part) {
    return std::any_of(needed.begin(), needed.end(),
                       [&](const std::string& name) { return name.find(part) != std::string::npos; });
  };
  for (const char* library : {"libcuda", "libcublas", "libcudnn", "libnvrtc"}) CHECK_FALSE(any(library));
  CHECK(any("libstdc++"));  // the list is read rightly
}

TEST_CASE("without a GPU, making its device is an error with a remedy") {
  int count = 0;
  const bool present = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  cudaGetLastError();
  if (present) {
    WARN("skipped: there is a GPU");
    return;
  }
  const Error error = error_of([] { make_cuda_device({}); });
  CHECK(error.code() == ExitCode::Hardware);
  CHECK_FALSE(std::string(error.what()).empty());
  CHECK_THAT(error.hint(), contains_text("--device cpu"));
}
