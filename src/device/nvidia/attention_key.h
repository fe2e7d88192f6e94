// An attention as cuDNN is asked for it: plain data, made and checked without a GPU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "device/device.h"

namespace octet {

struct AttentionKey {
  int64_t batch = 0, context = 0, heads = 0, kv_heads = 0, head_width = 0;
  bool backward = false;
  // Backward: the query gradient is a product of its own instead of a sum in the order blocks finish.
  bool deterministic = false;
  bool float8 = false;  // codes in, codes out
  auto operator<=>(const AttentionKey&) const = default;
};
std::string to_string(const AttentionKey& key);

// Error(Usage) for a type, head width or number of tokens that cuDNN's attention does not have.
AttentionKey attention_key(const AttentionForward& attention);  // its sums have one order anyway
AttentionKey attention_key(const AttentionBackward& attention, const DeviceOptions& options);
// The backward pass of a forward one, for planning.
AttentionKey backward_of(AttentionKey forward, const DeviceOptions& options);

// Why this generation has no attention for a key in FP8, or empty. [cuDNN 9.19: tests/cudnn_plans]
std::string float8_attention_obstacle(const AttentionKey& key, int capability);
// Error(Hardware) with that and what else there is.
void require_float8_attention(const AttentionKey& key, int capability);

// Scratch that the caller of the plan owns, beside cuDNN's own workspace.
struct AttentionScratch {
  size_t out_products = 0, query_accumulator = 0;  // bytes
};
AttentionScratch attention_scratch(const AttentionKey& key);

// Byte offsets of the parts in a packed row.
struct PackedOffsets {
  int64_t key, value;
};
PackedOffsets packed_offsets(const AttentionKey& key);

}  // namespace octet
