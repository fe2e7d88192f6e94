#include <limits>

#include "catch.h"
#include "device/op_fixture.h"
#include "numerics/scaling.h"

using namespace octet;

namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

struct Case {
  int64_t tokens, width;
  DType storage;
};

Tensor gate_up_tensor(OpFixture& f, const Case& c, const Values& gate, const Values& up) {
  Values both;
  for (int64_t t = 0; t < c.tokens; ++t) {
    both.insert(both.end(), gate.begin() + t * c.width, gate.begin() + (t + 1) * c.width);
    both.insert(both.end(), up.begin() + t * c.width, up.begin() + (t + 1) * c.width);
  }
  return f.floats(c.storage, {c.tokens, 2 * c.width}, both);
}

}  // namespace

TEST_CASE("SwiGLU is silu(gate) * up, rounded once", "[swiglu]") {
  const Case c = GENERATE(Case{1, 1, DType::F32}, Case{3, 37, DType::F32}, Case{4, 256, DType::BF16});
  OpFixture f;
  const int64_t n = c.tokens * c.width;
  Values gate = normal_values(n, 1, 6.0, c.storage);
  const Values up = normal_values(n, 2, 3.0, c.storage);
  if (n > 10) gate[3] = 0.0f, gate[5] = -85.0f, gate[7] = 300.0f, gate[9] = -300.0f;
  for (float& v : gate) v = rounded(c.storage, v);
  SwiGluForward op;
  op.gate_up = gate_up_tensor(f, c, gate, up);
  op.out.high = f.zeros(c.storage, {c.tokens, c.width});
  f->swiglu_forward(op);
  const Values h = read_floats(op.out.high);
  for (size_t i = 0; i < h.size(); ++i) {
    const double g = static_cast<double>(gate[i]), exact = g * sigmoid(g) * static_cast<double>(up[i]);
    // The sigmoid is within 3 * 2^-23, two products round; a sigmoid below 2^-126 may vanish.
    const double bound = (8 * 0x1p-24 + half_ulp(c.storage)) * std::abs(exact) +
                         0x1p-120 * std::abs(g * static_cast<double>(up[i]));
    CHECK(std::abs(static_cast<double>(h[i]) - exact) <= bound);
  }
}

TEST_CASE("SwiGLU backward agrees with finite differences in double", "[swiglu]") {
  const Case c = GENERATE(Case{1, 1, DType::F32}, Case{5, 77, DType::F32}, Case{3, 130, DType::BF16});
  OpFixture f;
  const int64_t n = c.tokens * c.width;
  const Values gate = normal_values(n, 1, 3.0, c.storage), up = normal_values(n, 2, 3.0, c.storage),
               dh = normal_values(n, 3, 1.0, c.storage);
  SwiGluBackward op;
  op.gate_up = gate_up_tensor(f, c, gate, up);
  op.h_gradient = f.floats(c.storage, {c.tokens, c.width}, dh);
  op.out.high = f.zeros(c.storage, {c.tokens, 2 * c.width});
  f->swiglu_backward(op);
  const Values out = read_floats(op.out.high);
  const double step = 1e-5;
  for (int64_t t = 0; t < c.tokens; ++t) {
    for (int64_t d = 0; d < c.width; ++d) {
      const size_t i = static_cast<size_t>(t * c.width + d), at = static_cast<size_t>(t * 2 * c.width + d);
      const double g = static_cast<double>(gate[i]), u = static_cast<double>(up[i]),
                   w = static_cast<double>(dh[i]);
      const auto h = [](double a, double b) { return a * sigmoid(a) * b; };
      const double dgate = w * (h(g + step, u) - h(g - step, u)) / (2 * step),
                   dup = w * (h(g, u + step) - h(g, u - step)) / (2 * step);
      // FP32 terms of size |w u| max(1, |g|) and |w g|, a dozen roundings; 1e-9 for the differences.
      const double slack = 16 * 0x1p-24 + 1e-9;
      CHECK(std::abs(static_cast<double>(out[at]) - dgate) <=
            half_ulp(c.storage) * std::abs(dgate) + slack * std::abs(w * u) * std::max(1.0, std::abs(g)));
      CHECK(std::abs(static_cast<double>(out[at + static_cast<size_t>(c.width)]) - dup) <=
            half_ulp(c.storage) * std::abs(dup) + slack * std::abs(w * g));
    }
  }
}

