// Causal attention as cuDNN graphs, forward and backward. The shapes of the operations are those by which
// cuDNN recognises flash attention; nothing of [B, H, S, S] reaches memory.
//
// Q, K and V are views into the packed rows [H | K | K] x Dh, and so are their gradients.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "device/cuda/cudnn_graph.h"
#include "device/device.h"

namespace octet {

// Addresses that a plan is executed with.
enum class AttentionTensor : int64_t {
  Query = 1,
  Key,
  Value,
  Out,
  LogSumExp,
  SoftmaxScale,  // numbers in host memory
  Masked,
  One,
  OutGradient,
  QueryGradient,
  KeyGradient,
  ValueGradient,
  OutProducts,       // scratch: sum over a head of out * out_gradient, FP32 [B, H, S]
  QueryAccumulator,  // scratch: FP32 [B, H, S, Dh], when not deterministic
};

struct AttentionKey {
  int64_t batch = 0, context = 0, heads = 0, kv_heads = 0, head_width = 0;
  bool backward = false;
  // Backward: the query gradient is a product of its own instead of a sum in the order blocks finish.
  bool deterministic = false;
  auto operator<=>(const AttentionKey&) const = default;
};
std::string to_string(const AttentionKey& key);

// Error(Usage) for a storage, head width or number of tokens that cuDNN's attention does not have.
AttentionKey attention_key(const AttentionForward& attention);  // its sums have one order anyway
AttentionKey attention_key(const AttentionBackward& attention, const DeviceOptions& options);
// The backward pass of a forward one, for planning.
AttentionKey backward_of(AttentionKey forward, const DeviceOptions& options);

std::unique_ptr<CudnnGraph> attention_graph(const Cudnn& library, const AttentionKey& key);

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
