// A matrix product with its operands and what it should give in double: what the tests of all implementations
// share.
#pragma once
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "catch.h"
#include "device/cpu/gemm_state.h"
#include "device/matrices.h"

namespace octet::matrices {

enum class Scales { None, Tensor, Outer, Vectors, Squares };

struct Case {
  int64_t m, n, k;
  DType a = DType::F32, b = DType::F32, out = DType::F32;
  bool a_transposed = false, b_transposed = false, accumulate = false;
  Scales a_scales = Scales::None, b_scales = Scales::None;
};

// A matrix product with its operands, and what it should give in double.
struct Problem {
  explicit Problem(const Case& c, float low = -1, float high = 1)
      : shape(c),
        a(c.a, c.a_transposed ? Shape{c.k, c.m} : Shape{c.m, c.k}),
        b(c.b, c.b_transposed ? Shape{c.k, c.n} : Shape{c.n, c.k}),
        out(c.out, {c.m, c.n}),
        a_scales(count_of(c.a_scales, c.m, c.k)),
        b_scales(count_of(c.b_scales, c.n, c.k)) {
    a.fill_uniform(1, low, high);
    b.fill_uniform(2, low, high);
    out.fill_uniform(3);
    for (int64_t i = 0; i < out.tensor.elements(); ++i) old.push_back(out.get(i));
    for (size_t i = 0; i < a_scales.size(); ++i) a_scales[i] = uniform(4, i, 0.25f, 2.0f);
    for (size_t i = 0; i < b_scales.size(); ++i) b_scales[i] = uniform(5, i, 0.25f, 2.0f);
  }

  Matmul matmul() {
    Matmul m;
    m.a = operand(a.tensor, shape.a_transposed, shape.a_scales, a_scales);
    m.b = operand(b.tensor, shape.b_transposed, shape.b_scales, b_scales);
    m.out = out.tensor;
    m.accumulate = shape.accumulate;
    return m;
  }

  // Largest |out - expected| / bound over all elements; at most 1 when the product is right.
  //   bound = u_out |value| + (K + 4) * 2^-24 * (sum |a b| scale + |old|)
  // Every order of K additions and K products in FP32, two scalings (of the sum, or of each of the operands)
  // and the sum with old: at most K + 4 roundings of 2^-24 on partial sums of at most sum |a b|.
  double worst() const {
    double worst_ratio = 0;
    for (int64_t i = 0; i < shape.m; ++i)
      for (int64_t j = 0; j < shape.n; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < shape.k; ++k) {
          const double x = a.get(shape.a_transposed ? k * shape.m + i : i * shape.k + k) *
                           block_scale(shape.a_scales, a_scales, shape.m, i, k);
          const double y = b.get(shape.b_transposed ? k * shape.n + j : j * shape.k + k) *
                           block_scale(shape.b_scales, b_scales, shape.n, j, k);
          sum += x * y;
          magnitude += std::abs(x * y);
        }
        const double scale = scale_at(shape.a_scales, a_scales, i) * scale_at(shape.b_scales, b_scales, j);
        const double before = shape.accumulate ? old[static_cast<size_t>(i * shape.n + j)] : 0;
        const double expected = sum * scale + before;
        const double fp32 =
            static_cast<double>(shape.k + 4) * 0x1p-24 * (magnitude * scale + std::abs(before));
        const double rounding = shape.out == DType::BF16 ? 0x1p-8 * (std::abs(expected) + fp32) : 0;
        const double error = std::abs(out.get(i * shape.n + j) - expected);
        // A NaN compares false and must not pass.
        worst_ratio =
            error <= fp32 + rounding ? std::max(worst_ratio, error / (fp32 + rounding + 1e-300)) : 1e9;
      }
    return worst_ratio;
  }

  Case shape;
  Buffer a, b, out;
  std::vector<float> old, a_scales, b_scales;

