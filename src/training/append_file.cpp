#include "training/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/log.h"

namespace octet {
namespace {
void warn(const std::filesystem::path& path, int error) noexcept {
  try {
    log_warning("{}: {}; this log ends here, training goes on", path.string(), std::strerror(error));
  } catch (...) {
  }
}
}  // namespace

int open_for_append(const std::filesystem::path& path) noexcept {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor < 0) warn(path, errno);
  return descriptor;
}

bool append_all(int descriptor, const std::filesystem::path& path, std::string_view text) noexcept {
  while (!text.empty()) {
    const ssize_t n = ::write(descriptor, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      warn(path, n < 0 ? errno : EIO);
      return false;
    }
    text.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

}  // namespace octet
