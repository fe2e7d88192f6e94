// A launch that the device refused: the configuration asks for too much, or an earlier kernel failed.
#pragma once
#include <stdexcept>

namespace gpu {

struct LaunchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace gpu
