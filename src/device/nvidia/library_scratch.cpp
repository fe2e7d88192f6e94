#include "device/nvidia/library_scratch.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace octet {

namespace {

constexpr size_t mebibyte = size_t{1} << 20;
constexpr size_t counters = size_t{64} << 10;  // cuDNN's plans ask for some hundred bytes more than the terms

// Score matrices are kept in whole blocks.
constexpr int64_t query_block = 64, key_block = 128;
int64_t whole(int64_t count, int64_t block) { return (count + block - 1) / block * block; }

}  // namespace

size_t product_workspace_limit(int capability) { return (capability >= 90 ? 32 : 4) * mebibyte; }

size_t products_scratch_bound(std::span<const Matmul> matmuls, const GemmCapabilities& gpu) {
  size_t bytes = 0;
  for (const Matmul& m : matmuls)
    bytes = std::max(bytes, align_workspace(product_workspace_limit(gpu.capability)) +
                                align_workspace(route(m, gpu).scratch_bytes));
  return bytes;
}

AttentionScratchEstimate attention_scratch_estimate(const AttentionKey& key, int capability) {
  require_float8_attention(key, capability);
  const bool hopper = capability / 10 == 9, blackwell = capability / 10 == 10;
  if (key.head_width > 128 && !hopper)
    throw Error(
        ExitCode::Hardware,
        fmt::format("cuDNN has no backward attention with heads of {} on compute capability {}.{}",
                    key.head_width, capability / 10, capability % 10),
        "heads up to 128 wide run on every GPU from Ampere on: change model.head_width or model.heads");
  const int64_t elements = key.batch * key.heads * key.context * key.head_width;
  const auto fp32 = static_cast<size_t>(elements) * sizeof(float);
  const size_t shared_keys = key.kv_heads < key.heads ? fp32 : 0;

  AttentionScratchEstimate estimate;
  estimate.forward = counters;
  if (key.float8) {
    const size_t rows = static_cast<size_t>(key.batch * key.heads * key.context) * sizeof(float);
    const size_t queries = key.deterministic ? rows : fp32;
    estimate.backward = align_workspace(queries + 2 * shared_keys + rows + counters);
    return estimate;
  }
  size_t cudnn = shared_keys + counters;
  if (key.deterministic && blackwell) {
    cudnn += shared_keys;
  } else if (key.deterministic) {
    estimate.score_matrix = 2 * static_cast<size_t>(key.batch * key.heads * whole(key.context, query_block) *
                                                    whole(key.context, key_block));
    cudnn += estimate.score_matrix;
  } else if (!hopper && !blackwell) {
    cudnn += fp32;
  }
  const AttentionScratch own = attention_scratch(key);
  estimate.backward =
      align_workspace(cudnn) + align_workspace(own.out_products) + align_workspace(own.query_accumulator);
  return estimate;
}

}  // namespace octet
