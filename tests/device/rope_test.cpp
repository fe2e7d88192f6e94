#include "device/cpu/rope.h"
#include "base/error.h"
#include "catch.h"
#include "matrices.h"

using namespace octet;
using matrices::Buffer;

namespace {

struct Model {
  int64_t context, windows;
  int heads, kv_heads, width;
  int64_t tokens() const { return context * windows; }
  int64_t columns() const { return static_cast<int64_t>(heads + 2 * kv_heads) * width; }
};

struct Tables {
  Tables(const Model& m)
      : cosine(DType::F32, {m.context, m.width / 2}), sine(DType::F32, {m.context, m.width / 2}) {
    for (int64_t s = 0; s < m.context; ++s)
      for (int64_t i = 0; i < m.width / 2; ++i) {
        const double angle =
            static_cast<double>(s) * std::pow(10000.0, -2.0 * static_cast<double>(i) / m.width);
        cosine.set(s * (m.width / 2) + i, static_cast<float>(std::cos(angle)));
        sine.set(s * (m.width / 2) + i, static_cast<float>(std::sin(angle)));
      }
  }
  Buffer cosine, sine;
};

// The rotation of one row in double, from the tables: sign +1 forward, -1 backward.
std::vector<double> rotated(const Model& m, const Tables& tables, std::vector<double> row, int64_t position,
                            double sign) {
  const int64_t half = m.width / 2;
  for (int64_t head = 0; head < m.heads + m.kv_heads; ++head)
    for (int64_t i = 0; i < half; ++i) {
      double& first = row[static_cast<size_t>(head * m.width + i)];
      double& second = row[static_cast<size_t>(head * m.width + half + i)];
      const double c = tables.cosine.get(position * half + i),
                   s = sign * tables.sine.get(position * half + i);
      const double a = first, b = second;
      first = a * c - b * s;
      second = b * c + a * s;
    }
  return row;
}

// Rounding to storage, and three FP32 roundings (two products, a sum) of values of at most |a| + |b| <= 2
// * 2.
double tolerance(DType storage, double value) {
  return 3 * 4 * 0x1p-24 + (storage == DType::BF16 ? 0x1p-8 : 0x1p-24) * std::abs(value);
}

const Model model{13, 2, 3, 1, 6};

}  // namespace

TEST_CASE("rope rotates halves of query and key heads by the row's position, after the bias") {
  const Tables tables(model);
  for (const DType storage : {DType::F32, DType::BF16})
    for (const bool with_bias : {false, true}) {
      Buffer qkv(storage, {model.tokens(), model.columns()}), before(storage, qkv.tensor.shape);
      Buffer bias(DType::F32, {model.columns()});
      qkv.fill_uniform(1);
      before.fill_uniform(1);
      bias.fill_uniform(2);
      RopeForward r{qkv.tensor,           with_bias ? bias.tensor : Tensor{},
                    tables.cosine.tensor, tables.sine.tensor,
                    model.heads,          model.kv_heads,
                    model.width};
      rope_forward(r, 2);
      bool all_right = true, one_position_off = true, without_bias = true;
      for (int64_t t = 0; t < model.tokens(); ++t) {
        std::vector<double> row, bare;
        for (int64_t c = 0; c < model.columns(); ++c) {
          bare.push_back(before.get(t * model.columns() + c));
          row.push_back(bare.back() + (with_bias ? double(bias.get(c)) : 0.0));
        }
        const auto close = [&](const std::vector<double>& expected) {
          for (int64_t c = 0; c < model.columns(); ++c) {
            const double value = expected[static_cast<size_t>(c)];
            if (!(std::abs(qkv.get(t * model.columns() + c) - value) <= tolerance(storage, value)))
              return false;
          }
          return true;
        };
        const int64_t position = t % model.context;
        all_right &= close(rotated(model, tables, row, position, 1));
        one_position_off &= close(rotated(model, tables, row, (position + 1) % model.context, 1));
        without_bias &= close(rotated(model, tables, bare, position, 1));
      }
      CHECK(all_right);
      CHECK_FALSE(one_position_off);
      CHECK(without_bias == !with_bias);
    }
}

