// What an operation costs at least on any device: the floor that its time is measured against.
#pragma once
#include <cstdint>

#include "device/device.h"

namespace octet {

struct OperationCost {
  uint64_t calls = 0, bytes = 0, flops = 0;
  double seconds = 0;
};

// Bytes: every operand read once, every result written once, what is changed in place both; not counted are
// scales, and gradients of a table that only some rows of are touched. No device can do with less unless the
// operands are still in its caches.
#define OCTET_LEAST_BYTES(name, Arguments) uint64_t least_bytes(const Arguments& operation);
OCTET_DEVICE_OPERATIONS(OCTET_LEAST_BYTES)
#undef OCTET_LEAST_BYTES

uint64_t flops(const Matmul& operation);
uint64_t flops(const AttentionForward& operation);
uint64_t flops(const AttentionBackward& operation);

}  // namespace octet