TEST_CASE("SwiGLU's results, codes, scales and counters have the same bits for 1, 2 and 4 threads",
          "[swiglu]") {
  const Case c{147, 200, DType::BF16};
  const int64_t n = c.tokens * c.width;
  const Values gate = normal_values(n, 1, 3.0), up = normal_values(n, 2, 3.0), dh = normal_values(n, 3);
  const auto bits = [&](int threads, uint64_t rounding_key) {
    OpFixture f(threads);
    SwiGluForward forward;
    forward.gate_up = gate_up_tensor(f, c, gate, up);
    forward.mode = SmoothSwiGLU::Dual;
    CastTarget& h = forward.out;
    h.high = f.zeros(c.storage, {c.tokens, c.width});
    h.row = f.zeros(DType::E4M3, {c.tokens, c.width});
    h.column = f.zeros(DType::E4M3, {c.width, c.tokens});
    h.row_inverse_scale = f.zeros(DType::F32, {c.tokens});
    h.column_inverse_scale = f.zeros(DType::F32, {c.width});
    h.cast.format = Format::E4M3;
    h.site = f.site();
    f->swiglu_forward(forward);
    SwiGluBackward backward;
    backward.gate_up = forward.gate_up;
    backward.h_gradient = f.floats(c.storage, {c.tokens, c.width}, dh);
    CastTarget& out = backward.out;
    out.high = f.zeros(c.storage, {c.tokens, 2 * c.width});
    out.row = f.zeros(DType::E5M2, {c.tokens, 2 * c.width});
    out.column = f.zeros(DType::E5M2, {2 * c.width, c.tokens});
    out.cast.format = Format::E5M2;
    out.cast.rounding = Rounding::Stochastic;
    out.rounding_key = rounding_key;
    out.site = f.site();
    f->swiglu_backward(backward);
    std::vector<Bytes> all;
    for (const CastTarget* target : {&h, &out}) {
      for (const Tensor& t : {target->high, target->row, target->column, target->row_inverse_scale,
                              target->column_inverse_scale})
        all.push_back(read_bytes(t));
      const CastCounters& counts = *target->site.counters;
      Bytes counted;
      for (const uint64_t count : {counts.elements, counts.saturated, counts.flushed})
        for (int byte = 0; byte < 64; byte += 8) counted.push_back(static_cast<uint8_t>(count >> byte));
      all.push_back(counted);
      const auto* amax = reinterpret_cast<const uint8_t*>(target->site.amax);
      all.push_back(Bytes(amax, amax + sizeof(float)));
    }
    return all;
  };
  const std::vector<Bytes> one = bits(1, 7);
  CHECK(bits(2, 7) == one);
  CHECK(bits(4, 7) == one);
  // The control: other random numbers give other codes, so numbers that moved with the threads would show.
  CHECK(bits(1, 8) != one);
}

// ---- Smooth-SwiGLU
// ------------------------------------------------------------------------------------------------

