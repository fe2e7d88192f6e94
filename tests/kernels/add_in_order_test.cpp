#include "kernels/add_in_order.h"

#include "array.h"
#include "catch.h"
#include "environment.h"

using namespace octet;

namespace {

struct Problem {
  DType type = DType::F32;
  int64_t count = 1000, sources = 3;
  size_t misaligned = 0;
  Values values = Values::Wide;

  Array sum() const {
    Array start(DType::F32, {count}, misaligned);
    randomize(start, values, 1);
    return start;
  }
  Array addends() const {
    Array array(type, {sources, count}, misaligned);
    randomize(array, values, 2);
    return array;
  }
};

Array with_kernel(const Problem& p) {
  const Array sum = p.sum(), values = p.addends();
  kernels::add_in_order({.sum = sum.as<float>(),
                         .values = values.data(),
                         .storage = p.type == DType::F32 ? Format::FP32 : Format::BF16,
                         .sources = p.sources,
                         .count = p.count});
  return sum;
}
Array as_specified(const Problem& p) {
  const Array sum = p.sum();
  specification().add_in_order({.sum = sum, .sources = p.addends()});
  return sum;
}

}  // namespace

TEST_CASE("sums in order have the bits of the CPU's at any size, alignment and storage") {
  for (const DType type : {DType::F32, DType::BF16})
    for (const int64_t count : {1, 7, 8, 17, 256, 1000, 50003})  // the last one walks over the grid
      for (const int64_t sources : {1, 2, 7})
        for (const size_t misaligned : {0u, 4u})
          for (const Values values : {Values::Wide, Values::Broken}) {
            const Problem p{type, count, sources, misaligned, values};
            INFO(name_of(type) << ", " << sources << " x " << count << ", misaligned by " << misaligned);
            CHECK(differences(with_kernel(p), as_specified(p)) == 0);
          }
}

TEST_CASE("sums in order have the same bits in every schedule, another order of sources is noticed") {
  const Problem p{.count = 5000};
  const Array expected = as_specified(p);
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    CHECK(differences(with_kernel(p), expected) == 0);
  }
  const Array sum = p.sum(), values = p.addends();
  for (int64_t s = p.sources; s-- > 0;) {
    Tensor last = values.tensor().slice(s, 1);
    specification().add_in_order({.sum = sum, .sources = last});
  }
  CHECK(differences(sum, expected) > 0);
}

TEST_CASE("doubles in order have the bits of the CPU's") {
  for (const int64_t count : {1, 300, 50003})
    for (const int64_t sources : {1, 12}) {
      const Array ours(DType::F64, {count}), theirs(DType::F64, {count}),
          values(DType::F64, {sources, count});
      for (int64_t i = 0; i < values.elements(); ++i)
        values.as<double>()[i] =
            random_normal(5, static_cast<uint64_t>(i)) * std::ldexp(1.0, static_cast<int>(i % 40));
      kernels::add_doubles_in_order(
          {.sum = ours.as<double>(), .values = values.as<double>(), .sources = sources, .count = count});
      specification().add_in_order({.sum = theirs, .sources = values});
      CHECK(differences(ours, theirs) == 0);
    }
}
