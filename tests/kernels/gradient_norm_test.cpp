#include "kernels/gradient_norm.h"

#include <cmath>
#include <vector>

#include "array.h"
#include "catch.h"
#include "environment.h"
#include "numerics/sums.h"

using namespace octet;

namespace {

struct Case {
  std::vector<Array> gradients;
  double loss_sum = 3.25, loss_divisor = 3;
  float clip_norm = 0;
};

bool same_bits(float a, float b) { return std::memcmp(&a, &b, 4) == 0 || (std::isnan(a) && std::isnan(b)); }

std::vector<double> partials(const std::vector<Array>& gradients) {
  std::vector<double> partial;
  for (const Array& gradient : gradients) {
    const int64_t pieces = kernels::norm_pieces(gradient.elements());
    std::vector<double> own(static_cast<size_t>(pieces), -1.0);
    kernels::squares({.values = gradient.data(),
                      .storage = gradient.tensor().dtype == DType::F32 ? Format::FP32 : Format::BF16,
                      .count = gradient.elements(),
                      .partial = own.data()});
    partial.insert(partial.end(), own.begin(), own.end());
  }
  return partial;
}

kernels::Control by_kernels(const Case& c) {
  const std::vector<double> partial = partials(c.gradients);
  kernels::Control control{-1, -1, -1, 7, 7};
  kernels::finish_norm({.partial = partial.data(),
                        .count = static_cast<int64_t>(partial.size()),
                        .loss_sum = &c.loss_sum,
                        .loss_divisor = c.loss_divisor,
                        .clip_norm = c.clip_norm,
                        .control = &control});
  return control;
}
UpdateControl by_specification(const Case& c) {
  UpdateControl control{};
  int64_t pieces = 0;
  for (const Array& gradient : c.gradients) pieces += norm_pieces(gradient.elements());
  const Array partials(DType::F64, {pieces});
  int64_t next = 0;
  for (const Array& gradient : c.gradients) {
    const int64_t own = norm_pieces(gradient.elements());
    specification().gradient_squares({gradient, partials.tensor().slice(next, own)});
    next += own;
  }
  Array loss(DType::F64, {1});
  *loss.as<double>() = c.loss_sum;
  specification().gradient_norm({.partials = partials,
                                 .loss_sum = loss,
                                 .loss_divisor = c.loss_divisor,
                                 .clip_norm = c.clip_norm,
                                 .control = &control});
  return control;
}
void check_same(const Case& c) {
  const kernels::Control ours = by_kernels(c);
  const UpdateControl theirs = by_specification(c);
  CHECK(same_bits(ours.gradient_norm, theirs.gradient_norm));
  CHECK(same_bits(ours.scale, theirs.scale));
  CHECK(same_bits(ours.loss, theirs.loss));
  CHECK(ours.apply == theirs.apply);
  CHECK(ours.nonfinite_piece == theirs.nonfinite_piece);
}

Array random_gradient(DType type, int64_t count, Values values = Values::Wide, size_t misaligned = 0) {
  Array gradient(type, {count}, misaligned);
  randomize(gradient, values, static_cast<uint64_t>(count));
  return gradient;
}

}  // namespace

TEST_CASE("the squares of a piece have the bits of the order of sums") {
  for (const DType type : {DType::F32, DType::BF16}) {
    for (const int64_t count : {1, 7, 8, 256, 1023, 16384, 16385, 3 * 16384 + 777}) {
      for (const size_t misaligned : {0u, 4u}) {
        const Array x = random_gradient(type, count, Values::Wide, misaligned);
        const std::vector<double> partial = partials({x});
        int64_t wrong = 0, unlike_left_to_right = 0;
        for (size_t p = 0; p < partial.size(); ++p) {
          Lanes<double> lanes;
          double straight = 0;
          const int64_t begin = static_cast<int64_t>(p) * norm_piece, n = std::min(norm_piece, count - begin);
          for (int64_t i = 0; i < n; ++i) {
            const double value = static_cast<double>(x.get(begin + i));
            lanes.sums[i % sum_lanes] += value * value;
            straight += value * value;
          }
          wrong += partial[p] != sum_of(lanes);
          unlike_left_to_right += partial[p] != straight;
        }
        INFO(name_of(type) << ", " << count << " values, misaligned by " << misaligned);
        CHECK(wrong == 0);
        if (count >= 16384 && type == DType::F32)
          CHECK(unlike_left_to_right > 0);  // orders can be told apart
      }
    }
  }
}