namespace {

// The setting of the outlier tests: T = 192, F = 704, D = 256; gate, up ~ N(0, 1); W ~ 0.02 N(0, 1).
constexpr int64_t tokens = 192, features = 704, width = 256;
using Doubles = std::vector<double>;

struct Hidden {
  Values h;             // the BF16 product
  Doubles row, column;  // what the two copies decode to, [T, F] both
  Values row_inverse, column_inverse;
};

Hidden forward(const Values& gate, const Values& up, SmoothSwiGLU mode, Scaling scaling, float calm_scale) {
  OpFixture f;
  SwiGluForward op;
  op.gate_up = gate_up_tensor(f, {tokens, features, DType::BF16}, gate, up);
  op.mode = mode;
  op.out.high = f.zeros(DType::BF16, {tokens, features});
  op.out.row = f.zeros(DType::E4M3, {tokens, features});
  op.out.column = f.zeros(DType::E4M3, {features, tokens});
  op.out.row_inverse_scale = f.zeros(DType::F32, {tokens});
  op.out.column_inverse_scale = f.zeros(DType::F32, {features});
  op.out.cast = {Format::E4M3, scaling};
  op.out.site = f.site();
  *op.out.site.scale = calm_scale;
  f->swiglu_forward(op);
  Hidden result;
  result.h = read_floats(op.out.high);
  result.row_inverse = read_floats(op.out.row_inverse_scale);
  result.column_inverse = read_floats(op.out.column_inverse_scale);
  const bool token = mode == SmoothSwiGLU::Token, channel = mode == SmoothSwiGLU::Channel,
             dual = mode == SmoothSwiGLU::Dual;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < features; ++i) {
      const float site = *op.out.site.inverse_scale, by_row = op.out.row_inverse_scale.as<float>()[t],
                  by_column = op.out.column_inverse_scale.as<float>()[i];
      result.row.push_back(static_cast<double>(decode_e4m3(op.out.row.as<uint8_t>()[t * features + i])) *
                           static_cast<double>(token || dual ? by_row
                                               : channel     ? by_column
                                                             : site));
      result.column.push_back(static_cast<double>(decode_e4m3(op.out.column.as<uint8_t>()[i * tokens + t])) *
                              static_cast<double>(token             ? by_row
                                                  : channel || dual ? by_column
                                                                    : site));
    }
  }
  return result;
}

Doubles quantized(const Values& values, Format format) {
  float amax = 0;
  for (const float v : values) amax = std::max(amax, std::abs(v));
  const float scale = power_of_two_scale(amax, max_of(format));
  Doubles out;
  for (const float v : values)
    out.push_back(static_cast<double>(decode(format, encode(format, v * scale)) / scale));
  return out;
}
Doubles exact(const Values& values) { return {values.begin(), values.end()}; }

// a [M, K] b [N, K]^T in double.
Doubles product(const Doubles& a, const Doubles& b, int64_t m, int64_t n, int64_t k) {
  Doubles out(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sums[8] = {};  // lanes, so that this vectorises
      for (int64_t l = 0; l < k; l += 8) {
        for (int64_t s = 0; s < 8; ++s)
          sums[s] += a[static_cast<size_t>(i * k + l + s)] * b[static_cast<size_t>(j * k + l + s)];
      }
      double sum = 0;
      for (const double s : sums) sum += s;
      out[static_cast<size_t>(i * n + j)] = sum;
    }
  }
  return out;
}
Doubles transpose(const Doubles& a, int64_t rows, int64_t columns) {
  Doubles out(a.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c)
      out[static_cast<size_t>(c * rows + r)] = a[static_cast<size_t>(r * columns + c)];
  }
  return out;
}

Values down_weight() { return normal_values(width * features, 103, 0.02, DType::BF16); }

struct Errors {
  double all, others;  // of Y; others: without token 17
};
Errors fprop_errors(const Doubles& decoded, const Values& h) {
  const Doubles y = product(decoded, quantized(down_weight(), Format::E4M3), tokens, width, features),
                reference = product(exact(h), exact(down_weight()), tokens, width, features);
  const auto cut = [](Doubles v) {
    v.erase(v.begin() + 17 * width, v.begin() + 18 * width);
    return v;
  };
  return {relative_error(y, reference), relative_error(cut(y), cut(reference))};
}

