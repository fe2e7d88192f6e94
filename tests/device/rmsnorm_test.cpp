#include "base/error.h"
#include "catch.h"
#include "device/op_fixture.h"

using namespace octet;

namespace {

constexpr float epsilon = 1e-5f;

struct Case {
  int64_t tokens, width;
  DType storage;
};

// out[t, d] in double from given x.
std::vector<double> normalized(const std::vector<double>& x, const Values& gain, int64_t tokens,
                               int64_t width) {
  std::vector<double> out(x.size());
  for (int64_t t = 0; t < tokens; ++t) {
    double squares = 0;
    for (int64_t d = 0; d < width; ++d)
      squares += x[static_cast<size_t>(t * width + d)] * x[static_cast<size_t>(t * width + d)];
    const double rstd = 1.0 / std::sqrt(squares / static_cast<double>(width) + static_cast<double>(epsilon));
    for (int64_t d = 0; d < width; ++d) {
      const size_t i = static_cast<size_t>(t * width + d);
      out[i] = x[i] * rstd * static_cast<double>(gain[static_cast<size_t>(d)]);
    }
  }
  return out;
}
std::vector<double> widened(const Values& values) { return {values.begin(), values.end()}; }

}  // namespace

TEST_CASE("RMSNorm adds the branch, rounds the sum to storage and normalises it", "[rmsnorm]") {
  const auto [tokens, width, storage] =
      GENERATE(Case{1, 1, DType::F32}, Case{3, 17, DType::F32}, Case{5, 1030, DType::F32},
               Case{4, 256, DType::BF16}, Case{2, 515, DType::BF16});
  OpFixture f;
  const int64_t n = tokens * width;
  const Values residual = normal_values(n, 1, 2.0, storage), branch = normal_values(n, 2, 1.0, storage),
               gain = normal_values(width, 3);
  const bool with_branch = GENERATE(false, true), in_place = GENERATE(false, true);
  RmsNormForward op;
  op.residual = f.floats(storage, {tokens, width}, residual);
  if (with_branch) op.branch = f.floats(storage, {tokens, width}, branch);
  if (!in_place) op.residual_out = f.zeros(storage, {tokens, width});
  op.gain = f.floats(DType::F32, {width}, gain);
  op.rstd = f.zeros(DType::F32, {tokens});
  op.epsilon = epsilon;
  op.out.high = f.zeros(storage, {tokens, width});
  f->rmsnorm_forward(op);

  Values sum = residual;
  for (size_t i = 0; i < sum.size(); ++i) {
    if (with_branch) sum[i] = rounded(storage, residual[i] + branch[i]);
  }
  CHECK(read_floats(in_place ? op.residual : op.residual_out) == sum);
  if (!in_place) CHECK(read_floats(op.residual) == residual);
  const std::vector<double> expected = normalized(widened(sum), gain, tokens, width);
  const Values out = read_floats(op.out.high);
  // The sum of squares has width/16 + 4 roundings in a row, mean, root and reciprocal four more, the two
  // products two; storage rounds once more.
  const double bound = (static_cast<double>(width) / 16 + 10) * 0x1p-24 + half_ulp(storage);
  for (size_t i = 0; i < out.size(); ++i) {
    CHECK(std::abs(static_cast<double>(out[i]) - expected[i]) <= bound * std::abs(expected[i]));
  }
}

