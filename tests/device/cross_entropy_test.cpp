#include <algorithm>
#include <limits>
#include <utility>

#include "catch.h"
#include "device/op_fixture.h"

using namespace octet;

namespace {

struct Reference {
  double loss, log_sum_exp;
  std::vector<double> softmax;
};
Reference reference(const float* x, int64_t n, int32_t target) {
  double m = static_cast<double>(x[0]), sum = 0;
  for (int64_t v = 0; v < n; ++v) m = std::max(m, static_cast<double>(x[v]));
  Reference r;
  for (int64_t v = 0; v < n; ++v) sum += std::exp(static_cast<double>(x[v]) - m);
  for (int64_t v = 0; v < n; ++v) r.softmax.push_back(std::exp(static_cast<double>(x[v]) - m) / sum);
  r.log_sum_exp = m + std::log(sum);
  r.loss = std::log(sum) + (m - static_cast<double>(x[target]));
  return r;
}

}  // namespace

TEST_CASE("cross-entropy and its gradient agree with double, from calm logits to +-1e4", "[cross_entropy]") {
  struct Case {
    int64_t tokens, vocabulary;
    DType storage;
    double spread;
    float z_loss;
  };
  const Case c = GENERATE(Case{1, 1, DType::F32, 1, 0}, Case{3, 17, DType::F32, 3, 1e-3f},
                          Case{5, 1037, DType::F32, 3, 0}, Case{4, 257, DType::BF16, 5, 1e-4f},
                          Case{4, 600, DType::F32, 1e4, 1e-4f}, Case{2, 50000, DType::BF16, 2, 0});
  OpFixture f;
  const Values logits = normal_values(c.tokens * c.vocabulary, 9, c.spread, c.storage);
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < c.tokens; ++t) targets.push_back(static_cast<int32_t>(t * 7 % c.vocabulary));
  CrossEntropy op;
  op.logits = f.floats(c.storage, {c.tokens, c.vocabulary}, logits);
  op.targets = f.integers(targets);
  op.loss = f.zeros(DType::F32, {c.tokens});
  op.gradient_scale = 0.25f;
  op.z_loss = c.z_loss;
  f->cross_entropy(op);
  const Values loss = read_floats(op.loss), gradient = read_floats(op.logits);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const Reference r =
        reference(logits.data() + t * c.vocabulary, c.vocabulary, targets[static_cast<size_t>(t)]);
    // The sum of exponentials: 2 ulp each, the rounding of x - m (2^-24 of at most 104, beyond which e^x is
    // zero), 36 roundings of a chunk's lanes; then one rounding of the loss.
    const double sum_error = 4 * 0x1p-24 + 104 * 0x1p-24 + 36 * 0x1p-24;
    CHECK(std::abs(static_cast<double>(loss[static_cast<size_t>(t)]) - r.loss) <=
          sum_error + 0x1p-24 * r.loss);
    const double z = 1.0 + 2.0 * static_cast<double>(c.z_loss) * r.log_sum_exp;
    for (int64_t v = 0; v < c.vocabulary; ++v) {
      const bool is_target = v == targets[static_cast<size_t>(t)];
      const double softmax = r.softmax[static_cast<size_t>(v)],
                   expected = 0.25 * (z * softmax - (is_target ? 1.0 : 0.0));
      const double bound =
          half_ulp(c.storage) * std::abs(expected) + 0.25 * std::abs(z) * softmax * 3 * sum_error + 0x1p-126;
      REQUIRE(std::abs(static_cast<double>(gradient[static_cast<size_t>(t * c.vocabulary + v)]) - expected) <=
              bound);
    }
  }
}

TEST_CASE("the z-loss gradient is the derivative of z_loss * lse^2", "[cross_entropy]") {
  const int64_t n = 23;
  const Values logits = normal_values(n, 3, 2.0);
  const double z_loss = 0.05, step = 1e-5;
  OpFixture f;
  CrossEntropy op;
  op.logits = f.floats(DType::F32, {1, n}, logits);
  op.targets = f.integers({4});
  op.loss = f.zeros(DType::F32, {1});
  op.gradient_scale = 1.0f;
  op.z_loss = static_cast<float>(z_loss);
  f->cross_entropy(op);
  for (int64_t v = 0; v < n; ++v) {
    const auto total = [&](double moved) {
      double sum = 0;
      for (int64_t u = 0; u < n; ++u)
        sum += std::exp(static_cast<double>(logits[static_cast<size_t>(u)]) + (u == v ? moved : 0));
      const double lse = std::log(sum), at_target = static_cast<double>(logits[4]) + (v == 4 ? moved : 0);
      return lse - at_target + z_loss * lse * lse;
    };
    const double expected = (total(step) - total(-step)) / (2 * step);
    CHECK(static_cast<double>(op.logits.as<float>()[v]) == Approx(expected).margin(1e-6));
  }
  // The loss itself is reported without the z term.
  CHECK(static_cast<double>(op.loss.as<float>()[0]) ==
        Approx(reference(logits.data(), n, 4).loss).margin(1e-6));
}

