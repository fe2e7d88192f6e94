#include "kernels/fill.h"

#include <cmath>
#include <vector>

#include "catch.h"
#include "environment.h"

using namespace octet;

TEST_CASE("fill writes every element and nothing beside, at any count and start") {
  constexpr int64_t margin = 8;
  for (const int64_t count :
       {0, 1, 2, 3, 4, 5, 7, 31, 64, 1027, 40003}) {  // the last one walks over the grid
    for (const int64_t start : {0, 1, 2, 3}) {
      std::vector<float> memory(static_cast<size_t>(2 * margin + 4 + count), -1.0f);
      float* const out = memory.data() + margin + start;
      kernels::fill({.out = out, .count = count, .value = 2.5f});
      int64_t wrong = 0;
      for (int64_t i = 0; i < count; ++i) wrong += out[i] != 2.5f;
      for (int64_t i = 0; i < static_cast<int64_t>(memory.size()); ++i) {
        const bool inside = i >= margin + start && i < margin + start + count;
        wrong += !inside && memory[static_cast<size_t>(i)] != -1.0f;
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
    kernels::fill({.out = out.data(), .count = 20011, .value = std::nanf("")});
    int wrong = 0;
    for (const float x : out) wrong += !std::isnan(x);
    CHECK(wrong == 0);
  }
}
