#include "training/progress.h"

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
                           "12.3% of peak", "1.50 GiB", "41 s left"}) {
    INFO(text << " should say " << part);
    CHECK(text.find(part) != std::string::npos);
  }
  CHECK(text.find("SKIPPED") == std::string::npos);
  line.skipped = true;
  line.peak_share = -1;
  CHECK(format_progress(line).find("SKIPPED") != std::string::npos);
  CHECK(format_progress(line).find("of peak") == std::string::npos);
}
