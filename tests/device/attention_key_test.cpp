#include "device/nvidia/attention_key.h"

#include "error_of.h"

using namespace octet;

namespace {

AttentionForward attention(DType storage, int heads, int kv_heads, int head_width) {
  AttentionForward a{};
  a.context = 128;
  a.heads = heads;
  a.kv_heads = kv_heads;
  a.head_width = head_width;
  a.qkv = {nullptr, storage, {256, (heads + 2 * kv_heads) * head_width}};
  return a;
}

}  // namespace

TEST_CASE("the key of an attention is its shape, and what the GPU has no attention for is refused") {
  const AttentionKey key = attention_key(attention(DType::BF16, 8, 2, 64));
  CHECK(key.batch == 2);
  CHECK(to_string(key) == "attention forward batch 2 context 128 heads 8:2 x 64");
  CHECK(to_string(backward_of(key, {.deterministic = true})) ==
        "attention backward deterministic batch 2 context 128 heads 8:2 x 64");

  const Error storage = error_of([] { attention_key(attention(DType::F32, 8, 8, 64)); });
  CHECK(storage.code() == ExitCode::Usage);
  CHECK_THAT(storage.what(), contains_text("F32"));
  CHECK_THAT(storage.hint(), contains_text("precision.recipe to bf16 or fp8"));
  CHECK_THAT(storage.hint(), contains_text("--device cpu"));
  for (const int width : {32, 68, 264}) {
    const Error error = error_of([&] { attention_key(attention(DType::BF16, 4, 4, width)); });
    CHECK(error.code() == ExitCode::Usage);
    CHECK_THAT(error.what(), contains_text("not " + std::to_string(width)));
    CHECK_THAT(error.hint(), contains_text("model.head_width"));
  }
  for (const int width : {64, 72, 256}) CHECK_NOTHROW(attention_key(attention(DType::BF16, 4, 4, width)));
}

TEST_CASE("a clipped softmax is refused on the GPU, in both directions, and the way out is named") {
  AttentionForward forward = attention(DType::BF16, 8, 2, 64);
  CHECK_NOTHROW(attention_key(forward));
  forward.clip = {-0.03f, 1.3f};
  AttentionBackward backward{};
  backward.qkv = forward.qkv;
  backward.context = forward.context;
  backward.heads = 8, backward.kv_heads = 2, backward.head_width = 64;
  CHECK_NOTHROW(attention_key(backward, {}));
  backward.clip = forward.clip;
  for (const Error& error :
       {error_of([&] { attention_key(forward); }), error_of([&] { attention_key(backward, {}); })}) {
    CHECK(error.code() == ExitCode::Usage);
    CHECK_THAT(error.what(), contains_text("softmax_clip_low -0.03"));
    CHECK_THAT(error.hint(), contains_text("--device cpu"));
  }
}

TEST_CASE("keys and values begin behind the query heads, at 16 bytes") {
  const AttentionKey key = attention_key(attention(DType::BF16, 8, 2, 72));
  const PackedOffsets offsets = packed_offsets(key);
  CHECK(offsets.key == 8 * 72 * 2);
  CHECK(offsets.value == (8 + 2) * 72 * 2);
  CHECK(offsets.key % 16 == 0);
  CHECK(offsets.value % 16 == 0);
}

TEST_CASE("scratch of the backward pass: a number a row, and query gradients in FP32 unless deterministic") {
  const AttentionKey forward = attention_key(attention(DType::BF16, 8, 2, 64));
  CHECK(attention_scratch(forward).out_products == 0);
  const AttentionScratch backward = attention_scratch(backward_of(forward, {}));
  CHECK(backward.out_products == 2 * 8 * 128 * 4);
  CHECK(backward.query_accumulator == 2 * 8 * 128 * 64 * 4);
  CHECK(attention_scratch(backward_of(forward, {.deterministic = true})).query_accumulator == 0);
}

TEST_CASE("FP8 attention: codes of a byte, no scratch of ours, and a refusal where cuDNN has none") {
  const AttentionKey forward = attention_key(attention(DType::E4M3, 8, 2, 128));
  CHECK(forward.float8);
  CHECK(to_string(backward_of(forward, {})) == "attention backward FP8 batch 2 context 128 heads 8:2 x 128");
  CHECK(packed_offsets(forward).key == 8 * 128);
  CHECK(packed_offsets(forward).value == (8 + 2) * 128);
  CHECK(attention_scratch(backward_of(forward, {})).query_accumulator == 0);
  CHECK_THROWS_AS(attention_key(attention(DType::E5M2, 8, 2, 128)), Error);

  const auto obstacle = [&](int width, int capability, bool deterministic = false) {
    return float8_attention_obstacle(
        backward_of(attention_key(attention(DType::E4M3, 8, 2, width)), {.deterministic = deterministic}),
        capability);
  };
  for (const int capability : {90, 100, 103}) CHECK(obstacle(128, capability).empty());
  for (const int capability : {80, 89, 120}) {
    CHECK_THAT(obstacle(128, capability), contains_text("no FP8 attention, forward and backward"));
  }
  CHECK_THAT(obstacle(64, 90), contains_text("9.0 has heads of 128, not 64"));
  CHECK(obstacle(64, 100).empty());
  CHECK_THAT(obstacle(72, 100), contains_text("10.0 has heads of 64 to 128 in steps of 16, not 72"));
  CHECK_THAT(obstacle(128, 90, true), contains_text("no backward pass whose sums have one order"));
  CHECK(obstacle(128, 100, true).empty());

  const Error error = error_of([&] { require_float8_attention(forward, 89); });
  CHECK(error.code() == ExitCode::Hardware);
  for (const char* remedy : {"precision.attention to storage", "model.head_width to 128", "--device cpu"})
    CHECK_THAT(error.hint(), contains_text(remedy));
  CHECK_NOTHROW(require_float8_attention(attention_key(attention(DType::BF16, 8, 2, 64)), 80));
}
