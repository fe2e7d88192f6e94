#include "device/nvidia/attention_key.h"

#include <fmt/format.h>

#include "base/error.h"

namespace octet {

namespace {

constexpr int64_t bytes_bf16 = 2;

// What both operations say about themselves.
struct Request {
  const Tensor& qkv;
  int context, heads, kv_heads, head_width;
};

AttentionKey checked_key(const Request& r) {
  const int64_t tokens = r.qkv.rows();
  if (r.qkv.dtype != DType::BF16)
    throw Error(ExitCode::Usage,
                fmt::format("attention on the GPU reads and writes BF16, this run stores activations in {}",
                            name_of(r.qkv.dtype)),
                "set precision.recipe to bf16 or fp8, or run with --device cpu");
  if (r.head_width < 64 || r.head_width > 256 || r.head_width % 8 != 0)
    throw Error(
        ExitCode::Usage,
        fmt::format("attention on the GPU has heads of 64 to 256 in steps of 8, not {}", r.head_width),
        "change model.head_width or model.heads, or run with --device cpu");
  if (tokens % r.context != 0 || r.heads % r.kv_heads != 0)
    throw Error(ExitCode::Internal,
                fmt::format("attention: {} tokens in windows of {}, {} heads for {} key-value heads", tokens,
                            r.context, r.heads, r.kv_heads));
  AttentionKey key;
  key.batch = tokens / r.context;
  key.context = r.context;
  key.heads = r.heads;
  key.kv_heads = r.kv_heads;
  key.head_width = r.head_width;
  return key;
}

}  // namespace

std::string to_string(const AttentionKey& key) {
  return fmt::format("{}{} batch {} context {} heads {}:{} x {}",
                     key.backward ? "attention backward" : "attention forward",
                     key.deterministic ? " deterministic" : "", key.batch, key.context, key.heads,
                     key.kv_heads, key.head_width);
}

AttentionKey attention_key(const AttentionForward& a) {
  return checked_key({a.qkv, a.context, a.heads, a.kv_heads, a.head_width});
}
AttentionKey attention_key(const AttentionBackward& a, const DeviceOptions& options) {
  return backward_of(checked_key({a.qkv, a.context, a.heads, a.kv_heads, a.head_width}), options);
}
AttentionKey backward_of(AttentionKey key, const DeviceOptions& options) {
  key.backward = true;
  key.deterministic = options.deterministic;
  return key;
}

AttentionScratch attention_scratch(const AttentionKey& key) {
  if (!key.backward) return {};
  const auto rows = static_cast<size_t>(key.batch * key.heads * key.context);
  AttentionScratch scratch;
  scratch.out_products = rows * sizeof(float);
  if (!key.deterministic)
    scratch.query_accumulator = rows * static_cast<size_t>(key.head_width) * sizeof(float);
  return scratch;
}

PackedOffsets packed_offsets(const AttentionKey& key) {
  const int64_t k = key.heads * key.head_width * bytes_bf16;
  return {k, k + key.kv_heads * key.head_width * bytes_bf16};
}

}  // namespace octet
