#include "kernels/muon.h"

#include <cmath>

#include "array.h"
#include "catch.h"
#include "environment.h"
#include "kernels/launch_error.h"
#include "numerics/muon.h"
#include "numerics/sums.h"
#include "stored_states.h"

using namespace octet;

namespace {

constexpr UpdateControl clipped{
    .gradient_norm = 3, .scale = 0.37f, .loss = 2, .apply = 1, .nonfinite_piece = 0};
constexpr UpdateControl refused{
    .gradient_norm = NAN, .scale = 0, .loss = NAN, .apply = 0, .nonfinite_piece = 1};
constexpr DType storages[] = {DType::F32, DType::BF16};

kernels::Control control_of(const UpdateControl& c) {
  return {c.gradient_norm, c.scale, c.loss, c.apply, c.nonfinite_piece};
}

// ---- momentum

struct Problem {
  DType gradient = DType::F32, first = DType::E4M3, direction = DType::BF16;
  int block = 128;
  int64_t count = 1000;
  size_t misaligned = 0;
  Values values = Values::Wide;
  bool expanded = false;
};

struct Momentum {
  explicit Momentum(const Problem& p)
      : gradient(p.gradient, {p.count}, p.misaligned),
        direction(p.direction, {p.count}, p.misaligned),
        first(p.first, p.block, p.count, p.misaligned, p.expanded) {
    randomize(gradient, p.values, 2);
    randomize(first.values, p.values, 3);
    for (int64_t i = 0; first.inverse && i < first.inverse->elements(); ++i)
      first.inverse->set(i, std::ldexp(1.3f, static_cast<int>(i % 40) - 30));
    for (int64_t i = 0; first.exponents && i < first.exponents->elements(); ++i)
      first.exponents->as<uint8_t>()[i] = static_cast<uint8_t>(1 + i * 37 % 255);
  }
  int64_t differences_from(const Momentum& other) const {
    return differences(gradient, other.gradient) + differences(direction, other.direction) +
           first.differences_from(other.first);
  }

  Array gradient, direction;
  MomentArray first;
};

constexpr float momentum = 0.95f;
void with_kernel(const Momentum& m, const UpdateControl& control) {
  const kernels::Control ours = control_of(control);
  uint32_t amax = 0;
  kernels::muon_momentum({.gradient = m.gradient.data(),
                          .gradient_storage = format_of(m.gradient.tensor().dtype),
                          .first = m.first.arguments(),
                          .direction = m.direction.data(),
                          .direction_storage = format_of(m.direction.tensor().dtype),
                          .count = m.gradient.elements(),
                          .momentum = momentum,
                          .control = &ours,
                          .amax = m.first.inverse && m.first.block == 0 ? &amax : nullptr});
}
void as_specified(const Momentum& m, const UpdateControl& control) {
  specification().muon_momentum({.gradient = m.gradient,
                                 .first = m.first.tensor(),
                                 .direction = m.direction,
                                 .momentum = momentum,
                                 .control = &control});
}

void check_same(const Problem& p) {
  INFO("gradient " << name_of(p.gradient) << ", momentum " << name_of(p.first) << " / " << p.block
                   << ", direction " << name_of(p.direction) << ", " << p.count << ", misaligned by "
                   << p.misaligned << ", expanded " << p.expanded);
  const Momentum ours(p), theirs(p), before(p);
  for (int step = 0; step < 2; ++step) {
    with_kernel(ours, clipped);
    as_specified(theirs, clipped);
    CHECK(ours.differences_from(theirs) == 0);
  }
  CHECK(differences(ours.gradient, before.gradient) == 0);
  if (p.count >= 100) CHECK(differences(ours.direction, before.direction) > p.count / 2);
}

// ---- masters

struct Masters {
  Masters(MasterFormat format, DType type, int64_t count, size_t misaligned = 0)
      : master(format, count, misaligned), direction(type, {count}, misaligned) {
    randomize(direction, Values::Tame, 5);
  }
  int64_t differences_from(const Masters& other) const {
    return master.differences_from(other.master) + differences(amax, other.amax);
  }