struct Batch {
  Values gate, up;
};
Batch calm_batch(uint64_t key) {
  return {normal_values(tokens * features, key, 1.0, DType::BF16),
          normal_values(tokens * features, key + 1, 1.0, DType::BF16)};
}
// h[17, 33] = R, half of it (as a logarithm) from each branch.
Batch token_outlier(double r) {
  Batch batch = calm_batch(101);
  const float root = round_to_bfloat16(static_cast<float>(std::sqrt(r)));
  batch.gate[17 * features + 33] = batch.up[17 * features + 33] = root;
  return batch;
}
float calm_scale() {
  const Batch calm = calm_batch(201);
  float amax = 0;
  for (const float v : forward(calm.gate, calm.up, SmoothSwiGLU::None, Scaling::Current, 0).h) {
    amax = std::max(amax, std::abs(v));
  }
  return power_of_two_scale(amax, 448.0f);
}

}  // namespace

TEST_CASE("S1: without the quantiser every mode is plain SwiGLU, bit for bit", "[swiglu][smooth]") {
  const Batch batch = token_outlier(1e4);
  const Hidden plain = forward(batch.gate, batch.up, SmoothSwiGLU::None, Scaling::Current, 0);
  for (const SmoothSwiGLU mode : {SmoothSwiGLU::Token, SmoothSwiGLU::Channel, SmoothSwiGLU::Dual}) {
    const Hidden smooth = forward(batch.gate, batch.up, mode, Scaling::Current, 0);
    CHECK(smooth.h == plain.h);
    int64_t changed = 0;  // scaling by the mode's factors and back changes nothing
    for (size_t i = 0; i < plain.h.size(); ++i) {
      const float by_row = smooth.row_inverse[i / features], by_column = smooth.column_inverse[i % features];
      if (by_row != 0 && plain.h[i] * (1.0f / by_row) * by_row != plain.h[i]) ++changed;
      if (by_column != 0 && plain.h[i] * (1.0f / by_column) * by_column != plain.h[i]) ++changed;
    }
    CHECK(changed == 0);
  }
  int64_t changed = 0;  // the control: by the largest value instead, elements do change
  for (const float v : plain.h) changed += v / 1e4f * 1e4f != v ? 1 : 0;
  CHECK(changed > 0);
}

TEST_CASE("S2: a zero token and a zero channel get scale 1 and stay finite", "[swiglu][smooth]") {
  Batch batch = calm_batch(101);
  for (int64_t i = 0; i < features; ++i) batch.up[static_cast<size_t>(4 * features + i)] = 0.0f;
  for (int64_t t = 0; t < tokens; ++t) batch.gate[static_cast<size_t>(t * features + 8)] = 0.0f;
  const Hidden dual = forward(batch.gate, batch.up, SmoothSwiGLU::Dual, Scaling::Current, 0);
  CHECK(dual.row_inverse[4] == 1.0f);
  CHECK(dual.column_inverse[8] == 1.0f);
  for (const double v : dual.row) REQUIRE(std::isfinite(v));
  for (const double v : dual.column) REQUIRE(std::isfinite(v));

  batch.up[17 * features + 33] =
      std::numeric_limits<float>::infinity();  // reaches the loss, so the step drops
  const Hidden broken = forward(batch.gate, batch.up, SmoothSwiGLU::Dual, Scaling::Current, 0);
  CHECK(std::isnan(broken.row_inverse[17]));
  CHECK(std::isnan(broken.column_inverse[33]));
  CHECK(std::isfinite(broken.row_inverse[16]));
}

