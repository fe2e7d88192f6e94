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

TEST_CASE("cuDNN takes every operation of the FP8 graphs, without a GPU") {
  const auto library = installed(open_cudnn);
  if (!library) return;
  for (const int kv_heads : {8, 2}) {
    const AttentionKey forward = attention_key(attention(DType::E4M3, 8, kv_heads, 128));
    // As in BF16, and: two factors on the scores, the probabilities' amax and scale, four on the result.
    CHECK(attention_graph(*library, forward)->operations() == 14 + 2 + 2 + 4);
    const int64_t sums = kv_heads == 8 ? 0 : 2;
    // dO O: 4; scores: 8; P: 2; dV: a scale, a transpose and 5; dP: 8; dQ: a view and 5; dK: a transpose
    // and 5.
    CHECK(attention_graph(*library, backward_of(forward, {}))->operations() ==
          4 + 8 + 2 + 7 + 8 + 6 + 6 + sums);
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