TEST_CASE("cross-entropy has the same bits for 1, 2 and 4 threads", "[cross_entropy]") {
  const int64_t tokens = 97, vocabulary = 1037;
  const Values logits = normal_values(tokens * vocabulary, 9, 3.0);
  const auto bits = [&](DType storage, int threads, const Values& x, const std::vector<int32_t>& targets) {
    OpFixture f(threads);
    CrossEntropy op;
    op.logits = f.floats(storage, {tokens, vocabulary}, x);
    op.targets = f.integers(targets);
    op.loss = f.zeros(DType::F32, {tokens});
    op.gradient_scale = 0.25f;
    op.z_loss = 1e-4f;
    f->cross_entropy(op);
    return std::pair{read_bytes(op.loss), read_bytes(op.logits)};
  };
  Values mirrored = logits;
  for (int64_t t = 0; t < tokens; ++t)
    std::reverse(mirrored.begin() + t * vocabulary, mirrored.begin() + (t + 1) * vocabulary);
  std::vector<int32_t> targets, mirrored_targets;
  for (int64_t t = 0; t < tokens; ++t) {
    targets.push_back(t % 10 == 9 ? -1 : static_cast<int32_t>(t * 7 % vocabulary));
    mirrored_targets.push_back(targets.back() < 0 ? -1
                                                  : static_cast<int32_t>(vocabulary) - 1 - targets.back());
  }
  for (const DType storage : {DType::F32, DType::BF16}) {
    const auto one = bits(storage, 1, logits, targets);
    CHECK(bits(storage, 2, logits, targets) == one);
    CHECK(bits(storage, 4, logits, targets) == one);
    // The control: the same numbers summed in another order give other bits, so an order that moved with the
    // threads would show.
    CHECK(bits(storage, 1, mirrored, mirrored_targets).first != one.first);
  }
}

TEST_CASE("a negative target is ignored: no loss, no gradient", "[cross_entropy]") {
  OpFixture f;
  const DType storage = GENERATE(DType::F32, DType::BF16);
  CrossEntropy op;
  op.logits = f.floats(storage, {2, 9}, normal_values(18, 1));
  op.targets = f.integers({-1, 3});
  op.loss = f.floats(DType::F32, {2}, {7.0f, 7.0f});
  op.gradient_scale = 1.0f;
  f->cross_entropy(op);
  const Values gradient = read_floats(op.logits);
  CHECK(op.loss.as<float>()[0] == 0.0f);
  CHECK(op.loss.as<float>()[1] > 0.0f);
  for (size_t v = 0; v < 9; ++v) CHECK(gradient[v] == 0.0f);
  CHECK(gradient[9 + 3] < 0.0f);
}

TEST_CASE("evaluation leaves the logits alone", "[cross_entropy]") {
  OpFixture f;
  const Values logits = normal_values(18, 1);
  CrossEntropy op;
  op.logits = f.floats(DType::F32, {2, 9}, logits);
  op.targets = f.integers({-1, 3});
  op.loss = f.zeros(DType::F32, {2});
  op.backward = false;
  f->cross_entropy(op);
  CHECK(read_floats(op.logits) == logits);
  CHECK(op.loss.as<float>()[1] > 0.0f);
}

TEST_CASE("a sure and right model has a small gradient at the target, as large as all the others",
          "[cross_entropy]") {
  OpFixture f;
  CrossEntropy op;
  op.logits = f.floats(DType::F32, {1, 2}, {8.0f, 0.0f});
  op.targets = f.integers({0});
  op.loss = f.zeros(DType::F32, {1});
  op.gradient_scale = 1.0f;
  f->cross_entropy(op);
  const double other = 1.0 / (1.0 + std::exp(8.0));
  CHECK(static_cast<double>(op.logits.as<float>()[1]) == Approx(other).epsilon(1e-6));
  // The FP32 sum of exponentials, 1 + e^-8, has one rounding of its own.
  CHECK(std::abs(static_cast<double>(op.logits.as<float>()[0]) + other) <= 0x1p-24 + 0x1p-23 * other);
}

TEST_CASE("non-finite logits give a non-finite loss", "[cross_entropy]") {
  OpFixture f;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    CrossEntropy op;
    op.logits = f.floats(DType::F32, {1, 40}, normal_values(40, 1));
    op.logits.as<float>()[30] = bad;
    op.targets = f.integers({3});
    op.loss = f.zeros(DType::F32, {1});
    f->cross_entropy(op);
    CHECK_FALSE(std::isfinite(op.loss.as<float>()[0]));
  }
}

TEST_CASE("a target beyond the vocabulary is refused", "[cross_entropy]") {
  OpFixture f;
  CrossEntropy op;
  op.logits = f.zeros(DType::F32, {1, 9});
  op.targets = f.integers({9});
  op.loss = f.zeros(DType::F32, {1});
  CHECK_THROWS(f->cross_entropy(op));
}
