#include "cli/progress_bar.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "base/clock.h"
#include "base/text.h"

namespace octet {

ProgressBar::ProgressBar(std::string what)
    : what_(std::move(what)), terminal_(::isatty(STDERR_FILENO) == 1), begun_(monotonic_seconds()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
}

void ProgressBar::update(uint64_t done, uint64_t all) {
  if (!terminal_ || all == 0) return;
  const double now = monotonic_seconds();
  if (drawn_ && now - last_ < 0.1 && done < all) return;
  last_ = now;
  drawn_ = true;
  constexpr size_t width = 30;
  const double share = static_cast<double>(done) / static_cast<double>(all);
  const size_t full = static_cast<size_t>(share * static_cast<double>(width));
  const double left = share > 0 ? (now - begun_) * (1 - share) / share : 0;
  fmt::print(stderr, "\r\x1b[K{} [{}{}] {:3.0f} %  {} left", what_, std::string(full, '#'),
             std::string(width - full, '.'), 100 * share, human_duration(left));
  std::fflush(stderr);
}

}  // namespace octet
