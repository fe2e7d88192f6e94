#include "catch.h"
#include "device/op_fixture.h"

using namespace octet;

TEST_CASE("the embedding copies rows bit for bit", "[embedding]") {
  OpFixture f;
  const DType dtype = GENERATE(DType::F32, DType::BF16);
  const Values table = normal_values(7 * 5, 1, 1.0, dtype);
  const std::vector<int32_t> ids = {3, 0, 6, 3};
  const Tensor out = f.zeros(dtype, {4, 5});
  f->embedding_forward({out, f.integers(ids), f.floats(dtype, {7, 5}, table)});
  const Values result = read_floats(out);
  for (size_t t = 0; t < ids.size(); ++t) {
    for (size_t d = 0; d < 5; ++d) CHECK(result[t * 5 + d] == table[static_cast<size_t>(ids[t]) * 5 + d]);
  }
}

TEST_CASE("token ids outside the table are refused", "[embedding]") {
  OpFixture f;
  const int32_t bad = GENERATE(-1, 7);
  const Tensor table = f.zeros(DType::F32, {7, 4}), out = f.zeros(DType::F32, {2, 4});
  CHECK_THROWS(f->embedding_forward({out, f.integers({0, bad}), table}));
  CHECK_THROWS(f->embedding_backward({table, f.integers({0, bad}), out}));
}

TEST_CASE("every row of the gradient is the sum of its tokens, in token order", "[embedding]") {
  struct Types {
    DType gradient, storage;
  };
  const auto [gradient_type, storage] = GENERATE(
      Types{DType::F32, DType::F32}, Types{DType::F32, DType::BF16}, Types{DType::BF16, DType::BF16});
  const int64_t tokens = 301, width = 70, vocabulary = 9;
  OpFixture f;
  const Values out_gradient = normal_values(tokens * width, 4, 1.0, storage),
               before = normal_values(vocabulary * width, 5, 1.0, gradient_type);
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  for (size_t t = 0; t < ids.size(); ++t)
    ids[t] = static_cast<int32_t>(t * t % 7);  // rows 3 and 5.. stay unused
  const Tensor table = f.floats(gradient_type, {vocabulary, width}, before);
  f->embedding_backward({table, f.integers(ids), f.floats(storage, {tokens, width}, out_gradient)});
  Values expected = before, reversed = before;
  for (size_t t = 0; t < ids.size(); ++t) {
    for (size_t d = 0; d < static_cast<size_t>(width); ++d) {
      const size_t at = static_cast<size_t>(ids[t]) * static_cast<size_t>(width) + d,
                   last = ids.size() - 1 - t;
      expected[at] += out_gradient[t * static_cast<size_t>(width) + d];
      reversed[static_cast<size_t>(ids[last]) * static_cast<size_t>(width) + d] +=
          out_gradient[last * static_cast<size_t>(width) + d];
    }
  }
  for (float& v : expected) v = rounded(gradient_type, v);
  for (float& v : reversed) v = rounded(gradient_type, v);
  CHECK(read_floats(table) == expected);  // bit-equal, so the order is the order of tokens
  if (gradient_type == DType::F32) CHECK(expected != reversed);
}

TEST_CASE("the embedding gradient has the same bits for 1, 2 and 4 threads", "[embedding]") {
  const Values out_gradient = normal_values(100 * 200, 4);
  std::vector<int32_t> ids(100);
  for (size_t t = 0; t < ids.size(); ++t) ids[t] = static_cast<int32_t>(t % 3);
  std::vector<Bytes> results;
  for (const int threads : {1, 2, 4}) {
    OpFixture f(threads);
    const Tensor table = f.zeros(DType::F32, {3, 200});
    f->embedding_backward({table, f.integers(ids), f.floats(DType::F32, {100, 200}, out_gradient)});
    results.push_back(read_bytes(table));
  }
  CHECK(results[0] == results[1]);
  CHECK(results[0] == results[2]);
}

TEST_CASE("a multiplier scales what is looked up and what comes back, rounded once", "[embedding]") {
  OpFixture f;
  const DType dtype = GENERATE(DType::F32, DType::BF16);
  constexpr float multiplier = 50.3f;
  const int64_t tokens = 4, width = 70;
  const Values table = normal_values(7 * width, 1, 0.02, dtype),
               gradient = normal_values(tokens * width, 2, 1.0, dtype);
  const std::vector<int32_t> ids = {3, 0, 6, 3};
  const Tensor out = f.zeros(dtype, {tokens, width}), table_gradient = f.zeros(DType::F32, {7, width});
  f->embedding_forward({out, f.integers(ids), f.floats(dtype, {7, width}, table), multiplier});
  f->embedding_backward(
      {table_gradient, f.integers(ids), f.floats(dtype, {tokens, width}, gradient), multiplier});
  const Values result = read_floats(out), back = read_floats(table_gradient);
  for (size_t d = 0; d < static_cast<size_t>(width); ++d) {
    for (size_t t = 0; t < ids.size(); ++t)
      CHECK(result[t * 70 + d] == rounded(dtype, table[static_cast<size_t>(ids[t]) * 70 + d] * multiplier));
    CHECK(back[3 * 70 + d] == gradient[d] * multiplier + gradient[3 * 70 + d] * multiplier);
    CHECK(back[6 * 70 + d] == gradient[2 * 70 + d] * multiplier);
  }
}
