#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <fstream>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>

#include "base/files.h"
#include "base/text.h"

namespace octet {
namespace {

namespace fs = std::filesystem;

// Who holds a lock. The boot id says whether host and pid still mean anything.
struct Holder {
  std::string host, boot;
  long pid = 0;
  std::string text() const { return fmt::format("{} {} {}\n", host, pid, boot); }
};

Holder myself() {
  Holder me;
  char name[256] = {};
  if (::gethostname(name, sizeof name - 1) == 0) me.host = name;
  if (me.host.empty()) me.host = "unknown";
  std::ifstream("/proc/sys/kernel/random/boot_id") >> me.boot;
  if (me.boot.empty()) me.boot = "unknown";
  me.pid = static_cast<long>(::getpid());
  return me;
}

Holder read_holder(int descriptor) {
  char text[512] = {};
  const ssize_t got = ::pread(descriptor, text, sizeof text - 1, 0);
  Holder holder;
  if (got > 0)
    std::istringstream(std::string(text, static_cast<size_t>(got))) >> holder.host >> holder.pid >>
        holder.boot;
  return holder;
}

// File systems whose flock() is seen by every machine that mounts them.
bool lock_spans_machines(int descriptor) {
  struct statfs status = {};
  if (::fstatfs(descriptor, &status) < 0) return false;
  const auto type = static_cast<uint64_t>(status.f_type) & 0xffffffffu;
  return type == 0x6969 /* NFS */ || type == 0x47504653 /* GPFS */ || type == 0x00c36400 /* Ceph */;
}

bool process_lives(long pid) {
  return pid > 0 && (::kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM);
}

// A reader (lock_state) holds the lock for an instant: a refusal waits that long.
bool lock_now(int descriptor) {
  constexpr int attempts = 5;
  for (int failed = 0;;) {
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return true;
    if (errno != EWOULDBLOCK || ++failed == attempts) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

// Its process may be alive where nothing here would show it.
bool out_of_sight(const Holder& holder, const Holder& me, int descriptor) {
  return !holder.boot.empty() && holder.boot != me.boot && holder.host != me.host &&
         !lock_spans_machines(descriptor);
}

}  // namespace

LockState lock_state(const fs::path& folder) {
  const int descriptor = ::open((folder / ".octet.lock").c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  if (descriptor < 0) return errno == ENOENT ? LockState::Free : LockState::Unknown;
  const bool locked = ::flock(descriptor, LOCK_SH | LOCK_NB) == 0;
  const int error = errno;
  const Holder holder = read_holder(descriptor), me = myself();
  const bool unseen = out_of_sight(holder, me, descriptor);
  ::close(descriptor);
  if (!locked && error == EWOULDBLOCK) return LockState::Held;
  if (unseen) return LockState::Unknown;
  if (locked) return LockState::Free;
  // A file system without locks: the process list of this machine is what there is.
  if (holder.boot != me.boot) return LockState::Free;
  return process_lives(holder.pid) ? LockState::Held : LockState::Free;
}

FolderLock::FolderLock(const fs::path& folder, ExitCode code) : path_(folder / ".octet.lock") {
  const auto refuse = [&](const Holder& holder, const char* hint) {
    ::close(std::exchange(descriptor_, -1));
    throw Error(
        code,
        fmt::format("the folder \"{}\" is in use by process {} on {}", escape_control(folder.string()),
                    holder.pid, escape_control(holder.host.empty() ? "an unknown host" : holder.host)),
        hint);
  };
  const auto fail = [&](int error) {
    if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
    throw Error(code,
                fmt::format("cannot lock \"{}\": {}", escape_control(path_.string()),
                            std::generic_category().message(error)),
                "check that the folder exists and may be written");
  };
  const Holder me = myself();
  while (true) {
    descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (descriptor_ < 0 && errno == EINTR) continue;
    if (descriptor_ < 0) fail(errno);
    const bool locked = lock_now(descriptor_);
    const int error = errno;
    if (!locked && error == EINTR) {
      ::close(std::exchange(descriptor_, -1));
      continue;
    }
    if (!locked && error == EWOULDBLOCK)
      refuse(read_holder(descriptor_), "wait for it to end, stop it, or choose another folder");
    // The former holder removes its file when it ends: make sure the locked file is the one that others see.
    struct stat mine = {}, seen = {};
    if (::fstat(descriptor_, &mine) < 0) fail(errno);
    if (::lstat(path_.c_str(), &seen) < 0 || seen.st_ino != mine.st_ino || seen.st_dev != mine.st_dev) {
      ::close(std::exchange(descriptor_, -1));
      continue;
    }
    // Somebody's name in a file that nobody locks: stale, unless that somebody could be out of the lock's
    // sight.
    const Holder holder = read_holder(descriptor_);
    if (out_of_sight(holder, me, descriptor_))
      refuse(holder, "if that machine no longer runs it, remove .octet.lock from the folder");
    if (!locked && holder.boot == me.boot && holder.pid != me.pid && process_lives(holder.pid))
      refuse(holder, "wait for it to end, stop it, or choose another folder");
    break;
  }
  const std::string text = me.text();
  if (::ftruncate(descriptor_, 0) < 0 ||
      ::pwrite(descriptor_, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
    fail(errno);
}

FolderLock::~FolderLock() {
  if (descriptor_ < 0) return;
  ::unlink(path_.c_str());
  ::close(descriptor_);
}

}  // namespace octet
