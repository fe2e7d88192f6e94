// Muon's operations on the CPU device against exact mathematics, within the roundings that each states.
#include "numerics/muon.h"

#include <cmath>
#include <cstring>

#include "catch.h"
#include "error_of.h"
#include "numerics/sums.h"
#include "op_fixture.h"

using namespace octet;

namespace {

constexpr float momentum = 0.95f;
constexpr UpdateControl clipped{
    .gradient_norm = 3, .scale = 0.37f, .loss = 2, .apply = 1, .nonfinite_piece = 0};

MomentTensor moment_of(OpFixture& on, DType type, int block, const Values& values) {
  const auto n = static_cast<int64_t>(values.size());
  MomentTensor m{on.zeros(type, {n}), {}, block};
  if (type == DType::F32 || type == DType::BF16) {
    m.values = on.floats(type, {n}, values);
  } else {
    m.inverse = on.zeros(DType::F32, {block ? (n + block - 1) / block : 1});
  }
  return m;
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && (a.bytes() == 0 || std::memcmp(a.data, b.data, a.bytes()) == 0);
}

struct Outcome {
  Values direction, momentum, normal, sum, masters;
  bool operator==(const Outcome&) const = default;
};
Outcome all_operations(int threads, DType storage) {
  OpFixture on(threads);
  constexpr int64_t n = 50003;
  Outcome o;
  const MomentTensor first = moment_of(on, DType::BF16, 128, normal_values(n, 2));
  const Tensor direction = on.zeros(storage, {n}), partials = on.zeros(DType::F64, {norm_pieces(n)});
  on->muon_momentum({on.floats(DType::F32, {n}, normal_values(n, 1)), first, direction, momentum, &clipped});
  o.direction = read_floats(direction);
  o.momentum = read_floats(first.values);
  on->gradient_squares({direction, partials});
  on->normalize({direction, partials});
  o.normal = read_floats(direction);
  on->weighted_sum({direction, on.floats(storage, {n}, normal_values(n, 3)), direction, 2, -3});
  o.sum = read_floats(direction);
  const Tensor master = on.floats(DType::F32, {n}, normal_values(n, 4));
  on->muon_update({master, {}, direction, 0.02f, 0.1f, &clipped});
  o.masters = read_floats(master);
  return o;
}

}  // namespace

TEST_CASE("Muon's direction is Nesterov's, within the roundings of its operations", "[muon]") {
  const double rest = static_cast<double>(1.0f - momentum), beta = static_cast<double>(momentum);
  for (const int64_t n : {1, 7, 1024, 5003})
    for (const DType storage : {DType::F32, DType::BF16}) {
      OpFixture on;
      const Values gradient = normal_values(n, 1), before = normal_values(n, 2);
      const MomentTensor first = moment_of(on, DType::F32, 128, before);
      const Tensor direction = on.zeros(storage, {n});
      on->muon_momentum({on.floats(DType::F32, {n}, gradient), first, direction, momentum, &clipped});
      const Values got = read_floats(direction), m = read_floats(first.values);
      bool nesterov = false;
      for (size_t i = 0; i < gradient.size(); ++i) {
        const double g = static_cast<double>(clipped.scale) * static_cast<double>(gradient[i]),
                     exact = beta * static_cast<double>(before[i]) + rest * g,
                     wanted = rest * g + beta * exact;
        // g, its product, the other's and their sum round once each; the direction three times more.
        const double size = beta * std::fabs(static_cast<double>(before[i])) + 2 * rest * std::fabs(g);
        REQUIRE(std::fabs(static_cast<double>(m[i]) - exact) <= 0x1p-24 * 2 * size);
        REQUIRE(std::fabs(static_cast<double>(got[i]) - wanted) <=
                0x1p-24 * 5 * (size + rest * std::fabs(g)) + half_ulp(storage) * std::fabs(wanted) * 1.01);
        // Negative control: the momentum itself.
        nesterov = nesterov || std::fabs(static_cast<double>(got[i]) - exact) > 1e-3;
      }
      CHECK(nesterov);
    }
}

TEST_CASE("Muon's momentum is stored as AdamW's first moment is, in every format", "[muon]") {
  constexpr int64_t n = 3000;
  for (const DType type : {DType::F32, DType::BF16, DType::F16, DType::E4M3, DType::E5M2})
    for (const int block : {128, 96, 0}) {
      INFO(name_of(type) << " in blocks of " << block);
      OpFixture on;
      const Values nothing(n, 0.0f);
      const MomentTensor ours = moment_of(on, type, block, nothing),
                         theirs = moment_of(on, type, block, nothing),
                         second = moment_of(on, DType::F32, 128, nothing);
      const Tensor direction = on.zeros(DType::BF16, {n}), master = on.zeros(DType::F32, {n});
      for (uint64_t step = 1; step <= 3; ++step) {
        const Tensor gradient = on.floats(DType::F32, {n}, normal_values(n, step));
        on->muon_momentum({gradient, ours, direction, momentum, &clipped});
        AdamWUpdate adamw{};
        adamw.master = master;
        adamw.gradient = gradient;
        adamw.first = theirs;
        adamw.second = second;
        adamw.learning_rate = 1e-3f;
        adamw.beta1 = momentum;
        adamw.beta2 = 0.95f;
        adamw.epsilon = 1e-8f;
        adamw.step = static_cast<int64_t>(step);
        adamw.control = &clipped;
        on->adamw(adamw);
        CHECK(same_bytes(ours.values, theirs.values));
        CHECK(same_bytes(ours.inverse, theirs.inverse));
      }
    }
}

