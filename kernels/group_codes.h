// Activations kept as codes in groups of 16. Specification: numerics/group_codes.h,
// device/cpu/group_codes.cpp. Equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

// count is a multiple of 16; values and codes are 16-byte aligned.
struct EncodeGroupsArguments {
  const void* source;  // [count]
  octet::Format storage;
  int64_t count;
  uint8_t *codes, *scales;  // [count], [count / 16]
  Stream stream = nullptr;
};
void encode_groups(const EncodeGroupsArguments&);

struct DecodeGroupsArguments {
  const uint8_t *codes, *scales;
  void* out;  // [count]
  octet::Format storage;
  int64_t count;
  Stream stream = nullptr;
};
void decode_groups(const DecodeGroupsArguments&);

OCTET_KERNELS_END