 private:
  static Operand operand(const Tensor& values, bool transposed, Scales scales, const std::vector<float>& of) {
    Operand x;
    x.values = values;
    x.transposed = transposed;
    if (scales != Scales::None) x.inverse_scale = of.data();
    if (scales == Scales::Outer) x.granularity = ScaleGranularity::Outer;
    if (scales == Scales::Vectors) x.granularity = ScaleGranularity::Vectors;
    if (scales == Scales::Squares) x.granularity = ScaleGranularity::Squares;
    return x;
  }
  static size_t count_of(Scales scales, int64_t outer, int64_t inner) {
    const int64_t blocks = (inner + 127) / 128;
    return static_cast<size_t>(scales == Scales::Vectors   ? blocks * outer
                               : scales == Scales::Squares ? (outer + 127) / 128 * ((blocks + 3) / 4 * 4)
                                                           : outer);
  }
  // Of the sum.
  static double scale_at(Scales scales, const std::vector<float>& of, int64_t i) {
    if (scales != Scales::Tensor && scales != Scales::Outer) return 1.0;
    return of[scales == Scales::Outer ? static_cast<size_t>(i) : 0];
  }
  // Of an operand's value.
  double block_scale(Scales scales, const std::vector<float>& of, int64_t outer, int64_t i, int64_t k) const {
    if (scales == Scales::Vectors) return of[static_cast<size_t>(k / 128 * outer + i)];
    const int64_t pitch = ((shape.k + 127) / 128 + 3) / 4 * 4;
    return scales == Scales::Squares ? of[static_cast<size_t>(i / 128 * pitch + k / 128)] : 1.0;
  }
};

inline DeviceOptions fixed_order() {
  DeviceOptions options;
  options.deterministic = true;
  return options;
}

inline std::string describe(const Case& c) {
  return std::string(name_of(c.a)) + (c.a_transposed ? "^T " : " ") + name_of(c.b) +
         (c.b_transposed ? "^T " : " ") + name_of(c.out) + " " + std::to_string(c.m) + "x" +
         std::to_string(c.n) + "x" + std::to_string(c.k) + (c.accumulate ? " accumulate" : "") + " scales " +
         std::to_string(static_cast<int>(c.a_scales)) + std::to_string(static_cast<int>(c.b_scales));
}

// Every operand pair, orientation and scale granularity the interface allows.
inline std::vector<Case> variants(int64_t m, int64_t n, int64_t k) {
  std::vector<Case> all;
  for (const DType type : {DType::F32, DType::BF16})
    for (const bool a_transposed : {false, true})
      for (const bool b_transposed : {false, true})
        for (const DType out : {DType::F32, DType::BF16})
          for (const bool accumulate : {false, true})
            all.push_back({m, n, k, type, type, out, a_transposed, b_transposed, accumulate});
  const std::pair<DType, DType> pairs[] = {
      {DType::E4M3, DType::E4M3}, {DType::E4M3, DType::E5M2}, {DType::E5M2, DType::E4M3}};
  for (const auto& [a, b] : pairs)
    for (const Scales a_scales : {Scales::Tensor, Scales::Outer})
      for (const Scales b_scales : {Scales::Tensor, Scales::Outer})
        for (const DType out : {DType::F32, DType::BF16})
          for (const bool accumulate : {false, true})
            all.push_back({m, n, k, a, b, out, false, false, accumulate, a_scales, b_scales});
  const std::pair<Scales, Scales> blocks[] = {{Scales::Vectors, Scales::Vectors},
                                              {Scales::Vectors, Scales::Squares},
                                              {Scales::Squares, Scales::Vectors}};
  for (const auto& [a, b] : pairs)
    for (const auto& [a_scales, b_scales] : blocks)
      for (const DType out : {DType::F32, DType::BF16})
        for (const bool accumulate : {false, true})
          all.push_back({m, n, k, a, b, out, false, false, accumulate, a_scales, b_scales});
  return all;
}

inline void check_all(GemmEngine& engine, const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    Problem problem(c);
    engine.run(problem.matmul());
    INFO(describe(c));
    CHECK(problem.worst() <= 1);
  }
}

}  // namespace octet::matrices
