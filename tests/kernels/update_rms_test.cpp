#include "kernels/update_rms.h"

#include <cmath>
#include <optional>

#include "array.h"
#include "catch.h"
#include "device/adamw_rates.h"
#include "environment.h"
#include "numerics/sums.h"

using namespace octet;

namespace {

struct Problem {
  DType gradient = DType::F32, second = DType::E5M2;
  int block = 128;
  bool expanded = false;
  int64_t count = 40001;
  size_t misaligned = 0;
  uint32_t apply = 1;
  Values values = Values::Wide;
};

Format format_of(DType type) {
  return type == DType::F32    ? Format::FP32
         : type == DType::BF16 ? Format::BF16
         : type == DType::F16  ? Format::FP16
         : type == DType::E4M3 ? Format::E4M3
                               : Format::E5M2;
}

void check_same(const Problem& p, float other_beta2 = 0.95f) {
  INFO("gradient " << name_of(p.gradient) << ", second " << name_of(p.second) << " / " << p.block << ", "
                   << p.count << ", expanded " << p.expanded);
  Array gradient(p.gradient, {p.count}, p.misaligned), values(p.second, {p.count}, p.misaligned);
  const bool coded = size_of(p.second) == 1 || p.second == DType::F16;
  const Shape scales{p.block ? (p.count + p.block - 1) / p.block : 1};
  Array inverse(DType::F32, scales), exponents(DType::U8, scales);
  randomize(gradient, p.values, 1);
  randomize(values, p.values, 2);
  for (int64_t i = 0; i < p.count; ++i) values.set(i, std::fabs(values.get(i)));
  for (int64_t i = 0; i < inverse.elements(); ++i) {
    inverse.set(i, std::ldexp(1.3f, static_cast<int>(i % 20) - 20));
    exponents.as<uint8_t>()[i] = static_cast<uint8_t>(1 + i * 37 % 255);
  }
  const UpdateControl control{3, 0.37f, 2, p.apply, 0};
  const Array expected(DType::F64, {norm_pieces(p.count)}), found(DType::F64, {norm_pieces(p.count)});
  const UpdateSquares op{.gradient = gradient,
                         .second = {values, coded ? inverse.tensor() : Tensor(), p.block,
                                    p.expanded ? exponents.tensor() : Tensor()},
                         .beta2 = 0.95f,
                         .epsilon = 1e-8f,
                         .step = 3,
                         .control = &control,
                         .partials = expected};
  specification().update_squares(op);
  const UpdateSquareRates rates = update_square_rates(op);
  const kernels::Control ours{3, 0.37f, 2, p.apply, 0};
  kernels::update_squares({.gradient = gradient.data(),
                           .gradient_storage = format_of(p.gradient),
                           .second = {.values = values.data(),
                                      .format = format_of(p.second),
                                      .inverse = coded ? inverse.as<float>() : nullptr,
                                      .block = p.block,
                                      .exponents = p.expanded ? exponents.as<uint8_t>() : nullptr},
                           .count = p.count,
                           .beta2 = other_beta2,
                           .correction = rates.correction,
                           .least = rates.least,
                           .control = &ours,
                           .partial = found.as<double>()});
  const bool same = differences(found, expected) == 0;
  CHECK(same == (other_beta2 == 0.95f));
  if (p.apply == 0) CHECK(found.as<double>()[0] == 0.0);
  const Array rms(DType::F32, {1}), expected_rms(DType::F32, {1});
  specification().update_rms({found, p.count, expected_rms});
  kernels::update_rms({.partial = found.as<double>(),
                       .count = found.elements(),
                       .elements = p.count,
                       .rms = rms.as<float>()});
  CHECK(differences(rms, expected_rms) == 0);
}

}  // namespace

TEST_CASE("the mean square of an update has the bits of the CPU's in every format") {
  for (const DType gradient : {DType::F32, DType::BF16})
    for (const DType second : {DType::F32, DType::BF16, DType::F16, DType::E4M3, DType::E5M2})
      check_same({.gradient = gradient, .second = second});
  for (const int block : {0, 100, 1024}) check_same({.block = block});
  for (const DType second : {DType::E4M3, DType::E5M2}) check_same({.second = second, .expanded = true});
}

TEST_CASE("the mean square of an update has the bits of the CPU's at any count, alignment and schedule") {
  for (const int64_t count : {1, 7, 8, 255, 256, 257, 16384, 16385, 70001})
    for (const size_t misaligned : {0u, 4u}) check_same({.count = count, .misaligned = misaligned});
  check_same({.values = Values::Broken});
  check_same({.apply = 0});
  check_same({}, 0.9f);  // the control: another beta is noticed
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    check_same({});
  }
}
