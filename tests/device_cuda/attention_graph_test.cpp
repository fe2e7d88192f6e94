#include "device/cuda/attention_graph.h"

#include "libraries.h"

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

TEST_CASE("cuDNN takes every operation of the graphs, without a GPU") {
  const auto library = installed(open_cudnn);
  if (!library) return;
  for (const int kv_heads : {8, 2}) {
    for (const int width : {64, 72, 128, 256}) {
      const AttentionKey forward = attention_key(attention(DType::BF16, 8, kv_heads, width));
      CHECK(attention_graph(*library, forward)->operations() == 14);
      // Sharing key heads takes a sum for dK and one for dV; a deterministic dQ needs no conversion.
      const int64_t sums = kv_heads == 8 ? 0 : 2;
      CHECK(attention_graph(*library, backward_of(forward, {}))->operations() == 22 + sums);
      CHECK(attention_graph(*library, backward_of(forward, {.deterministic = true}))->operations() ==
            21 + sums);
    }
  }
}

TEST_CASE("cuDNN refuses an operation that makes no sense, with its reason") {
  const auto library = installed(open_cudnn);
  if (!library) return;
  CudnnGraph graph(*library);
  const auto a = graph.memory(1, packed({1, 1, 16, 64}), CUDNN_DATA_BFLOAT16);
  const auto b = graph.memory(2, packed({1, 1, 32, 16}), CUDNN_DATA_BFLOAT16);  // 64 rows would fit
  const auto out = graph.memory(3, packed({1, 1, 16, 16}), CUDNN_DATA_BFLOAT16);
  const Error error = error_of([&] { graph.matmul(a, b, out); });
  CHECK(error.code() == ExitCode::Hardware);
  CHECK_THAT(error.what(), contains_text("CUDNN_STATUS"));
  CHECK_THROWS_AS(graph.reshape(a, 77), Error);  // no such tensor
}