  MasterArray master;
  Array direction;
  Array amax{DType::F32, {1}};
};
constexpr float rate = 0.02f, decay = 0.1f;

void with_kernel(const Masters& m, const UpdateControl& control, uint64_t key = 77) {
  const kernels::Control ours = control_of(control);
  kernels::muon_update({.master = m.master.arguments(),
                        .direction = m.direction.data(),
                        .direction_storage = format_of(m.direction.tensor().dtype),
                        .count = m.direction.elements(),
                        .decay = muon_decay(rate, decay),
                        .rate = rate,
                        .control = &ours,
                        .master_amax = static_cast<uint32_t*>(m.amax.data()),
                        .rounding_key = key,
                        .first_element = 20});
}
void as_specified(const Masters& m, const UpdateControl& control, uint64_t key = 77) {
  specification().muon_update({.master = m.master.values,
                               .master_code = m.master.code(),
                               .direction = m.direction,
                               .learning_rate = rate,
                               .weight_decay = decay,
                               .control = &control,
                               .amax = m.amax,
                               .rounding_key = key,
                               .first_element = 20});
}

constexpr MasterFormat master_formats[] = {MasterFormat::FP32,        MasterFormat::BF16Remainder,
                                           MasterFormat::BF16Kahan,   MasterFormat::BF16Stochastic,
                                           MasterFormat::BF16Nearest, MasterFormat::FP16Scaled};

// ---- normalisation and sums

struct Sums {
  Sums(DType type, int64_t count, size_t misaligned, Values values)
      : x(type, {count}, misaligned),
        y(type, {count}, misaligned),
        out(type, {count}, misaligned),
        partials(DType::F64, {octet::norm_pieces(count)}) {
    randomize(x, values, 6);
    randomize(y, values, 7);
    specification().gradient_squares({x, partials});
  }
  Array x, y, out, partials;
};

}  // namespace

TEST_CASE("Muon's momentum has the bits of the CPU's in every format") {
  for (const DType gradient : storages)
    for (const DType direction : storages)
      for (const DType first : {DType::F32, DType::BF16, DType::F16, DType::E4M3, DType::E5M2})
        for (const int block : {128, 100, 0})
          check_same({.gradient = gradient, .first = first, .direction = direction, .block = block});
}

TEST_CASE("Muon's momentum has the bits of the CPU's at any count and alignment, with broken values too") {
  for (const int64_t count : {1, 3, 127, 129, 1024, 1025, 50003})  // the last one walks over the grid
    for (const size_t misaligned : {0u, 4u})
      for (const Values values : {Values::Wide, Values::Broken})
        for (const int block : {128, 0})
          check_same({.block = block, .count = count, .misaligned = misaligned, .values = values});
  for (const DType first : {DType::E4M3, DType::E5M2})
    for (const int block : {1, 32, 100, 1024})
      check_same({.first = first, .block = block, .count = 2001, .expanded = true});
}

TEST_CASE("Muon's momentum changes nothing when the step is not applied, and refuses blocks beyond a span") {
  for (const int block : {128, 0}) {
    const Problem p{.block = block};
    const Momentum state(p), before(p);
    with_kernel(state, refused);
    CHECK(state.differences_from(before) == 0);
    with_kernel(state, clipped);
    CHECK(state.differences_from(before) > 0);
  }
  CHECK_THROWS_AS(with_kernel(Momentum({.block = 1025}), clipped), gpu::LaunchError);
}

TEST_CASE("Muon's update of masters has the bits of the CPU's in every format") {
  for (const MasterFormat format : master_formats)
    for (const DType type : storages)
      for (const int64_t count : {1, 3, 127, 129, 1024, 50003})
        for (const size_t misaligned : {0u, 4u}) {
          INFO(static_cast<int>(format) << ", " << count << ", misaligned by " << misaligned);
          const Masters ours(format, type, count, misaligned), theirs(format, type, count, misaligned),
              before(format, type, count, misaligned);
          for (const uint64_t key : {77u, 78u}) {
            with_kernel(ours, clipped, key);
            as_specified(theirs, clipped, key);
            CHECK(ours.differences_from(theirs) == 0);
          }
          if (count > 100) CHECK(ours.differences_from(before) > count / 2);
        }
}

