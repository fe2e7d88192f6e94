// How much scratch memory the operations of a GPU device take, and for the largest of a run.
#pragma once
#include <cstddef>
#include <cstdint>

#include "device/device.h"
#include "kernels/namespace.h"

namespace octet {
inline namespace OCTET_GPU {

// Bytes of `count` values of T as Scratch::take() cuts them.
template <class T>
size_t scratch_size(int64_t count) {
  return (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
}
size_t cast_scratch_bytes(const CastTarget& target);
size_t scratch_bytes(const DeviceWork& work);  // the largest operation's

}  // namespace OCTET_GPU
}  // namespace octet
