#include "kernels/cross_entropy.h"

#include <cmath>
#include <vector>

#include "array.h"
#include "catch.h"
#include "environment.h"

using namespace octet;

namespace {

struct Problem {
  DType type = DType::BF16;
  int64_t tokens = 3, vocabulary = 300;
  float gradient_scale = 1.0f / 3, z_loss = 0;
  bool backward = true;
  size_t misaligned = 0;
};

struct Result {
  Array logits, loss;
  uint32_t bad_target = 0;
};

Array random_logits(const Problem& p, Values values) {
  Array logits(p.type, {p.tokens, p.vocabulary}, p.misaligned);
  randomize(logits, values, static_cast<uint64_t>(p.vocabulary));
  for (int64_t i = 0; i < logits.elements() && values == Values::Tame; ++i) logits.set(i, 3 * logits.get(i));
  return logits;
}
Array some_targets(const Problem& p) {
  Array targets(DType::I32, {p.tokens});
  for (int64_t t = 0; t < p.tokens; ++t) {
    const int32_t wanted[] = {static_cast<int32_t>(p.vocabulary - 1), 0,
                              static_cast<int32_t>(p.vocabulary / 2)};
    targets.as<int32_t>()[t] = wanted[t % 3];
  }
  return targets;
}
Result by_kernel(const Problem& p, const Array& logits, const Array& targets) {
  Result r{Array(logits), Array(DType::F32, {p.tokens})};
  kernels::cross_entropy({.storage = p.type == DType::F32 ? Format::FP32 : Format::BF16,
                          .logits = r.logits.data(),
                          .targets = targets.as<int32_t>(),
                          .loss = r.loss.as<float>(),
                          .tokens = p.tokens,
                          .vocabulary = p.vocabulary,
                          .gradient_scale = p.gradient_scale,
                          .z_loss = p.z_loss,
                          .backward = p.backward,
                          .bad_target = &r.bad_target});
  return r;
}
Result by_specification(const Problem& p, const Array& logits, const Array& targets) {
  Result r{Array(logits), Array(DType::F32, {p.tokens})};
  specification().cross_entropy({.logits = r.logits,
                                 .targets = targets,
                                 .loss = r.loss,
                                 .gradient_scale = p.gradient_scale,
                                 .z_loss = p.z_loss,
                                 .backward = p.backward});
  return r;
}
void check_same(const Problem& p, Values values) {
  const Array logits = random_logits(p, values), targets = some_targets(p);
  const Result ours = by_kernel(p, logits, targets), theirs = by_specification(p, logits, targets);
  INFO(name_of(p.type) << ", " << p.tokens << " x " << p.vocabulary << ", misaligned by " << p.misaligned);
  CHECK(differences(ours.loss, theirs.loss) == 0);
  CHECK(differences(ours.logits, theirs.logits) == 0);
  CHECK(ours.bad_target == 0);
}

}  // namespace

// On the interpreter log and exp are those of the CPU device, so equality holds to the bit.
TEST_CASE(
    "cross-entropy's loss and gradient have the bits of the CPU's at any width, alignment and storage") {
  for (const DType type : {DType::F32, DType::BF16}) {
    for (const int64_t vocabulary : {1, 3, 8, 256, 511, 520, 1031, 4096}) {
      for (const size_t misaligned : {0u, 4u}) {
        check_same({.type = type, .vocabulary = vocabulary, .z_loss = 1e-4f, .misaligned = misaligned},
                   Values::Tame);
      }
      for (const Values values : {Values::Wide, Values::Broken})
        check_same({.type = type, .vocabulary = vocabulary}, values);
    }
  }
}

TEST_CASE("cross-entropy's wide rows, with the block of a thousand threads, have the bits of the CPU's") {
  for (const DType type : {DType::F32, DType::BF16}) {
    check_same({.type = type, .tokens = 1, .vocabulary = 16384, .z_loss = 1e-4f}, Values::Tame);
    check_same({.type = type, .tokens = 2, .vocabulary = 50257}, Values::Tame);
  }
  check_same({.tokens = 1, .vocabulary = 512 * 1024 + 8}, Values::Tame);  // more chunks than a wave has
}

TEST_CASE(
    "cross-entropy leaves ignored tokens without loss and gradient, and reports a target beyond the logits") {
  for (const int64_t vocabulary : {64, 67}) {
    const Problem p{.tokens = 4, .vocabulary = vocabulary};
    const Array logits = random_logits(p, Values::Tame);
    Array targets = some_targets(p);
    targets.as<int32_t>()[1] = -1;
    const Result ours = by_kernel(p, logits, targets), theirs = by_specification(p, logits, targets);
    CHECK(differences(ours.loss, theirs.loss) == 0);
    CHECK(differences(ours.logits, theirs.logits) == 0);
    CHECK(ours.loss.get(1) == 0.0f);
    CHECK(ours.logits.get(vocabulary) == 0.0f);

    targets.as<int32_t>()[2] = static_cast<int32_t>(vocabulary);
    const Result bad = by_kernel(p, logits, targets);
    CHECK(bad.bad_target == 3);
    CHECK(std::isnan(bad.loss.get(2)));
    CHECK(differences(bad.logits.tensor().slice(2, 1), logits.tensor().slice(2, 1)) == 0);
    CHECK(differences(bad.logits.tensor().slice(3, 1), theirs.logits.tensor().slice(3, 1)) == 0);
  }
}

TEST_CASE("cross-entropy without backward leaves the logits alone") {
  const Problem p{.vocabulary = 1000, .backward = false};
  const Array logits = random_logits(p, Values::Tame), targets = some_targets(p);
  const Result ours = by_kernel(p, logits, targets);
  CHECK(differences(ours.logits, logits) == 0);
  CHECK(differences(ours.loss, by_specification(p, logits, targets).loss) == 0);
  const Problem backward{.vocabulary = 1000};
  CHECK(differences(by_kernel(backward, logits, targets).logits, logits) > 2000);
}

TEST_CASE("cross-entropy gives the same bits in every schedule, and another order of sums is noticed") {
  const Problem p{.type = DType::F32, .tokens = 5, .vocabulary = 3000};
  const Array logits = random_logits(p, Values::Tame), targets = some_targets(p);
  const Result theirs = by_specification(p, logits, targets);
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    const Result ours = by_kernel(p, logits, targets);
    CHECK(differences(ours.loss, theirs.loss) == 0);
    CHECK(differences(ours.logits, theirs.logits) == 0);
  }
  // The same logits in reverse: the same sum, added in another order.
  Array reversed(logits);
  Array mirrored(targets);
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t i = 0; i < p.vocabulary; ++i)
      reversed.set(t * p.vocabulary + i, logits.get((t + 1) * p.vocabulary - 1 - i));
    mirrored.as<int32_t>()[t] = static_cast<int32_t>(p.vocabulary) - 1 - targets.as<int32_t>()[t];
  }
  const Result other = by_kernel(p, reversed, mirrored);
  int64_t different = 0;
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t i = 0; i < p.vocabulary; ++i)
      different +=
          other.logits.get(t * p.vocabulary + i) != theirs.logits.get((t + 1) * p.vocabulary - 1 - i);
  }
  CHECK(different > 0);
}
