#include "kernels/fill.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "array.h"
#include "catch.h"
#include "environment.h"
#include "numerics/elementary.h"

using namespace octet;

TEMPLATE_TEST_CASE("fill writes every element and nothing beside, at any count and start", "", float,
                   BFloat16) {
  constexpr int64_t margin = 8;
  constexpr bool wide = sizeof(TestType) == 4;
  const auto same = [](TestType a, TestType b) { return std::memcmp(&a, &b, sizeof a) == 0; };
  TestType value, before;
  octet::store(&value, 2.7182817f);  // BF16 has to round it
  octet::store(&before, -1.0f);
  REQUIRE_FALSE(same(value, before));
  for (const int64_t count :
       {0, 1, 2, 3, 4, 5, 7, 31, 64, 1027, 40003}) {  // the last one walks over the grid
    for (const int64_t start : {0, 1, 2, 3, 7}) {
      std::vector<TestType> memory(static_cast<size_t>(2 * margin + 8 + count), before);
      TestType* const out = memory.data() + margin + start;
      kernels::fill(
          {.out = out, .storage = wide ? Format::FP32 : Format::BF16, .count = count, .value = 2.7182817f});
      int64_t wrong = 0;
      for (int64_t i = 0; i < count; ++i) wrong += !same(out[i], value);
      for (int64_t i = 0; i < static_cast<int64_t>(memory.size()); ++i) {
        const bool inside = i >= margin + start && i < margin + start + count;
        wrong += !inside && !same(memory[static_cast<size_t>(i)], before);
      }
      INFO("count " << count << ", start " << start);
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("fill gives the same in every schedule and on several operating-system threads") {
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    std::vector<float> out(20011, 0.0f);
    kernels::fill({.out = out.data(), .storage = Format::FP32, .count = 20011, .value = std::nanf("")});
    int wrong = 0;
    for (const float x : out) wrong += !std::isnan(x);
    CHECK(wrong == 0);
  }
}
