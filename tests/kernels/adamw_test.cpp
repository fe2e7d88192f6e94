#include "kernels/adamw.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "array.h"
#include "catch.h"
#include "device/adamw_rates.h"
#include "environment.h"
#include "kernels/launch_error.h"
#include "numerics/bfloat16.h"

using namespace octet;

namespace {

struct Problem {
  DType gradient = DType::F32, first = DType::E4M3, second = DType::E5M2;
  int first_block = 128, second_block = 128;
  int64_t count = 1000;
  size_t misaligned = 0;
  Values values = Values::Wide;
};

Format format_of(DType type) {
  switch (type) {
    case DType::F32:
      return Format::FP32;
    case DType::BF16:
      return Format::BF16;
    case DType::E4M3:
      return Format::E4M3;
    default:
      return Format::E5M2;
  }
}

struct MomentArray {
  MomentArray(DType type, int block_size, int64_t count, size_t misaligned)
      : values(type, {count}, misaligned), block(block_size) {
    if (size_of(type) == 1) inverse.emplace(DType::F32, Shape{block ? (count + block - 1) / block : 1});
  }
  MomentArray(const MomentArray&) = default;
  MomentTensor tensor() const { return {values, inverse ? inverse->tensor() : Tensor(), block}; }
  kernels::MomentArguments arguments() const {
    return {.values = values.data(),
            .format = format_of(values.tensor().dtype),
            .inverse = inverse ? inverse->as<float>() : nullptr,
            .block = block};
  }
  int64_t differences_from(const MomentArray& other) const {
    return differences(values, other.values) + (inverse ? differences(*inverse, *other.inverse) : 0);
  }

  Array values;
  std::optional<Array> inverse;
  int block;
};

struct State {
  explicit State(const Problem& p)
      : master(DType::F32, {p.count}, p.misaligned),
        gradient(p.gradient, {p.count}, p.misaligned),
        first(p.first, p.first_block, p.count, p.misaligned),
        second(p.second, p.second_block, p.count, p.misaligned) {
    randomize(master, Values::Tame, 1);
    randomize(gradient, p.values, 2);
    randomize(first.values, p.values, 3);
    randomize(second.values, p.values, 4);
    for (int64_t i = 0; i < p.count; ++i) second.values.set(i, std::fabs(second.values.get(i)));
    for (MomentArray* moment : {&first, &second}) {
      for (int64_t i = 0; moment->inverse && i < moment->inverse->elements(); ++i)
        moment->inverse->set(i, std::ldexp(1.3f, static_cast<int>(i % 40) - 30));
    }
  }
  AdamWUpdate update(const UpdateControl* control, int64_t step) const {
    return {.master = master,
            .gradient = gradient,
            .first = first.tensor(),
            .second = second.tensor(),
            .learning_rate = 3e-4f,
            .beta1 = 0.9f,
            .beta2 = 0.95f,
            .epsilon = 1e-8f,
            .weight_decay = 0.1f,
            .step = step,
            .control = control,
            .amax = amax};
  }
  int64_t differences_from(const State& other) const {
    return differences(master, other.master) + differences(gradient, other.gradient) +
           first.differences_from(other.first) + second.differences_from(other.second);
  }

  Array master, gradient;
  MomentArray first, second;
  Array amax{DType::F32, {1}};
};

void run_kernel(const State& state, const UpdateControl& control, int64_t step) {
  const AdamWUpdate op = state.update(&control, step);
  const AdamWRates rates = adamw_rates(op);
  const kernels::Control ours{control.gradient_norm, control.scale, control.loss, control.apply,
                              control.nonfinite_piece};
  uint32_t amaxes[2] = {0, 0};
  const bool one_scale =
      (state.first.inverse && state.first.block == 0) || (state.second.inverse && state.second.block == 0);
  kernels::adamw({.master = state.master.as<float>(),
                  .gradient = state.gradient.data(),
                  .gradient_storage = format_of(state.gradient.tensor().dtype),
                  .first = state.first.arguments(),
                  .second = state.second.arguments(),
                  .count = state.master.elements(),
                  .beta1 = op.beta1,
                  .beta2 = op.beta2,
                  .epsilon = op.epsilon,
                  .decay = rates.decay,
                  .rate = rates.rate,
                  .control = &ours,
                  .amaxes = one_scale ? amaxes : nullptr,
                  .master_amax = static_cast<uint32_t*>(state.amax.data())});
}

constexpr UpdateControl clipped{
    .gradient_norm = 3, .scale = 0.37f, .loss = 2, .apply = 1, .nonfinite_piece = 0};

void check_same(const Problem& p) {
  const State ours(p), theirs(p), before(p);
  INFO("gradient " << name_of(p.gradient) << ", moments " << name_of(p.first) << " / " << p.first_block
                   << ", " << name_of(p.second) << " / " << p.second_block << ", " << p.count
                   << " weights, misaligned by " << p.misaligned);
  for (int64_t step = 1; step <= 2; ++step) {
    run_kernel(ours, clipped, step);
    specification().adamw(theirs.update(&clipped, step));
    CHECK(differences(ours.master, theirs.master) == 0);
    CHECK(ours.first.differences_from(theirs.first) == 0);
    CHECK(ours.second.differences_from(theirs.second) == 0);
    CHECK(differences(ours.amax, theirs.amax) == 0);
  }
  CHECK(differences(ours.gradient, before.gradient) == 0);
  CHECK(differences(ours.master, before.master) > p.count / 2);
}

}  // namespace