TEST_CASE("rope's backward is the inverse rotation and sums the bias gradient over the tokens") {
  const Tables tables(model);
  for (const DType storage : {DType::F32, DType::BF16}) {
    Buffer gradient(storage, {model.tokens(), model.columns()}), out(storage, gradient.tensor.shape);
    Buffer bias(DType::F32, {model.columns()}), first(DType::F32, {model.columns()});
    gradient.fill_uniform(1);
    bias.fill_uniform(2);
    first.fill_uniform(2);
    RopeBackward r{};
    r.qkv_gradient = gradient.tensor;
    r.bias_gradient = bias.tensor;
    r.cosine = tables.cosine.tensor;
    r.sine = tables.sine.tensor;
    r.heads = model.heads;
    r.kv_heads = model.kv_heads;
    r.head_width = model.width;
    r.out.high = out.tensor;
    rope_backward(r, 2);

    std::vector<double> sum(static_cast<size_t>(model.columns())), magnitude(sum.size());
    for (int64_t t = 0; t < model.tokens(); ++t) {
      std::vector<double> row;
      for (int64_t c = 0; c < model.columns(); ++c) row.push_back(gradient.get(t * model.columns() + c));
      const std::vector<double> expected = rotated(model, tables, row, t % model.context, -1);
      for (int64_t c = 0; c < model.columns(); ++c) {
        const size_t at = static_cast<size_t>(c);
        const float stored = out.get(t * model.columns() + c);
        CHECK(std::abs(stored - expected[at]) <= tolerance(storage, expected[at]));
        sum[at] += stored;
        magnitude[at] += std::abs(stored);
      }
    }
    for (int64_t c = 0; c < model.columns(); ++c) {
      const size_t at = static_cast<size_t>(c);
      const double bound = static_cast<double>(model.tokens()) * 0x1p-24 * (magnitude[at] + 1);
      CHECK(std::abs(bias.get(c) - first.get(c) - sum[at]) <= bound + 0x1p-24);
      CHECK(std::abs(bias.get(c) - sum[at]) > bound);  // negative control: not overwritten but added to
    }

    SECTION(std::string("in place gives the same bits, ") + name_of(storage)) {
      r.out.high = gradient.tensor;
      rope_backward(r, 1);
      CHECK(gradient.bytes() == out.bytes());
    }
  }
}

TEST_CASE("rotating back what was rotated gives the values again") {
  const Tables tables(model);
  Buffer qkv(DType::F32, {model.tokens(), model.columns()}), before(DType::F32, qkv.tensor.shape);
  qkv.fill_uniform(1);
  before.fill_uniform(1);
  rope_forward(
      {qkv.tensor, {}, tables.cosine.tensor, tables.sine.tensor, model.heads, model.kv_heads, model.width},
      2);
  CHECK(qkv.bytes() != before.bytes());
  RopeBackward r{};
  r.qkv_gradient = qkv.tensor;
  r.cosine = tables.cosine.tensor;
  r.sine = tables.sine.tensor;
  r.heads = model.heads;
  r.kv_heads = model.kv_heads;
  r.head_width = model.width;
  r.out.high = qkv.tensor;
  rope_backward(r, 2);
  // cos^2 + sin^2 differs from 1 by two roundings of the tables; each direction adds three.
  for (int64_t i = 0; i < qkv.tensor.elements(); ++i)
    CHECK(std::abs(qkv.get(i) - before.get(i)) <= 8 * 2 * 0x1p-24);
}

TEST_CASE("rope refuses heads that do not fit its tensors") {
  const Tables tables(model);
  Buffer qkv(DType::F32, {model.tokens(), model.columns()});
  CHECK_THROWS_AS(rope_forward({qkv.tensor,
                                {},
                                tables.cosine.tensor,
                                tables.sine.tensor,
                                model.heads + 1,
                                model.kv_heads,
                                model.width},
                               1),
                  Error);
}
