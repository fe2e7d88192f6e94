#include "kernels/outer_scales.h"

#include <cmath>
#include <vector>

#include "catch.h"
#include "environment.h"
#include "kernels/launch_error.h"
#include "numerics/bfloat16.h"

using namespace octet;

namespace {

// Exact in BF16 and small, so that the sums and products below are exact in FP32.
float value_of(int64_t i) { return static_cast<float>(i * 37 % 61 - 30) * 0.25f; }
float scale_of(int64_t i) { return std::ldexp(1.0f, static_cast<int>(i % 5) - 2); }

struct Problem {
  Problem(int64_t the_rows, int64_t the_columns) : rows(the_rows), columns(the_columns) {
    for (int64_t i = 0; i < rows * columns; ++i) {
      product.push_back(value_of(i));
      old.push_back(value_of(i + 7));
      old_bf16.push_back(to_bfloat16(value_of(i + 7)));
    }
    for (int64_t i = 0; i < rows; ++i) row_scale.push_back(scale_of(i));
    for (int64_t i = 0; i < columns; ++i) column_scale.push_back(scale_of(i + 3));
  }
  float expected(int64_t row, int64_t column, bool accumulate, bool by_row, bool by_column) const {
    const auto i = static_cast<size_t>(row * columns + column);
    float v = product[i];
    if (by_row) v *= row_scale[static_cast<size_t>(row)];
    if (by_column) v *= column_scale[static_cast<size_t>(column)];
    return accumulate ? old[i] + v : v;
  }

  int64_t rows, columns;
  std::vector<float> product, old, row_scale, column_scale;
  std::vector<BFloat16> old_bf16;
};

}  // namespace

TEST_CASE("outer scales multiply rows and columns, are added to what is there when asked, and round once") {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 4}, {3, 20}, {5, 1028}, {70, 8}}) {
    const Problem p(rows, columns);
    for (int choice = 0; choice < 8; ++choice) {
      const bool accumulate = (choice & 1) != 0, by_row = (choice & 2) != 0, by_column = (choice & 4) != 0;
      std::vector<float> out = p.old;
      std::vector<BFloat16> out_bf16 = p.old_bf16;
      kernels::OuterScalesArguments args{.product = p.product.data(),
                                         .row_scale = by_row ? p.row_scale.data() : nullptr,
                                         .column_scale = by_column ? p.column_scale.data() : nullptr,
                                         .out = out.data(),
                                         .storage = Format::FP32,
                                         .accumulate = accumulate,
                                         .rows = rows,
                                         .columns = columns};
      kernels::apply_outer_scales(args);
      args.out = out_bf16.data();
      args.storage = Format::BF16;
      kernels::apply_outer_scales(args);
      int64_t wrong = 0, scaled = 0;
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < columns; ++column) {
          const auto i = static_cast<size_t>(row * columns + column);
          const float expected = p.expected(row, column, accumulate, by_row, by_column);
          wrong += out[i] != expected || out_bf16[i].bits != to_bfloat16(expected).bits;
          scaled += expected != p.expected(row, column, accumulate, false, false);
        }
      }
      INFO(rows << " x " << columns << ", accumulate " << accumulate << ", rows " << by_row << ", columns "
                << by_column);
      CHECK(wrong == 0);
      // The control: scales change values, so a kernel that ignores them fails above.
      if (rows * columns > 4) CHECK((scaled > 0) == (by_row || by_column));
    }
  }
}

TEST_CASE("a NaN scale makes its row NaN and no other") {
  const Problem p(3, 8);
  std::vector<float> scales(3, 1.0f), out(24, 0.0f);
  scales[1] = std::nanf("");
  kernels::apply_outer_scales({.product = p.product.data(),
                               .row_scale = scales.data(),
                               .column_scale = nullptr,
                               .out = out.data(),
                               .storage = Format::FP32,
                               .accumulate = false,
                               .rows = 3,
                               .columns = 8});
  for (size_t i = 0; i < out.size(); ++i) CHECK(std::isnan(out[i]) == (i / 8 == 1));
}

TEST_CASE("outer scales refuse rows they cannot read four at a time") {
  std::vector<float> memory(16, 0.0f);
  kernels::OuterScalesArguments args{.product = memory.data(),
                                     .row_scale = nullptr,
                                     .column_scale = nullptr,
                                     .out = memory.data(),
                                     .storage = Format::FP32,
                                     .accumulate = false,
                                     .rows = 1,
                                     .columns = 6};
  CHECK_THROWS_AS(kernels::apply_outer_scales(args), gpu::LaunchError);
}

TEST_CASE("a scale is spread over a vector, and no further") {
  for (const int64_t count : {1, 31, 256, 20011}) {
    std::vector<float> out(static_cast<size_t>(count) + 1, -1.0f);
    const float scale = 0.125f;
    kernels::spread_scale({.out = out.data(), .scale = &scale, .count = count});
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; ++i) wrong += out[static_cast<size_t>(i)] != scale;
    CHECK(wrong == 0);
    CHECK(out.back() == -1.0f);
  }
}