TEST_CASE("AdamW has the bits of the CPU's in every format of moments and gradients") {
  const DType formats[] = {DType::F32, DType::BF16, DType::E4M3, DType::E5M2};
  for (const DType gradient : {DType::F32, DType::BF16}) {
    for (const DType first : formats) {
      for (const DType second : formats) check_same({.gradient = gradient, .first = first, .second = second});
    }
  }
}

TEST_CASE("AdamW has the bits of the CPU's at any count and alignment, with broken values too") {
  for (const int64_t count : {1, 3, 127, 128, 129, 1024, 50003}) {  // the last one walks over the grid
    for (const size_t misaligned : {0u, 4u}) {
      check_same({.count = count, .misaligned = misaligned});
      check_same({.gradient = DType::BF16, .first = DType::BF16, .count = count, .misaligned = misaligned});
    }
    check_same({.count = count, .values = Values::Broken});
    check_same({.first = DType::F32, .second = DType::F32, .count = count, .values = Values::Broken});
  }
}

TEST_CASE("AdamW has the bits of the CPU's with any blocks of moments, and with one scale a tensor") {
  for (const int64_t count : {1, 100, 5003}) {
    for (const int block : {0, 1, 32, 100, 256, 1024}) {
      for (const Values values : {Values::Wide, Values::Broken})
        check_same({.first_block = block, .second_block = block, .count = count, .values = values});
      check_same({.second = DType::F32, .first_block = block, .second_block = block, .count = count});
    }
    check_same({.first_block = 96, .second_block = 64, .count = count});
    check_same({.first_block = 0, .second_block = 128, .count = count});
    check_same({.first_block = 100, .second_block = 0, .count = count});
    check_same({.first = DType::BF16, .second_block = 0, .count = count});
  }
}

TEST_CASE("AdamW changes nothing when the step is not applied") {
  for (const int block : {128, 100, 0}) {
    const Problem p{.first_block = block, .second_block = block};
    const State state(p), before(p);
    run_kernel(state, {.gradient_norm = NAN, .scale = 0, .loss = NAN, .apply = 0, .nonfinite_piece = 1}, 1);
    CHECK(state.differences_from(before) == 0);
    float largest = 0;
    for (int64_t i = 0; i < p.count; ++i)
      largest = std::max(largest, round_to_bfloat16(std::fabs(state.master.get(i))));
    CHECK(largest > 0);
    CHECK(state.amax.get(0) == largest);
    run_kernel(state, clipped, 1);
    CHECK(state.differences_from(before) > 0);
  }
}

TEST_CASE("AdamW gives the same bits in every schedule; a neighbouring scale or another block is noticed") {
  for (const int block : {128, 100, 0}) {
    const Problem p{.first_block = block, .second_block = block, .count = 3000};
    const State theirs(p);
    specification().adamw(theirs.update(&clipped, 1));
    for (const char* schedule : schedules) {
      const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
      const State ours(p);
      run_kernel(ours, clipped, 1);
      CHECK(ours.differences_from(theirs) == 0);
    }
    UpdateControl other = clipped;
    other.scale = std::nextafter(clipped.scale, 1.0f);
    const State ours(p);
    run_kernel(ours, other, 1);
    CHECK(ours.differences_from(theirs) > 0);
  }
}

TEST_CASE("AdamW refuses blocks that have no common span") {
  const State state({.first_block = 1000, .second_block = 128});
  CHECK_THROWS_AS(run_kernel(state, clipped, 1), gpu::LaunchError);
}
