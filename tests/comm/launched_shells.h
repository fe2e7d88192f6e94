// The built-in launcher with shells as ranks.
#pragma once
#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <set>
#include <string>

#include "catch.h"
#include "comm/local_launcher.h"

namespace octet::testing {

// A pipe whose other end is read to the end once its writers are gone.
class Capture {
 public:
  Capture() { REQUIRE(::pipe2(ends_, O_CLOEXEC) == 0); }
  ~Capture() {
    for (const int end : ends_)
      if (end >= 0) ::close(end);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  int writer() const { return ends_[1]; }
  std::string text() {
    close_writer();
    char buffer[4096];
    for (ssize_t n; (n = ::read(ends_[0], buffer, sizeof buffer)) > 0;)
      text_.append(buffer, static_cast<size_t>(n));
    return text_;
  }
  // Returns once `part` has been written `count` times.
  void await(const std::string& part, int count) {
    const auto written = [&] {
      int n = 0;
      for (size_t at = 0; (at = text_.find(part, at)) != std::string::npos; at += part.size()) ++n;
      return n;
    };
    char c = 0;
    while (written() < count && ::read(ends_[0], &c, 1) == 1) text_ += c;
    INFO(text_);
    REQUIRE(written() >= count);
  }
  void close_writer() {
    if (ends_[1] >= 0) ::close(std::exchange(ends_[1], -1));
  }

 private:
  int ends_[2] = {-1, -1};
  std::string text_;
};

// Ranks that run a shell script; deadlines long enough never to matter unless a test shortens them.
inline LocalLaunch shells(int ranks, const std::string& script) {
  LocalLaunch launch;
  launch.program = "/bin/sh";
  launch.arguments = [script](int) { return std::vector<std::string>{"sh", "-c", script}; };
  launch.ranks = ranks;
  launch.hold_signals = false;
  launch.deadlines = {300, 300, 0};
  return launch;
}

struct Outcome {
  int code = -1;
  std::string output, errors;
};

inline Outcome outcome_of(LocalLaunch launch) {
  Capture output, errors;
  launch.output = output.writer();
  launch.errors = errors.writer();
  Outcome outcome;
  outcome.code = launch_local(launch);
  outcome.output = output.text();
  outcome.errors = errors.text();
  return outcome;
}

// Processes whose parent is `parent`, zombies included.
inline std::set<pid_t> children_of(pid_t parent) {
  std::set<pid_t> children;
  DIR* processes = ::opendir("/proc");
  REQUIRE(processes);
  while (const dirent* entry = ::readdir(processes)) {
    if (std::atoi(entry->d_name) <= 0) continue;
    std::ifstream stat(fmt::format("/proc/{}/stat", entry->d_name));
    std::string text((std::istreambuf_iterator<char>(stat)), {});
    // "pid (name) state ppid"; the name may hold anything.
    const size_t end = text.rfind(')');
    if (end == std::string::npos || end + 4 > text.size()) continue;
    if (std::atoi(text.c_str() + end + 4) == parent) children.insert(std::atoi(entry->d_name));
  }
  ::closedir(processes);
  return children;
}

// A launcher in a process of its own, so that it can be sent signals.
class LauncherProcess {
 public:
  explicit LauncherProcess(LocalLaunch launch) {
    launch.output = output.writer();
    launch.errors = errors.writer();
    pid = ::fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
      int code = 99;
      try {
        code = launch_local(launch);
      } catch (...) {
      }
      ::_exit(code);
    }
    output.close_writer();
    errors.close_writer();
  }
  ~LauncherProcess() {
    if (pid <= 0) return;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  LauncherProcess(const LauncherProcess&) = delete;
  LauncherProcess& operator=(const LauncherProcess&) = delete;
  int wait() {
    int status = 0;
    REQUIRE(::waitpid(pid, &status, 0) == pid);
    pid = -1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  Capture output, errors;
  pid_t pid = -1;
};

}  // namespace octet::testing
