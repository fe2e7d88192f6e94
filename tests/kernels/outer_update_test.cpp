#include "kernels/outer_update.h"

#include "array.h"
#include "catch.h"
#include "environment.h"

using namespace octet;

namespace {

struct State {
  Array outer, velocity, local;
  State(int64_t count, size_t misaligned, Values values)
      : outer(DType::F32, {count}, misaligned),
        velocity(DType::F32, {count}, misaligned),
        local(DType::F32, {count}, misaligned) {
    randomize(outer, values, 1);
    randomize(velocity, values, 2);
    randomize(local, values, 3);
  }
};
constexpr float scale = 1.0f / 3, rate = 0.7f, momentum = 0.9f;

void with_kernels(const State& s) {
  kernels::outer_difference(
      {.outer = s.outer.as<float>(), .local = s.local.as<float>(), .count = s.outer.elements()});
  kernels::outer_update({.outer = s.outer.as<float>(),
                         .velocity = s.velocity.as<float>(),
                         .local = s.local.as<float>(),
                         .count = s.outer.elements(),
                         .scale = scale,
                         .learning_rate = rate,
                         .momentum = momentum});
}
void as_specified(const State& s, float its_momentum = momentum) {
  specification().outer_difference({s.outer, s.local});
  specification().outer_update({.outer = s.outer,
                                .velocity = s.velocity,
                                .local = s.local,
                                .scale = scale,
                                .learning_rate = rate,
                                .momentum = its_momentum});
}
int64_t differences(const State& a, const State& b) {
  return ::differences(a.outer, b.outer) + ::differences(a.velocity, b.velocity) +
         ::differences(a.local, b.local);
}

}  // namespace

TEST_CASE("the outer step has the bits of the CPU's at any size and alignment") {
  for (const int64_t count : {1, 7, 8, 17, 256, 1000, 50003})  // the last one walks over the grid
    for (const size_t misaligned : {0u, 4u})
      for (const Values values : {Values::Wide, Values::Broken}) {
        INFO(count << ", misaligned by " << misaligned);
        const State ours(count, misaligned, values), theirs(count, misaligned, values);
        with_kernels(ours);
        as_specified(theirs);
        CHECK(differences(ours, theirs) == 0);
      }
}

TEST_CASE("the outer step has the same bits in every schedule, another momentum is noticed") {
  const State expected(5000, 0, Values::Wide), other(5000, 0, Values::Wide);
  as_specified(expected);
  as_specified(other, 0.8f);
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    const State ours(5000, 0, Values::Wide);
    with_kernels(ours);
    CHECK(differences(ours, expected) == 0);
    CHECK(differences(ours, other) > 0);
  }
}
