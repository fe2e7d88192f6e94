#include "kernels/reduce_values.h"

#include <vector>

#include "catch.h"
#include "environment.h"
#include "numerics/small_float.h"

using namespace octet;

namespace {

std::vector<uint16_t> all_patterns() {
  std::vector<uint16_t> values(1 << 16);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i);
  return values;
}

const std::vector<SmallFloat> formats = {{8, 3},
                                         {8, 0, SmallRounding::Nearest},
                                         {5, 2, SmallRounding::Nearest, Underflow::Clamp},
                                         {4, 3, SmallRounding::Truncate, Underflow::Clamp},
                                         {2, 7},
                                         {7, 7}};

}  // namespace

TEST_CASE("reduced values have the host's bits for every BF16 value") {
  const std::vector<uint16_t> in = all_patterns();
  for (const SmallFloat& format : formats) {
    std::vector<uint16_t> out(in.size(), 0xdead);
    kernels::reduce_values(
        {.in = in.data(), .out = out.data(), .count = static_cast<int64_t>(in.size()), .format = format});
    int wrong = 0, changed = 0;
    for (size_t i = 0; i < in.size(); ++i) {
      wrong += out[i] != to_small_float(bits_of(format), BFloat16{in[i]}).bits;
      changed += out[i] != in[i];
    }
    INFO(name_of(format));
    CHECK(wrong == 0);
    CHECK(changed > 0);
  }
}

TEST_CASE("values are reduced at any count and alignment, in every schedule, and nothing beside them") {
  constexpr size_t margin = 8;
  const SmallFloat format{8, 2};
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "2");
    for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{8}, size_t{1027}, size_t{20003}}) {
      for (const size_t start : {size_t{0}, size_t{1}, size_t{3}}) {
        // Exactly as long as it is read, so that the address sanitizer sees what lies beyond.
        std::vector<uint16_t> in(start + count), out(start + count + margin, 0xdead);
        for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(40503 * i);
        kernels::reduce_values({.in = in.data() + start,
                                .out = out.data() + start,
                                .count = static_cast<int64_t>(count),
                                .format = format});
        int wrong = 0;
        for (size_t i = 0; i < out.size(); ++i) {
          const bool inside = i >= start && i < start + count;
          wrong += out[i] != (inside ? to_small_float(bits_of(format), BFloat16{in[i]}).bits : 0xdead);
        }
        INFO(schedule << " " << count << " from " << start);
        CHECK(wrong == 0);
      }
    }
  }
}
