#include "comm/rank_output.h"

#include <fmt/format.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace octet {
namespace {
constexpr size_t longest_line = 16 << 10;
}

PrefixedLines::PrefixedLines(int rank) : prefix_(fmt::format("[rank {}] ", rank)) {}

std::string PrefixedLines::take(std::string_view bytes) {
  std::string lines;
  while (!bytes.empty()) {
    const size_t room = longest_line - line_.size();
    const size_t end = bytes.substr(0, room).find('\n');
    line_ += bytes.substr(0, std::min(end, room));
    bytes.remove_prefix(end == std::string_view::npos ? std::min(room, bytes.size()) : end + 1);
    if (end != std::string_view::npos || line_.size() == longest_line) {
      lines += prefix_ + line_ + '\n';
      line_.clear();
    }
  }
  return lines;
}

std::string PrefixedLines::rest() {
  if (line_.empty()) return {};
  const std::string last = prefix_ + line_ + '\n';
  line_.clear();
  return last;
}

void SlowWriter::add(std::string_view bytes) {
  if (!gone_) pending_ += bytes;
}

void SlowWriter::write_some() {
  // A pipe that poll() calls writable has room for PIPE_BUF bytes; more of them could block.
  const ssize_t n = ::write(fd_, pending_.data(), std::min<size_t>(pending_.size(), PIPE_BUF));
  if (n >= 0) {
    pending_.erase(0, static_cast<size_t>(n));
  } else if (errno != EINTR && errno != EAGAIN) {
    gone_ = true;
    pending_.clear();
  }
}

}  // namespace octet
