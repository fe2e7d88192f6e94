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
#include "stored_states.h"

using namespace octet;

namespace {

struct Problem {
  DType gradient = DType::F32, first = DType::E4M3, second = DType::E5M2;
  int first_block = 128, second_block = 128;
  int64_t count = 1000;
  size_t misaligned = 0;
  Values values = Values::Wide;
  MasterFormat master = MasterFormat::FP32;
  bool expanded = false;
  std::optional<float> rms = {};
};

struct State {
  explicit State(const Problem& p)
      : master(p.master, p.count, p.misaligned),
        gradient(p.gradient, {p.count}, p.misaligned),
        first(p.first, p.first_block, p.count, p.misaligned, p.expanded),
        second(p.second, p.second_block, p.count, p.misaligned, p.expanded) {
    if (p.rms) {
      rms.emplace(DType::F32, Shape{1});
      rms->set(0, *p.rms);
    }
    randomize(gradient, p.values, 2);
    randomize(first.values, p.values, 3);
    randomize(second.values, p.values, 4);
    for (int64_t i = 0; i < p.count; ++i) second.values.set(i, std::fabs(second.values.get(i)));
    for (MomentArray* moment : {&first, &second}) {
      for (int64_t i = 0; moment->inverse && i < moment->inverse->elements(); ++i)
        moment->inverse->set(i, std::ldexp(1.3f, static_cast<int>(i % 40) - 30));
      for (int64_t i = 0; moment->exponents && i < moment->exponents->elements(); ++i)
        moment->exponents->as<uint8_t>()[i] = static_cast<uint8_t>(1 + i * 37 % 255);
    }
  }
  AdamWUpdate update(const UpdateControl* control, int64_t step) const {
    return {.master = master.values,
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
            .amax = amax,
            .master_code = master.code(),
            .rounding_key = 77 + static_cast<uint64_t>(step),
            .first_element = 20,
            .update_rms = rms ? rms->tensor() : Tensor()};
  }
  int64_t differences_from(const State& other) const {
    return master.differences_from(other.master) + differences(gradient, other.gradient) +
           first.differences_from(other.first) + second.differences_from(other.second);
  }

  MasterArray master;
  Array gradient;
  MomentArray first, second;
  std::optional<Array> rms;
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
  kernels::adamw({.master = state.master.arguments(),
                  .gradient = state.gradient.data(),
                  .gradient_storage = format_of(state.gradient.tensor().dtype),
                  .first = state.first.arguments(),
                  .second = state.second.arguments(),
                  .count = state.master.values.elements(),
                  .beta1 = op.beta1,
                  .beta2 = op.beta2,
                  .epsilon = op.epsilon,
                  .decay = rates.decay,
                  .rate = rates.rate,
                  .control = &ours,
                  .amaxes = one_scale ? amaxes : nullptr,
                  .master_amax = static_cast<uint32_t*>(state.amax.data()),
                  .rounding_key = op.rounding_key,
                  .first_element = op.first_element,
                  .update_rms = state.rms ? state.rms->as<float>() : nullptr});
}

constexpr UpdateControl clipped{
    .gradient_norm = 3, .scale = 0.37f, .loss = 2, .apply = 1, .nonfinite_piece = 0};

void check_same(const Problem& p) {
  const State ours(p), theirs(p), before(p);
  INFO("gradient " << name_of(p.gradient) << ", moments " << name_of(p.first) << " / " << p.first_block
                   << ", " << name_of(p.second) << " / " << p.second_block << ", " << p.count
                   << " weights, misaligned by " << p.misaligned << ", master " << static_cast<int>(p.master)
                   << ", expanded " << p.expanded);
  for (int64_t step = 1; step <= 2; ++step) {
    run_kernel(ours, clipped, step);
    specification().adamw(theirs.update(&clipped, step));
    CHECK(ours.master.differences_from(theirs.master) == 0);
    CHECK(ours.first.differences_from(theirs.first) == 0);
    CHECK(ours.second.differences_from(theirs.second) == 0);
    CHECK(differences(ours.amax, theirs.amax) == 0);
  }
  CHECK(differences(ours.gradient, before.gradient) == 0);
  // (Rounded to nearest in 16 bits, few weights move by this learning rate.)
  const int64_t moved = differences(ours.master.numbers(), before.master.numbers());
  if (p.master == MasterFormat::FP32 || p.master == MasterFormat::BF16Remainder) CHECK(moved > p.count / 2);
  if (p.count >= 1000 && p.master != MasterFormat::BF16Nearest) CHECK(moved > 0);
}

}  // namespace

TEST_CASE("AdamW has the bits of the CPU's in every format of moments and gradients") {
  const DType formats[] = {DType::F32, DType::BF16, DType::F16, DType::E4M3, DType::E5M2};
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
      largest = std::max(largest, round_to_bfloat16(std::fabs(state.master.values.get(i))));
    CHECK(largest > 0);
    CHECK(state.amax.get(0) == largest);
    run_kernel(state, clipped, 1);
    CHECK(state.differences_from(before) > 0);
  }
}