TEST_CASE("the gradient norm, clipping and the decision have the bits of the CPU's") {
  const auto gradients = [](Values values) {
    return std::vector<Array>{
        random_gradient(DType::F32, 1, values), random_gradient(DType::BF16, 40001, values),
        random_gradient(DType::F32, 3 * 16384 + 5, values), random_gradient(DType::F32, 16384, values)};
  };
  Case c{.gradients = gradients(Values::Wide)};
  check_same(c);
  const float norm = by_kernels(c).gradient_norm;
  CHECK(by_kernels(c).scale == 1.0f);
  c.clip_norm = norm;
  check_same(c);
  CHECK(by_kernels(c).scale == 1.0f);  // at the limit is not above it
  c.clip_norm = norm / 3;
  check_same(c);
  CHECK(by_kernels(c).scale == c.clip_norm / norm);
  c.loss_sum = INFINITY;
  check_same(c);
  CHECK(by_kernels(c).apply == 0);
  c = {.gradients = gradients(Values::Broken), .clip_norm = 1};
  check_same(c);
  CHECK(by_kernels(c).apply == 0);
  CHECK(by_kernels(c).scale == 0.0f);
  c = {.gradients = {random_gradient(DType::F32, 300, Values::Tame)}, .loss_sum = -0.0};
  c.gradients[0].set(17, 3e38f);  // finite in FP64, and as a norm
  check_same(c);
  CHECK(by_kernels(c).apply == 1);
  c.gradients[0].set(18, 3e38f);  // the norm overflows FP32
  check_same(c);
  CHECK(by_kernels(c).apply == 0);
}

TEST_CASE("the first piece that is not finite is found, in every schedule") {
  const double loss = 1;
  for (const int64_t bad : {0, 1, 255, 256, 700, 998}) {
    std::vector<double> partial(999, 1.0);
    partial[static_cast<size_t>(bad)] = NAN;
    if (bad + 300 < 999) partial[static_cast<size_t>(bad + 300)] = INFINITY;
    for (const char* schedule : schedules) {
      const InterpreterSetting order("SCHEDULE", schedule);
      kernels::Control control{};
      kernels::finish_norm({.partial = partial.data(),
                            .count = 999,
                            .loss_sum = &loss,
                            .loss_divisor = 1,
                            .clip_norm = 0,
                            .control = &control});
      CHECK(control.nonfinite_piece == bad + 1);
      CHECK(control.apply == 0);
    }
  }
}

TEST_CASE("finish_norm sums thousands of pieces in the lanes of numerics/sums.h") {
  for (const int64_t count : {0, 1, 255, 256, 257, 4096, 4097, 9999}) {
    // Not sums of squares: large numbers that cancel, so that the order of a sum shows in an FP32 norm.
    std::vector<double> partial(static_cast<size_t>(count));
    Lanes<double> lanes;
    double straight = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t twin = std::min(i, count - 1 - i);
      const double large = 2 * twin == count - 1 ? 0 : 1e17 * random_normal(4, static_cast<uint64_t>(twin));
      double& x = partial[static_cast<size_t>(i)];
      x = (i == twin ? large : -large) + 1e3;
      lanes.sums[i % sum_lanes] += x;
      straight += x;
    }
    const double loss = 1;
    kernels::Control control{};
    kernels::finish_norm({.partial = partial.data(),
                          .count = count,
                          .loss_sum = &loss,
                          .loss_divisor = 1,
                          .clip_norm = 0,
                          .control = &control});
    INFO(count << " pieces");
    CHECK(control.gradient_norm == static_cast<float>(std::sqrt(sum_of(lanes))));
    if (count >= 4096) CHECK(control.gradient_norm != static_cast<float>(std::sqrt(straight)));
  }
}

TEST_CASE("accumulate_sum adds the CPU's bits, in every schedule") {
  for (const int64_t count : {1, 255, 256, 257, 5000}) {
    for (const Values values : {Values::Tame, Values::Wide, Values::Broken}) {
      Array x(DType::F32, {count}), expected(DType::F64, {1});
      randomize(x, values, 9);
      *expected.as<double>() = 0.1;
      specification().accumulate_sum(expected, x);
      for (const char* schedule : schedules) {
        const InterpreterSetting order("SCHEDULE", schedule);
        Array out(DType::F64, {1});
        *out.as<double>() = 0.1;
        kernels::accumulate_sum({.out = out.as<double>(), .x = x.as<float>(), .count = count});
        CHECK(differences(out, expected) == 0);
      }
    }
  }
}
