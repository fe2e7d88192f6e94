#include "device/nvidia/attention_key.h"

#include <fmt/format.h>

#include "base/error.h"

namespace octet {

namespace {

// What both operations say about themselves.
struct Request {
  const Tensor& qkv;
  int context, heads, kv_heads, head_width;
  SoftmaxClip clip;
};

AttentionKey checked_key(const Request& r) {
  const int64_t tokens = r.qkv.rows();
  const bool float8 = r.qkv.dtype == DType::E4M3;
  if (r.qkv.dtype != DType::BF16 && !float8)
    throw Error(ExitCode::Usage,
                fmt::format("attention on the GPU reads and writes BF16, this run stores activations in {}",
                            name_of(r.qkv.dtype)),
                "set precision.recipe to bf16 or fp8, or run with --device cpu");
  if (r.head_width < 64 || r.head_width > 256 || r.head_width % 8 != 0)
    throw Error(
        ExitCode::Usage,
        fmt::format("attention on the GPU has heads of 64 to 256 in steps of 8, not {}", r.head_width),
        "change model.head_width or model.heads, or run with --device cpu");
  if (r.clip.clips())
    throw Error(
        ExitCode::Usage,
        fmt::format("attention on the GPU is cuDNN's, which has no clipped softmax (model.softmax_clip_low "
                    "{:g}, model.softmax_clip_high {:g})",
                    r.clip.low, r.clip.high),
        "set model.softmax_clip_low to 0 and model.softmax_clip_high to 1, or run with --device cpu");
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
  key.float8 = float8;
  return key;
}

}  // namespace

std::string to_string(const AttentionKey& key) {
  return fmt::format("{}{}{} batch {} context {} heads {}:{} x {}",
                     key.backward ? "attention backward" : "attention forward",
                     key.deterministic ? " deterministic" : "", key.float8 ? " FP8" : "", key.batch,
                     key.context, key.heads, key.kv_heads, key.head_width);
}

AttentionKey attention_key(const AttentionForward& a) {
  return checked_key({a.qkv, a.context, a.heads, a.kv_heads, a.head_width, a.clip});
}
AttentionKey attention_key(const AttentionBackward& a, const DeviceOptions& options) {
  return backward_of(checked_key({a.qkv, a.context, a.heads, a.kv_heads, a.head_width, a.clip}), options);
}
AttentionKey backward_of(AttentionKey key, const DeviceOptions& options) {
  key.backward = true;
  key.deterministic = options.deterministic;
  return key;
}

std::string float8_attention_obstacle(const AttentionKey& key, int capability) {
  const std::string on = fmt::format("on compute capability {}.{}", capability / 10, capability % 10);
  const bool hopper = capability / 10 == 9, blackwell = capability / 10 == 10;
  if (!hopper && !blackwell) return fmt::format("cuDNN has no FP8 attention, forward and backward, {}", on);
  const bool width = hopper ? key.head_width == 128
                            : key.head_width >= 64 && key.head_width <= 128 && key.head_width % 16 == 0;
  if (!width)
    return fmt::format("cuDNN's FP8 attention {} has heads of {}, not {}", on,
                       hopper ? "128" : "64 to 128 in steps of 16", key.head_width);
  // One engine, whichever is asked for: its query gradients are sums in the order blocks finish.
  if (hopper && key.backward && key.deterministic)
    return fmt::format("cuDNN's FP8 attention {} has no backward pass whose sums have one order", on);
  return {};
}

void require_float8_attention(const AttentionKey& key, int capability) {
  if (!key.float8) return;
  if (const std::string obstacle = float8_attention_obstacle(key, capability); !obstacle.empty())
    throw Error(
        ExitCode::Hardware, obstacle,
        fmt::format("set precision.attention to storage (the linear layers stay in FP8), or {}, or run "
                    "with --device cpu",
                    key.deterministic && key.head_width == 128
                        ? "run.deterministic to false"
                        : "model.head_width to 128 on a Hopper or data-centre Blackwell"));
}

AttentionScratch attention_scratch(const AttentionKey& key) {
  if (!key.backward || key.float8) return {};
  const auto rows = static_cast<size_t>(key.batch * key.heads * key.context);
  AttentionScratch scratch;
  scratch.out_products = rows * sizeof(float);
  if (!key.deterministic)
    scratch.query_accumulator = rows * static_cast<size_t>(key.head_width) * sizeof(float);
  return scratch;
}

PackedOffsets packed_offsets(const AttentionKey& key) {
  const int64_t bytes = key.float8 ? 1 : 2, k = key.heads * key.head_width * bytes;
  return {k, k + key.kv_heads * key.head_width * bytes};
}

}  // namespace octet
