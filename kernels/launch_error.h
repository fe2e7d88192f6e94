// A launch that the device refused: the configuration asks for too much, or an earlier kernel failed.
#pragma once
#include <cstddef>
#include <stdexcept>

namespace gpu {

// A kernel must ask for more than 48 KiB of shared memory, static arrays counted in. launch() asks from this
// many bytes of dynamic memory on, which leaves 1 KiB for static arrays.
inline constexpr size_t shared_without_asking = 47 * 1024;

struct LaunchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace gpu