TEST_CASE("a matrix is normalised to a Frobenius norm of one, nothing stays nothing", "[muon]") {
  for (const DType storage : {DType::F32, DType::BF16}) {
    OpFixture on;
    constexpr int64_t n = 40 * 1000;
    const Values values = normal_values(n, 5, 1e-3, storage);
    const Tensor x = on.floats(storage, {n}, values), partials = on.zeros(DType::F64, {norm_pieces(n)});
    on->gradient_squares({x, partials});
    on->normalize({x, partials});
    double norm = 0;
    for (const float v : values) norm += static_cast<double>(v) * static_cast<double>(v);
    norm = std::sqrt(norm) + 1e-7;
    const Values got = read_floats(x);
    // The norm, its sum with 1e-7, the division and the product in FP32; then storage.
    for (size_t i = 0; i < values.size(); ++i) {
      const double wanted = static_cast<double>(values[i]) / norm;
      REQUIRE(std::fabs(static_cast<double>(got[i]) - wanted) <=
              (5 * 0x1p-24 + half_ulp(storage) * 1.01) * std::fabs(wanted));
    }
    const Tensor nothing = on.zeros(storage, {16});
    const Tensor its = on.zeros(DType::F64, {1});
    on->gradient_squares({nothing, its});
    on->normalize({nothing, its});
    CHECK(read_floats(nothing) == Values(16, 0.0f));
  }
}

TEST_CASE("Muon's step decays, then goes along the direction", "[muon]") {
  constexpr int64_t n = 5000;
  OpFixture on;
  const Values w = normal_values(n, 1), direction = normal_values(n, 2);
  const Tensor master = on.floats(DType::F32, {n}, w);
  on->muon_update({master, {}, on.floats(DType::F32, {n}, direction), 0.02f, 0.1f, &clipped});
  const Values got = read_floats(master);
  const double lr = static_cast<double>(0.02f), decay = static_cast<double>(0.1f);
  for (size_t i = 0; i < w.size(); ++i) {
    const double change = lr * decay * static_cast<double>(w[i]) + lr * static_cast<double>(direction[i]);
    const double size =
        lr * (std::fabs(static_cast<double>(w[i])) + std::fabs(static_cast<double>(direction[i])));
    // Rate, two products and their sum, then the difference.
    REQUIRE(std::fabs(static_cast<double>(got[i]) - (static_cast<double>(w[i]) - change)) <=
            0x1p-24 * (4 * size + 1.01 * std::fabs(static_cast<double>(got[i]))));
  }
}

TEST_CASE("Muon's operations have the same bits for 1, 2 and 4 threads", "[muon]") {
  for (const DType storage : {DType::F32, DType::BF16}) {
    const Outcome one = all_operations(1, storage);
    for (const int threads : {2, 4}) CHECK(all_operations(threads, storage) == one);
  }
  CHECK_FALSE(all_operations(1, DType::F32) == all_operations(1, DType::BF16));
}

TEST_CASE("Muon's operations change nothing when the step is not applied", "[muon]") {
  constexpr int64_t n = 1000;
  OpFixture on;
  UpdateControl refused = clipped;
  refused.apply = 0;
  const Values before = normal_values(n, 2), w = normal_values(n, 3);
  const MomentTensor first = moment_of(on, DType::F32, 128, before);
  const Tensor direction = on.zeros(DType::BF16, {n}), master = on.floats(DType::F32, {n}, w),
               amax = on.zeros(DType::F32, {1});
  on->muon_momentum({on.floats(DType::F32, {n}, normal_values(n, 1)), first, direction, momentum, &refused});
  on->muon_update({master, {}, on.floats(DType::BF16, {n}, before), 0.02f, 0.1f, &refused, amax});
  CHECK(read_floats(first.values) == before);
  CHECK(read_floats(direction) == Values(n, 0.0f));
  CHECK(read_floats(master) == w);
  float largest = 0;
  for (const float v : w) largest = std::max(largest, round_to_bfloat16(std::fabs(v)));
  CHECK(read_floats(amax)[0] == largest);
}

TEST_CASE("Muon's operations refuse what does not go together", "[muon]") {
  OpFixture on;
  const Tensor four = on.zeros(DType::F32, {4}), three = on.zeros(DType::F32, {3}),
               narrow = on.zeros(DType::BF16, {4});
  const MomentTensor first{four, {}, 128};
  const auto complaint = [&](const auto& call) { return std::string(error_of(call).what()); };
  CHECK(complaint([&] {
          on->muon_momentum({four, first, three, momentum, &clipped});
        }).find("muon_momentum") == 0);
  CHECK(complaint([&] {
          on->muon_momentum({three, first, three, momentum, &clipped});
        }).find("muon_momentum") == 0);
  CHECK(complaint([&] { on->normalize({four, on.zeros(DType::F64, {2})}); }).find("normalize") == 0);
  CHECK(complaint([&] { on->weighted_sum({four, narrow, four, 1, 1}); }).find("weighted_sum") == 0);
  CHECK(complaint([&] { on->muon_update({four, {}, three, 1, 1, &clipped}); }).find("muon_update") == 0);
  CHECK(complaint([&] {
          on->muon_update({four, {}, four, 1, 1, &clipped, {}, 0, 2});
        }).find("muon_update") == 0);
  CHECK_NOTHROW(on->weighted_sum({four, four, four, 1, 1}));
}