TEST_CASE("AdamW gives the same bits in every schedule, a neighbouring scale or another block is noticed") {
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

namespace {

constexpr MasterFormat master_formats[] = {MasterFormat::FP32,        MasterFormat::BF16Remainder,
                                           MasterFormat::BF16Kahan,   MasterFormat::BF16Stochastic,
                                           MasterFormat::BF16Nearest, MasterFormat::FP16Scaled};

}  // namespace

TEST_CASE("AdamW has the bits of the CPU's with masters in every format") {
  for (const MasterFormat master : master_formats) {
    for (const int64_t count : {1, 3, 127, 129, 1024, 5003})
      for (const size_t misaligned : {0u, 4u})
        check_same({.count = count, .misaligned = misaligned, .master = master});
    check_same({.count = 50003, .master = master});
    check_same({.count = 1000, .values = Values::Broken, .master = master});
    for (const int block : {0, 32, 256})
      check_same({.first_block = block, .second_block = block, .count = 2001, .master = master});
    if (master != MasterFormat::FP16Scaled)
      check_same({.first_block = 100, .second_block = 100, .count = 2001, .master = master});
  }
  const State state({.first_block = 100, .second_block = 100, .master = MasterFormat::FP16Scaled});
  CHECK_THROWS_AS(run_kernel(state, clipped, 1), gpu::LaunchError);
}

TEST_CASE("AdamW has the bits of the CPU's with moments whose range is expanded") {
  for (const auto& [first, second] :
       {std::pair{DType::E4M3, DType::E4M3}, {DType::E4M3, DType::E5M2}, {DType::E5M2, DType::E4M3}})
    for (const int block : {128, 32, 100, 1024})
      for (const Values values : {Values::Tame, Values::Wide, Values::Broken})
        check_same({.first = first,
                    .second = second,
                    .first_block = block,
                    .second_block = block,
                    .count = 2001,
                    .values = values,
                    .expanded = true});
  for (const int64_t count : {1, 3, 129})
    check_same(
        {.first = DType::E4M3, .second = DType::E4M3, .count = count, .misaligned = 4, .expanded = true});
}

TEST_CASE("AdamW divides its rates by the root mean square of the update, as the CPU does") {
  for (const float rms : {0.5f, 1.0f, 1.7f, 40.0f})
    for (const int block : {128, 100}) check_same({.first_block = block, .second_block = block, .rms = rms});
  const State ours({.rms = 1.7f}), theirs({.rms = 1.8f});
  run_kernel(ours, clipped, 1);
  specification().adamw(theirs.update(&clipped, 1));
  CHECK(ours.master.differences_from(theirs.master) > 0);
}

TEST_CASE("AdamW of stochastically rounded masters is the same in every schedule, and depends on its key") {
  for (const int block : {128, 256}) {
    const Problem p{.first_block = block,
                    .second_block = block,
                    .count = 3000,
                    .master = block == 128 ? MasterFormat::BF16Stochastic : MasterFormat::FP16Scaled};
    const State theirs(p), other(p);
    specification().adamw(theirs.update(&clipped, 1));
    for (const char* schedule : schedules) {
      const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
      const State ours(p);
      run_kernel(ours, clipped, 1);
      CHECK(ours.differences_from(theirs) == 0);
    }
    AdamWUpdate op = other.update(&clipped, 1);
    op.rounding_key += 1;
    specification().adamw(op);
    CHECK((other.master.differences_from(theirs.master) > 0) == (block == 128));
  }
}

TEST_CASE("masters are read and written with the bits of the CPU's, at any count and alignment") {
  for (const MasterFormat master : master_formats)
    for (const int64_t count : {1, 5, 128, 1001, 50003})
      for (const size_t misaligned : {0u, 4u}) {
        INFO("master " << static_cast<int>(master) << ", " << count << " misaligned by " << misaligned);
        const Problem p{.count = count, .misaligned = misaligned, .master = master};
        const MasterArray theirs(p.master, p.count, p.misaligned);
        MasterArray ours(p.master, p.count, p.misaligned);
        Array numbers(DType::F32, {count}, misaligned);
        randomize(numbers, Values::Wide, 5);
        specification().write_masters({numbers, theirs.values, theirs.code()});
        kernels::write_masters({.from = numbers.as<float>(), .master = ours.arguments(), .count = count});
        CHECK(ours.differences_from(theirs) == 0);
        for (const DType type : {DType::F32, DType::BF16}) {
          const Array found(type, {count}, misaligned), expected(type, {count}, misaligned);
          kernels::read_masters(
              {.master = ours.arguments(), .to = found.data(), .storage = format_of(type), .count = count});
          specification().read_masters({theirs.values, theirs.code(), expected});
          CHECK(differences(found, expected) == 0);
        }
      }
}
