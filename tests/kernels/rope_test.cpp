#include "kernels/rope.h"

#include <cmath>
#include <optional>
#include <vector>

#include "array.h"
#include "catch.h"
#include "environment.h"
#include "kernels/launch_error.h"
#include "numerics/scaling.h"

using namespace octet;

namespace {

struct Problem {
  DType type = DType::BF16;
  int64_t tokens = 12, context = 5;
  int heads = 3, kv_heads = 2, head_width = 16;
  size_t misaligned = 0;
  Values values = Values::Wide;

  int64_t width() const { return (heads + 2 * kv_heads) * head_width; }
};

Format format_of(DType type) { return type == DType::F32 ? Format::FP32 : Format::BF16; }

struct Tables {
  explicit Tables(const Problem& p)
      : cosine(DType::F32, {p.context, p.head_width / 2}, p.misaligned),
        sine(DType::F32, {p.context, p.head_width / 2}, p.misaligned) {
    const int half = p.head_width / 2;
    for (int64_t i = 0; i < cosine.elements(); ++i) {
      const double angle =
          static_cast<double>(i / half) * std::pow(10000.0, -static_cast<double>(i % half) / half);
      cosine.set(i, static_cast<float>(std::cos(angle)));
      sine.set(i, static_cast<float>(std::sin(angle)));
    }
  }
  kernels::RopeShape shape(const Problem& p) const {
    return {.tokens = p.tokens,
            .context = p.context,
            .heads = p.heads,
            .kv_heads = p.kv_heads,
            .head_width = p.head_width,
            .cosine = cosine.as<float>(),
            .sine = sine.as<float>()};
  }
  Array cosine, sine;
};

Array random_rows(const Problem& p) {
  Array rows(p.type, {p.tokens, p.width()}, p.misaligned);
  randomize(rows, p.values, 8);
  return rows;
}
Array random_bias(const Problem& p) {
  Array bias(DType::F32, {p.width()}, p.misaligned);
  randomize(bias, Values::Wide, 9);
  return bias;
}
std::string text_of(const Problem& p) {
  return std::string(name_of(p.type)) + ", " + std::to_string(p.tokens) + " tokens, heads " +
         std::to_string(p.heads) + " + 2 x " + std::to_string(p.kv_heads) + " of " +
         std::to_string(p.head_width) + ", misaligned by " + std::to_string(p.misaligned);
}

std::vector<Problem> problems() {
  std::vector<Problem> list;
  for (const DType type : {DType::F32, DType::BF16}) {
    for (const int head_width : {2, 6, 16, 24, 64, 128}) {
      list.push_back({.type = type, .head_width = head_width});
      list.push_back({.type = type, .head_width = head_width, .values = Values::Broken});
    }
    list.push_back({.type = type, .head_width = 32, .misaligned = 4});
    list.push_back({.type = type, .tokens = 1, .context = 1, .heads = 1, .kv_heads = 1, .head_width = 2});
    list.push_back({.type = type, .tokens = 200, .context = 64, .heads = 4, .kv_heads = 4, .head_width = 16});
    list.push_back({.type = type, .tokens = 2, .heads = 1, .kv_heads = 1, .head_width = 1024});
  }
  return list;
}

}  // namespace

TEST_CASE("RoPE has the bits of the CPU's, with and without a bias, at any head width and alignment") {
  for (const Problem& p : problems()) {
    const Tables tables(p);
    const Array rows = random_rows(p), bias = random_bias(p);
    for (const bool biased : {false, true}) {
      const Array ours(rows), theirs(rows);
      kernels::rope_forward({.storage = format_of(p.type),
                             .qkv = ours.data(),
                             .bias = biased ? bias.as<float>() : nullptr,
                             .shape = tables.shape(p)});
      specification().rope_forward({.qkv = theirs,
                                    .bias = biased ? bias.tensor() : Tensor(),
                                    .cosine = tables.cosine,
                                    .sine = tables.sine,
                                    .heads = p.heads,
                                    .kv_heads = p.kv_heads,
                                    .head_width = p.head_width});
      INFO(text_of(p));
      CHECK(differences(ours, theirs) == 0);
      if (p.tokens > 1) CHECK(differences(ours, rows) > 0);
    }
  }
}

namespace {

struct Gradients {
  Array high, bias;
};

enum class Place { InPlace, Apart };

Gradients backward_by_kernel(const Problem& p, const Array& rows, const Array& bias, Place place,
                             kernels::Output out = {}) {
  const Tables tables(p);
  Gradients result{rows, bias};
  const Array source(rows);
  Array partial(DType::F32, {kernels::rope_partial_elements(tables.shape(p))});
  out.high = result.high.data();
  out.storage = format_of(p.type);
  kernels::rope_backward({.storage = format_of(p.type),
                          .qkv_gradient = place == Place::InPlace ? result.high.data() : source.data(),
                          .bias_gradient = result.bias.as<float>(),
                          .partial = partial.as<float>(),
                          .shape = tables.shape(p),
                          .out = out});
  return result;
}
Gradients backward_by_specification(const Problem& p, const Array& rows, const Array& bias) {
  const Tables tables(p);
  Gradients result{rows, bias};
  RopeBackward op{.qkv_gradient = rows,
                  .bias_gradient = result.bias,
                  .cosine = tables.cosine,
                  .sine = tables.sine,
                  .heads = p.heads,
                  .kv_heads = p.kv_heads,
                  .head_width = p.head_width,
                  .out = {}};
  op.out.high = result.high;
  specification().rope_backward(op);
  return result;
}

}  // namespace

