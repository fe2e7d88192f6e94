#include "training/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "base/clock.h"
#include "base/text.h"

namespace octet {
namespace {
void print_line(const std::string& text) {  // a closed pipe must not stop training (F41)
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
  std::fflush(stdout);
  std::clearerr(stdout);
}
}  // namespace

std::string format_progress(const ProgressLine& p) {
  const int digits = static_cast<int>(std::to_string(p.steps).size());
  std::string text =
      fmt::format("step {:>{}}/{}  loss {:.4f}  norm {:.3f}  lr {:.2e}  {} tok/s", p.step, digits, p.steps,
                  p.loss, p.gradient_norm, p.learning_rate, human_count(p.tokens_per_second));
  if (p.peak_share >= 0) text += fmt::format("  {:.1f}% of peak", 100 * p.peak_share);
  text += "  " + human_bytes(p.memory_bytes);
  if (p.seconds_left >= 0) text += "  " + human_duration(p.seconds_left) + " left";
  if (p.skipped) text += "  SKIPPED";
  return text;
}

Progress::Progress() : terminal_(isatty(STDOUT_FILENO) == 1) {}

void Progress::show(const ProgressLine& line) {
  const double now = monotonic_seconds();
  if (terminal_ && !first_ && line.step != line.steps && now - last_ < 1) return;
  first_ = false;
  last_ = now;
  print_line(format_progress(line));
}

void Progress::note(const std::string& text) { print_line(text); }

}  // namespace octet
