#include "training/progress.h"

#include <vector>

#include "catch.h"

using namespace octet;

TEST_CASE("the progress line says step, loss, norm, rate, speed, share of the peak, memory and time left") {
  ProgressLine line;
  line.step = 7;
  line.steps = 400;
  line.loss = 2.34567;
  line.gradient_norm = 0.5;
  line.learning_rate = 1e-3;
  line.tokens_per_second = 12300;
  line.peak_share = 0.123;
  line.memory_bytes = uint64_t{3} << 29;
  line.seconds_left = 41;
  const std::string text = format_progress(line);
  for (const char* part : {"step   7/400", "loss 2.3457", "norm 0.500", "lr 1.00e-03", "12.3k tok/s",
                           "12.3% of peak", "1.50 GiB resident", "41 s left"}) {
    INFO(text << " should say " << part);
    CHECK(text.find(part) != std::string::npos);
  }
  CHECK(text.find("SKIPPED") == std::string::npos);
  line.skipped = true;
  line.peak_share = -1;
  CHECK(format_progress(line).find("SKIPPED") != std::string::npos);
  CHECK(format_progress(line).find("of peak") == std::string::npos);
}

TEST_CASE("the first and the last line show, and between them one in so many seconds") {
  LineLimit limit(2);
  ProgressLine line;
  line.steps = 2400;
  int shown = 0;
  std::vector<int64_t> steps;
  for (line.step = 1; line.step <= line.steps; ++line.step) {  // 20 ms a step: 48 s
    if (!limit.due(line, 100 + 0.02 * static_cast<double>(line.step))) continue;
    ++shown;
    steps.push_back(line.step);
  }
  CHECK(shown == 25);  // at 0, 2, .. 46 s, and the last
  CHECK(steps.front() == 1);
  CHECK(steps.back() == 2400);
  LineLimit slow(2);
  shown = 0;
  for (line.step = 1; line.step <= 10; ++line.step)
    shown += slow.due(line, 3.0 * static_cast<double>(line.step));
  CHECK(shown == 10);  // steps slower than the limit all show
}