TEST_CASE("RoPE's backward and its bias gradient have the bits of the CPU's, in place or not") {
  for (const Problem& p : problems()) {
    const Array rows = random_rows(p), bias = random_bias(p);
    const Gradients theirs = backward_by_specification(p, rows, bias);
    for (const Place place : {Place::InPlace, Place::Apart}) {
      const Gradients ours = backward_by_kernel(p, rows, bias, place);
      INFO(text_of(p));
      CHECK(differences(ours.high, theirs.high) == 0);
      CHECK(differences(ours.bias, theirs.bias) == 0);
      CHECK(differences(ours.bias, bias) > 0);
    }
  }
}

TEST_CASE("RoPE's backward leaves amaxes and codes as a cast of its result does") {
  for (Problem p : problems()) {
    for (const Format format : {Format::E4M3, Format::E5M2}) {
      for (const float scale : {0.0f, 3.0f}) {  // 0: no history yet, no codes
        const Array rows = random_rows(p), bias = random_bias(p);
        const DType codes_type = dtype_of(format);
        const Array codes(codes_type, rows.tensor().shape), row_amax(DType::F32, {p.tokens}),
            column_amax(DType::F32, {p.width()}), amax(DType::F32, {1});
        const Gradients ours =
            backward_by_kernel(p, rows, bias, Place::InPlace,
                               {.row = codes.as<uint8_t>(),
                                .format = format,
                                .scale = &scale,
                                .amax = reinterpret_cast<uint32_t*>(amax.data()),
                                .row_amax = reinterpret_cast<uint32_t*>(row_amax.data()),
                                .column_amax = reinterpret_cast<uint32_t*>(column_amax.data())});
        const Gradients theirs = backward_by_specification(p, rows, bias);
        Array codes_expected(codes_type, rows.tensor().shape), row_expected(DType::F32, {p.tokens}),
            column_expected(DType::F32, {p.width()}), amax_expected(DType::F32, {1});
        const auto raise = [](const Array& array, int64_t i, float x) {
          array.as<float>()[i] = max_magnitude(array.as<float>()[i], x);
        };
        for (int64_t i = 0; i < rows.elements(); ++i) {
          const float value = round_to_bfloat16(theirs.high.get(i));
          if (scale != 0.0f) codes_expected.as<uint8_t>()[i] = encode(format, value * scale);
          raise(row_expected, i / p.width(), value);
          raise(column_expected, i % p.width(), value);
          raise(amax_expected, 0, value);
        }
        INFO(text_of(p));
        CHECK(differences(ours.high, theirs.high) == 0);
        CHECK(differences(ours.bias, theirs.bias) == 0);
        CHECK(differences(codes, codes_expected) == 0);
        CHECK(differences(row_amax, row_expected) == 0);
        CHECK(differences(column_amax, column_expected) == 0);
        CHECK(differences(amax, amax_expected) == 0);
        CHECK(amax.get(0) != 0.0f);
      }
    }
  }
}

TEST_CASE("RoPE's bias gradient sums the stored values, in chunks of 64 tokens, in every schedule") {
  const Problem p{.type = DType::F32, .tokens = 300, .context = 100, .values = Values::Tame};
  const Array rows = random_rows(p), zero(DType::F32, {p.width()});
  const Gradients theirs = backward_by_specification(p, rows, zero);
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    const Gradients ours = backward_by_kernel(p, rows, zero, Place::InPlace);
    CHECK(differences(ours.high, theirs.high) == 0);
    CHECK(differences(ours.bias, theirs.bias) == 0);
  }
  int64_t unlike_straight = 0;
  for (int64_t c = 0; c < p.width(); ++c) {
    float straight = 0;
    for (int64_t t = 0; t < p.tokens; ++t) straight += theirs.high.get(t * p.width() + c);
    unlike_straight += straight != theirs.bias.get(c);
  }
  CHECK(unlike_straight > 0);  // the comparison can tell orders apart
}

TEST_CASE("RoPE's backward refuses a bias gradient without the values to sum") {
  const Problem p;
  const Tables tables(p);
  const Array rows = random_rows(p), bias = random_bias(p), codes(DType::E4M3, rows.tensor().shape);
  const float scale = 1;
  CHECK_THROWS_AS(kernels::rope_backward({.storage = format_of(p.type),
                                          .qkv_gradient = rows.data(),
                                          .bias_gradient = bias.as<float>(),
                                          .shape = tables.shape(p),
                                          .out = {.row = codes.as<uint8_t>(), .scale = &scale}}),
                  gpu::LaunchError);
}