TEST_CASE("RMSNorm backward agrees with finite differences in double", "[rmsnorm]") {
  const auto [tokens, width, storage] =
      GENERATE(Case{3, 17, DType::F32}, Case{130, 70, DType::F32}, Case{9, 600, DType::BF16});
  OpFixture f;
  const int64_t n = tokens * width;
  const Values x = normal_values(n, 1, 2.0, storage), dout = normal_values(n, 2, 1.0, storage),
               gain = normal_values(width, 3), in = normal_values(n, 4, 1.0, storage),
               gain_before = normal_values(width, 5);
  // rstd as the forward pass computes it.
  RmsNormForward forward;
  forward.residual = f.floats(storage, {tokens, width}, x);
  forward.gain = f.floats(DType::F32, {width}, gain);
  forward.rstd = f.zeros(DType::F32, {tokens});
  forward.epsilon = epsilon;
  forward.out.high = f.zeros(storage, {tokens, width});
  f->rmsnorm_forward(forward);
  const bool with_in = GENERATE(true, false);
  RmsNormBackward op;
  op.out_gradient = f.floats(storage, {tokens, width}, dout);
  op.residual = forward.residual;
  op.gain = forward.gain;
  op.rstd = forward.rstd;
  op.gain_gradient = f.floats(DType::F32, {width}, gain_before);
  op.residual_gradient.high = f.floats(storage, {tokens, width}, in);
  if (with_in) op.residual_gradient_in = op.residual_gradient.high;  // in place
  f->rmsnorm_backward(op);

  // L = sum dout * norm(x); its derivatives by central differences (error ~ h^2, cancellation ~ 2^-52 / h).
  const Values dx = read_floats(op.residual_gradient.high), dgain = read_floats(op.gain_gradient);
  const double h = 1e-4;
  const auto row_loss = [&](const std::vector<double>& row, int64_t t) {
    const std::vector<double> out = normalized(row, gain, 1, width);
    double loss = 0;
    for (size_t d = 0; d < row.size(); ++d) {
      loss += out[d] * static_cast<double>(dout[static_cast<size_t>(t * width) + d]);
    }
    return loss;
  };
  double row_norm = 0;
  for (const float v : dout) row_norm = std::max(row_norm, std::abs(static_cast<double>(v)));
  for (int64_t t = 0; t < tokens; t += 4) {
    std::vector<double> row(x.begin() + t * width, x.begin() + (t + 1) * width);
    for (int64_t d = 0; d < width; d += 3) {
      const size_t at = static_cast<size_t>(d), i = static_cast<size_t>(t * width + d);
      std::vector<double> up = row, down = row;
      up[at] += h;
      down[at] -= h;
      const double expected =
          (row_loss(up, t) - row_loss(down, t)) / (2 * h) + (with_in ? static_cast<double>(in[i]) : 0.0);
      // FP32 inside: a few roundings of terms as large as the gradient; then storage; 1e-6 for h.
      const double bound = half_ulp(storage) * std::abs(expected) + 1e-5 * row_norm;
      CHECK(std::abs(static_cast<double>(dx[i]) - expected) <= bound);
    }
  }
  for (int64_t d = 0; d < width; ++d) {
    double expected = static_cast<double>(gain_before[static_cast<size_t>(d)]),
           magnitude = std::abs(expected);
    for (int64_t t = 0; t < tokens; ++t) {
      const size_t i = static_cast<size_t>(t * width + d);
      const double term = static_cast<double>(dout[i]) * static_cast<double>(x[i]) *
                          static_cast<double>(op.rstd.as<float>()[t]);
      expected += term;
      magnitude += std::abs(term);
    }
    const double roundings =
        static_cast<double>(std::min<int64_t>(tokens, 64)) + 3 + static_cast<double>(tokens) / 64;
    CHECK(std::abs(static_cast<double>(dgain[static_cast<size_t>(d)]) - expected) <=
          roundings * 0x1p-24 * magnitude);
  }
}

