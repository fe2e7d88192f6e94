// Gradients on the wire: E4M3 codes with a scale a block, and the sum of decoded codes. Specification:
// numerics/block_codes.h, device/cpu/block_codes.cpp. Equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct EncodeBlocksArguments {
  const void* source;  // [count]
  octet::Format storage;
  int64_t count;
  uint8_t* messages;  // [pieces, message_bytes(piece)], 16-byte aligned
  int64_t pieces, piece;
  int log2_mu;
  uint64_t rounding_key;
  uint32_t* saturated;  // [1]
  Stream stream = nullptr;
};
void encode_blocks(const EncodeBlocksArguments&);

struct DecodeBlocksArguments {
  const uint8_t* messages;  // [sources, pieces, message_bytes(piece)], 16-byte aligned
  int64_t sources, pieces, piece;
  void* out;  // [count]
  octet::Format storage;
  int64_t count;
  bool accumulate = false;  // the sum begins with what out holds
  Stream stream = nullptr;
};
void decode_blocks(const DecodeBlocksArguments&);

OCTET_KERNELS_END