TEST_CASE("S3: every element of a scaled copy is within half an ulp or half the smallest subnormal",
          "[swiglu][smooth]") {
  Batch batch = token_outlier(1e6);
  for (int64_t i = 0; i < features; ++i) {  // a row whose values span forty binades
    batch.gate[static_cast<size_t>(3 * features + i)] = 8.0f;
    batch.up[static_cast<size_t>(3 * features + i)] = std::ldexp(1.0f, static_cast<int>(i % 40) - 30);
  }
  const auto violations = [&](const Hidden& hidden) {
    int64_t count = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      double largest = 0;
      for (int64_t i = 0; i < features; ++i) {
        largest =
            std::max(largest, std::abs(static_cast<double>(hidden.h[static_cast<size_t>(t * features + i)])));
      }
      for (int64_t i = 0; i < features; ++i) {
        const size_t at = static_cast<size_t>(t * features + i);
        const double h = static_cast<double>(hidden.h[at]);
        if (std::abs(hidden.row[at] - h) > 0x1p-4 * std::abs(h) + 0x1p-10 / 224 * largest) ++count;
      }
    }
    return count;
  };
  CHECK(violations(forward(batch.gate, batch.up, SmoothSwiGLU::Token, Scaling::Current, 0)) == 0);
  CHECK(violations(forward(batch.gate, batch.up, SmoothSwiGLU::Dual, Scaling::Current, 0)) == 0);
  CHECK(violations(forward(batch.gate, batch.up, SmoothSwiGLU::None, Scaling::Current, 0)) >
        1000);  // the control

  // The other copy of `dual` and of `channel`, by columns.
  for (const SmoothSwiGLU mode : {SmoothSwiGLU::Dual, SmoothSwiGLU::Channel}) {
    const Hidden hidden = forward(batch.gate, batch.up, mode, Scaling::Current, 0);
    int64_t count = 0;
    for (int64_t i = 0; i < features; ++i) {
      double largest = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        largest =
            std::max(largest, std::abs(static_cast<double>(hidden.h[static_cast<size_t>(t * features + i)])));
      }
      for (int64_t t = 0; t < tokens; ++t) {
        const size_t at = static_cast<size_t>(t * features + i);
        const double h = static_cast<double>(hidden.h[at]);
        if (std::abs(hidden.column[at] - h) > 0x1p-4 * std::abs(h) + 0x1p-10 / 224 * largest) ++count;
      }
    }
    CHECK(count == 0);
  }
}

TEST_CASE("S4: one outlier token costs a smooth copy nothing, and ruins every other scaling",
          "[swiglu][smooth]") {
  const float calm = calm_scale();
  const Batch large = token_outlier(1e4);
  for (const SmoothSwiGLU mode : {SmoothSwiGLU::Token, SmoothSwiGLU::Dual}) {
    const Hidden hidden = forward(large.gate, large.up, mode, Scaling::Delayed, calm);
    const Errors errors = fprop_errors(hidden.row, hidden.h);
    CHECK(errors.all <= 0.05);
    CHECK(errors.others <= 0.05);
  }
  // Plain delayed scaling: the outlier saturates.
  const Hidden plain = forward(large.gate, large.up, SmoothSwiGLU::None, Scaling::Delayed, calm);
  CHECK(fprop_errors(plain.row, plain.h).all >= 0.9);

  // A scale from the linear branch alone (the released code), with a calm scale behind it, still saturates.
  Doubles by_linear_branch;
  for (int64_t t = 0; t < tokens; ++t) {
    float largest = 0;
    for (int64_t i = 0; i < features; ++i) {
      largest = std::max(largest, std::abs(large.up[static_cast<size_t>(t * features + i)]));
    }
    for (int64_t i = 0; i < features; ++i) {
      const float g = plain.h[static_cast<size_t>(t * features + i)] / largest;
      // A calm token's h / max|up| is about a third of its h: a scale four times the calm one fits it.
      const float scale = calm * 4;
      by_linear_branch.push_back(static_cast<double>(decode_e4m3(encode_e4m3(g * scale)) / scale * largest));
    }
  }
  CHECK(fprop_errors(by_linear_branch, plain.h).all >= 0.9);

  // Just-in-time scaling of the whole tensor keeps the outlier and loses everybody else.
  const Batch huge = token_outlier(1e6);
  const Hidden lost = forward(huge.gate, huge.up, SmoothSwiGLU::None, Scaling::Current, 0);
  CHECK(fprop_errors(lost.row, lost.h).others >= 0.5);
  for (const SmoothSwiGLU mode : {SmoothSwiGLU::Token, SmoothSwiGLU::Dual}) {
    const Hidden hidden = forward(huge.gate, huge.up, mode, Scaling::Current, 0);
    CHECK(fprop_errors(hidden.row, hidden.h).others <= 0.05);
  }
}