TEST_CASE("Muon's update leaves masters alone when the step is not applied, and their amax all the same") {
  for (const MasterFormat format : master_formats) {
    const Masters ours(format, DType::BF16, 1000), theirs(format, DType::BF16, 1000),
        before(format, DType::BF16, 1000);
    with_kernel(ours, refused);
    as_specified(theirs, refused);
    CHECK(ours.differences_from(theirs) == 0);
    CHECK(ours.master.differences_from(before.master) == 0);
    CHECK(ours.amax.get(0) > 0);
  }
}

TEST_CASE("normalisation and weighted sums have the bits of the CPU's at any size and alignment") {
  for (const DType type : storages)
    for (const int64_t count : {1, 7, 8, 17, 256, 16385, 50003})
      for (const size_t misaligned : {0u, 4u})
        for (const Values values : {Values::Wide, Values::Broken}) {
          INFO(name_of(type) << " " << count << ", misaligned by " << misaligned);
          const Sums ours(type, count, misaligned, values), theirs(type, count, misaligned, values);
          kernels::weighted_sum({.x = ours.x.data(),
                                 .y = ours.y.data(),
                                 .out = ours.out.data(),
                                 .storage = format_of(type),
                                 .count = count,
                                 .alpha = 3.4445f,
                                 .beta = -1.5f});
          specification().weighted_sum({theirs.x, theirs.y, theirs.out, 3.4445f, -1.5f});
          CHECK(differences(ours.out, theirs.out) == 0);
          // In place.
          kernels::weighted_sum({.x = ours.x.data(),
                                 .y = ours.y.data(),
                                 .out = ours.y.data(),
                                 .storage = format_of(type),
                                 .count = count,
                                 .alpha = 3.4445f,
                                 .beta = -1.5f});
          CHECK(differences(ours.y, theirs.out) == 0);
          kernels::normalize({.x = ours.x.data(),
                              .storage = format_of(type),
                              .count = count,
                              .partial = ours.partials.as<double>()});
          specification().normalize({theirs.x, theirs.partials});
          CHECK(differences(ours.x, theirs.x) == 0);
        }
}

TEST_CASE("Muon's kernels give the same bits in every schedule, other numbers are noticed") {
  const Problem p{.count = 3000};
  const Momentum theirs(p), other(p);
  as_specified(theirs, clipped);
  UpdateControl neighbour = clipped;
  neighbour.scale = std::nextafter(clipped.scale, 1.0f);
  as_specified(other, neighbour);
  const Sums sums(DType::BF16, 50003, 0, Values::Wide);
  specification().normalize({sums.x, sums.partials});
  const Masters masters(MasterFormat::BF16Stochastic, DType::BF16, 5000);
  as_specified(masters, clipped);
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    const Momentum ours(p);
    with_kernel(ours, clipped);
    CHECK(ours.differences_from(theirs) == 0);
    CHECK(ours.differences_from(other) > 0);
    const Sums normalised(DType::BF16, 50003, 0, Values::Wide);
    kernels::normalize({.x = normalised.x.data(),
                        .storage = Format::BF16,
                        .count = 50003,
                        .partial = normalised.partials.as<double>()});
    CHECK(differences(normalised.x, sums.x) == 0);
    const Masters updated(MasterFormat::BF16Stochastic, DType::BF16, 5000),
        otherwise(MasterFormat::BF16Stochastic, DType::BF16, 5000);
    with_kernel(updated, clipped);
    with_kernel(otherwise, clipped, 78);
    CHECK(updated.differences_from(masters) == 0);
    CHECK(otherwise.differences_from(masters) > 0);
  }
}
