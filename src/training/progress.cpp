#include "training/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

#include "base/clock.h"
#include "base/text.h"

namespace octet {
namespace {
// Past stdio: a full disk or a closed pipe must leave nothing in its buffer for the end of the program to
// find.
void print_line(std::string text) {
  text += '\n';
  for (std::string_view rest = text; !rest.empty();) {
    const ssize_t n = ::write(STDOUT_FILENO, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    rest.remove_prefix(static_cast<size_t>(n));
  }
}
}  // namespace

std::string format_progress(const ProgressLine& p) {
  const int digits = static_cast<int>(std::to_string(p.steps).size());
  std::string text =
      fmt::format("step {:>{}}/{}  loss {:.4f}  norm {:.3f}  lr {:.2e}  {} tok/s", p.step, digits, p.steps,
                  p.loss, p.gradient_norm, p.learning_rate, human_count(p.tokens_per_second));
  if (p.peak_share >= 0) text += fmt::format("  {:.1f}% of peak", 100 * p.peak_share);
  text += "  " + human_bytes(p.memory_bytes) + " resident";
  if (p.seconds_left >= 0) text += "  " + human_duration(p.seconds_left) + " left";
  if (p.skipped) text += "  SKIPPED";
  return text;
}

bool LineLimit::due(const ProgressLine& line, double now) {
  if (!first_ && line.step != line.steps && now - last_ < seconds_) return false;
  first_ = false;
  last_ = now;
  return true;
}

Progress::Progress() : limit_(isatty(STDOUT_FILENO) == 1 ? 1 : 2) {}

void Progress::show(const ProgressLine& line) {
  if (limit_.due(line, monotonic_seconds())) print_line(format_progress(line));
}

void Progress::note(const std::string& text) { print_line(text); }

}  // namespace octet