TEST_CASE("S5: an outlier channel of any size costs a smooth copy nothing", "[swiglu][smooth]") {
  const float calm = calm_scale();
  for (const double r : {1e2, 1e4, 1e7}) {
    CAPTURE(r);
    Batch batch = calm_batch(101);
    for (int64_t t = 0; t < tokens; ++t) {  // gate and up aligned in channel 33
      const size_t at = static_cast<size_t>(t * features + 33);
      batch.gate[at] = batch.up[at] = round_to_bfloat16(batch.gate[at] * static_cast<float>(std::sqrt(r)));
    }
    for (const SmoothSwiGLU mode : {SmoothSwiGLU::Token, SmoothSwiGLU::Dual}) {
      const Hidden hidden = forward(batch.gate, batch.up, mode, Scaling::Delayed, calm);
      CHECK(fprop_errors(hidden.row, hidden.h).all <= 0.05);
    }
    const Hidden plain = forward(batch.gate, batch.up, SmoothSwiGLU::None, Scaling::Delayed, calm);
    if (r >= 1e4) CHECK(fprop_errors(plain.row, plain.h).all >= 0.9);
  }
}

TEST_CASE("S6: the weight gradient of the down projection does not see the outlier's size",
          "[swiglu][smooth]") {
  const Values dy = normal_values(tokens * width, 107, 1.0, DType::BF16);
  const Doubles dy_codes = transpose(quantized(dy, Format::E5M2), tokens, width),
                dy_exact = transpose(exact(dy), tokens, width);
  const float calm = calm_scale();
  const auto wgrad_error = [&](double r, SmoothSwiGLU mode, Scaling scaling) {
    const Batch batch = token_outlier(r);
    const Hidden hidden = forward(batch.gate, batch.up, mode, scaling, calm);
    return relative_error(
        product(dy_codes, transpose(hidden.column, tokens, features), width, features, tokens),
        product(dy_exact, transpose(exact(hidden.h), tokens, features), width, features, tokens));
  };
  const double small = wgrad_error(1, SmoothSwiGLU::Dual, Scaling::Delayed),
               large = wgrad_error(1e4, SmoothSwiGLU::Dual, Scaling::Delayed);
  CHECK(small <= 0.10);
  CHECK(large <= 0.10);
  CHECK(large <= 1.5 * small);
  CHECK(wgrad_error(1e4, SmoothSwiGLU::None, Scaling::Delayed) >= 0.9);  // the control

  // dgrad has no h in it: E5M2 times E4M3 alone.
  const Doubles w_exact = transpose(exact(down_weight()), width, features),
                w_codes = transpose(quantized(down_weight(), Format::E4M3), width, features);
  CHECK(relative_error(product(quantized(dy, Format::E5M2), w_codes, tokens, features, width),
                       product(exact(dy), w_exact, tokens, features, width)) <= 0.10);
}

TEST_CASE("Smooth-SwiGLU modes refuse targets they cannot fill", "[swiglu][smooth]") {
  OpFixture f;
  SwiGluForward op;
  op.gate_up = f.zeros(DType::BF16, {4, 32});
  op.out.high = f.zeros(DType::BF16, {4, 16});
  op.out.row = f.zeros(DType::E4M3, {4, 16});
  op.out.cast.format = Format::E4M3;
  op.out.site = f.site();
  for (const SmoothSwiGLU mode :
       {SmoothSwiGLU::Token, SmoothSwiGLU::Channel, SmoothSwiGLU::Dual, SmoothSwiGLU::BF16}) {
    op.mode = mode;
    CHECK_THROWS(f->swiglu_forward(op));
  }
  op.mode = SmoothSwiGLU::None;
  CHECK_NOTHROW(f->swiglu_forward(op));
  op.mode = SmoothSwiGLU::BF16;
  op.out.row = {};
  CHECK_NOTHROW(f->swiglu_forward(op));
}