TEST_CASE("RMSNorm's gradients and codes have the same bits for 1, 2 and 4 threads", "[rmsnorm]") {
  const int64_t tokens = 300, width = 200;
  const Values x = normal_values(tokens * width, 1), dout = normal_values(tokens * width, 2),
               gain = normal_values(width, 3), rstd(static_cast<size_t>(tokens), 0.9f);
  std::vector<Bytes> results;
  for (const int threads : {1, 2, 4}) {
    OpFixture f(threads);
    RmsNormBackward op;
    op.out_gradient = f.floats(DType::BF16, {tokens, width}, dout);
    op.residual = f.floats(DType::BF16, {tokens, width}, x);
    op.gain = f.floats(DType::F32, {width}, gain);
    op.rstd = f.floats(DType::F32, {tokens}, rstd);
    op.gain_gradient = f.zeros(DType::F32, {width});
    op.residual_gradient.high = f.zeros(DType::BF16, {tokens, width});
    op.residual_gradient.row = f.zeros(DType::E5M2, {tokens, width});
    op.residual_gradient.column = f.zeros(DType::E5M2, {width, tokens});
    op.residual_gradient.cast.format = Format::E5M2;
    op.residual_gradient.site = f.site();
    f->rmsnorm_backward(op);
    Bytes all = read_bytes(op.gain_gradient);
    for (const Tensor& t :
         {op.residual_gradient.high, op.residual_gradient.row, op.residual_gradient.column}) {
      const Bytes bytes = read_bytes(t);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    results.push_back(all);
  }
  CHECK(results[0] == results[1]);
  CHECK(results[0] == results[2]);
}

TEST_CASE("RMSNorm's codes are those of a separate cast of its result", "[rmsnorm]") {
  OpFixture f;
  const int64_t tokens = 20, width = 48;
  RmsNormForward op;
  op.residual = f.floats(DType::BF16, {tokens, width}, normal_values(tokens * width, 1));
  op.gain = f.floats(DType::F32, {width}, normal_values(width, 3));
  op.rstd = f.zeros(DType::F32, {tokens});
  op.out.high = f.zeros(DType::BF16, {tokens, width});
  op.out.row = f.zeros(DType::E4M3, {tokens, width});
  op.out.column = f.zeros(DType::E4M3, {width, tokens});
  op.out.cast.format = Format::E4M3;
  op.out.site = f.site();
  f->rmsnorm_forward(op);
  CastTarget again = op.out;
  again.high = {};
  again.row = f.zeros(DType::E4M3, {tokens, width});
  again.column = f.zeros(DType::E4M3, {width, tokens});
  f->cast({op.out.high, {}, again});
  CHECK(read_bytes(again.row) == read_bytes(op.out.row));
  CHECK(read_bytes(again.column) == read_bytes(op.out.column));
}

// ---- a branch that is scaled or normalised before it is added

namespace {

struct Branch {
  bool normalised, norm_follows;
  float stream_factor = 1, branch_factor = 1;
};

}  // namespace

TEST_CASE("a branch is normalised or scaled by its gain on its way into the sum, rounded once", "[rmsnorm]") {
  const auto [tokens, width, storage] = GENERATE(Case{1, 1, DType::F32}, Case{3, 17, DType::F32},
                                                 Case{5, 1030, DType::F32}, Case{2, 515, DType::BF16});
  const Branch b =
      GENERATE(Branch{false, false}, Branch{false, true}, Branch{true, false}, Branch{true, true},
               Branch{true, false, 0.8f, 0.6f}, Branch{true, true, 0.8f, 0.6f});
  OpFixture f;
  const int64_t n = tokens * width;
  const Values residual = normal_values(n, 1, 2.0, storage), branch = normal_values(n, 2, 0.3, storage),
               gain = normal_values(width, 3), branch_gain = normal_values(width, 4);
  RmsNormForward op;
  op.residual = f.floats(storage, {tokens, width}, residual);
  op.branch = f.floats(storage, {tokens, width}, branch);
  op.residual_out = f.zeros(storage, {tokens, width});
  op.branch_gain = f.floats(DType::F32, {width}, branch_gain);
  if (b.normalised) op.branch_rstd = f.zeros(DType::F32, {tokens});
  op.out.high = op.residual_out;
  if (b.norm_follows) {
    op.gain = f.floats(DType::F32, {width}, gain);
    op.rstd = f.zeros(DType::F32, {tokens});
    op.out.high = f.zeros(storage, {tokens, width});
  }
  op.epsilon = epsilon;
  op.stream_factor = b.stream_factor;
  op.branch_factor = b.branch_factor;
  f->rmsnorm_forward(op);

  const std::vector<double> normal = normalized(widened(branch), branch_gain, tokens, width);
  const Values sum = read_floats(op.residual_out);
  const double error = (static_cast<double>(width) / 16 + 10) * 0x1p-24;  // as above
  for (size_t i = 0; i < sum.size(); ++i) {
    const double added = b.normalised ? normal[i] * static_cast<double>(b.branch_factor)
                                      : static_cast<double>(branch[i]) *
                                            static_cast<double>(branch_gain[i % static_cast<size_t>(width)]);
    const double stream = static_cast<double>(b.stream_factor) * static_cast<double>(residual[i]);
    const double expected = stream + added;
    CHECK(std::abs(static_cast<double>(sum[i]) - expected) <=
          error * std::abs(added) + 0x1p-24 * (std::abs(stream) + std::abs(expected)) +
              half_ulp(storage) * std::abs(expected));
  }
  CHECK(read_floats(op.residual) == residual);
  if (!b.norm_follows) return;
  const std::vector<double> out = normalized(widened(sum), gain, tokens, width);
  const Values got = read_floats(op.out.high);
  for (size_t i = 0; i < got.size(); ++i)
    CHECK(std::abs(static_cast<double>(got[i]) - out[i]) <= (error + half_ulp(storage)) * std::abs(out[i]));
}

// The gradient of a weighted sum is that of the norm with a gain as much smaller, and the stream's own
// weight.
TEST_CASE("a weighted branch has its weight in both gradients, and the stream's gradient the stream's",
          "[rmsnorm]") {
  const DType storage = GENERATE(DType::F32, DType::BF16);
  const int64_t tokens = 70, width = 33, n = tokens * width;
  const float stream_factor = 0.75f, branch_factor = 0.25f;  // exact, so that the bits are the same
  const Values x = normal_values(n, 1, 2.0, storage), gradient = normal_values(n, 2, 1.0, storage),
               gain = normal_values(width, 3);
  struct Backward {
    Values dx, dgain, left;
  };
  const auto backward = [&](float of_stream, float of_branch, float of_gain) {
    OpFixture f;
    Values smaller = gain;
    for (float& g : smaller) g *= of_gain;
    RmsNormBackward op;
    op.out_gradient = f.floats(storage, {tokens, width}, gradient);
    op.residual = f.floats(storage, {tokens, width}, x);
    op.gain = f.floats(DType::F32, {width}, smaller);
    op.rstd = f.floats(DType::F32, {tokens}, Values(static_cast<size_t>(tokens), 0.5f));
    op.gain_gradient = f.zeros(DType::F32, {width});
    op.residual_gradient.high = f.zeros(storage, {tokens, width});
    op.stream_factor = of_stream;
    op.branch_factor = of_branch;
    f->rmsnorm_backward(op);
    return Backward{read_floats(op.residual_gradient.high), read_floats(op.gain_gradient),
                    read_floats(op.out_gradient)};
  };
  const Backward weighted = backward(stream_factor, branch_factor, 1), plain = backward(1, 1, branch_factor);
  CHECK(weighted.dx == plain.dx);
  CHECK(weighted.dx != backward(1, 1, 1).dx);
  CHECK(plain.left == gradient);
  for (size_t d = 0; d < plain.dgain.size(); ++d) CHECK(weighted.dgain[d] == branch_factor * plain.dgain[d]);
  for (size_t i = 0; i < gradient.size(); ++i)
    CHECK(weighted.left[i] == rounded(storage, stream_factor * gradient[i]));
}

TEST_CASE("without 1/rms the backward is that of a scale", "[rmsnorm]") {
  const DType storage = GENERATE(DType::F32, DType::BF16);
  OpFixture f;
  const int64_t tokens = 70, width = 33, n = tokens * width;
  const Values x = normal_values(n, 1, 2.0, storage), gradient = normal_values(n, 2, 1.0, storage),
               gain = normal_values(width, 3);
  RmsNormBackward op;
  op.out_gradient = f.floats(storage, {tokens, width}, gradient);
  op.residual = f.floats(storage, {tokens, width}, x);
  op.gain = f.floats(DType::F32, {width}, gain);
  op.gain_gradient = f.zeros(DType::F32, {width});
  op.residual_gradient.high = f.zeros(storage, {tokens, width});
  f->rmsnorm_backward(op);
  const Values dx = read_floats(op.residual_gradient.high), dgain = read_floats(op.gain_gradient);
  for (size_t i = 0; i < dx.size(); ++i)
    CHECK(dx[i] == rounded(storage, gradient[i] * gain[i % static_cast<size_t>(width)]));
  for (size_t d = 0; d < static_cast<size_t>(width); ++d) {
    float total = 0;
    for (size_t first = 0; first < static_cast<size_t>(tokens); first += 64) {
      float sum = 0;
      for (size_t t = first; t < std::min<size_t>(first + 64, 70); ++t)
        sum += gradient[t * 33 + d] * x[t * 33 + d];
      total += sum;
    }
    CHECK(dgain[d] == total);
  }
}

TEST_CASE("a sum that is not normalised has one place, and a branch's norm a gain", "[rmsnorm]") {
  OpFixture f;
  RmsNormForward op;
  op.residual = f.zeros(DType::F32, {2, 4});
  op.branch = f.zeros(DType::F32, {2, 4});
  op.out.high = f.zeros(DType::F32, {2, 4});
  CHECK_THROWS_AS(f->rmsnorm_forward(op), Error);  // the sum and out are two places
  op.out.high = op.residual;
  CHECK_NOTHROW(f->rmsnorm_forward(op));
  op.branch_factor = 0.5f;
  CHECK_THROWS_AS(f->rmsnorm_forward(op), Error);  // the weight of a branch that is not normalised
  op.branch_factor = 1;
  op.branch_rstd = f.zeros(DType::F32, {2});
  CHECK_THROWS_AS(f->rmsnorm_forward(op), Error);  // 1/rms without a gain
}
