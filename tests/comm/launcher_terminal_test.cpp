// The built-in launcher as a terminal's foreground job: Ctrl-C and Ctrl-Z.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <string>

#include "catch.h"
#include "comm/local_launcher.h"

using namespace octet;

namespace {

// A launcher that leads a session of its own on a new terminal; this end is the keyboard and the screen.
class Terminal {
 public:
  explicit Terminal(const std::string& script) : keyboard_(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) {
    REQUIRE(keyboard_ >= 0);
    REQUIRE(::grantpt(keyboard_) == 0);
    REQUIRE(::unlockpt(keyboard_) == 0);
    const std::string name = ::ptsname(keyboard_);
    launcher = ::fork();
    REQUIRE(launcher >= 0);
    if (launcher > 0) return;
    ::setsid();
    const int screen = ::open(name.c_str(), O_RDWR);  // becomes the controlling terminal
    ::ioctl(screen, TIOCSCTTY, 0);
    for (const int stream : {0, 1, 2}) ::dup2(screen, stream);
    ::signal(SIGTSTP, SIG_DFL);
    LocalLaunch launch;
    launch.program = "/bin/sh";
    launch.arguments = [&](int) { return std::vector<std::string>{"sh", "-c", script}; };
    launch.ranks = 2;
    launch.hold_signals = false;
    int code = 99;
    try {
      code = launch_local(launch);
    } catch (...) {
    }
    ::_exit(code);
  }
  ~Terminal() {
    if (launcher > 0) {
      ::kill(launcher, SIGKILL);
      ::waitpid(launcher, nullptr, 0);
    }
    ::close(keyboard_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  void press(char key) const { REQUIRE(::write(keyboard_, &key, 1) == 1); }
  // Everything on the screen so far; returns once `count` lines hold `part`.
  std::string await(const std::string& part, int count) {
    const auto shown = [&] {
      int n = 0;
      for (size_t at = 0; (at = screen_.find(part, at)) != std::string::npos; at += part.size()) ++n;
      return n;
    };
    char c = 0;
    while (shown() < count && ::read(keyboard_, &c, 1) == 1) screen_ += c;
    REQUIRE(shown() >= count);
    return screen_;
  }
  // What has come without waiting.
  std::string screen() {
    pollfd ready{keyboard_, POLLIN, 0};
    char c = 0;
    while (::poll(&ready, 1, 0) > 0 && ::read(keyboard_, &c, 1) == 1) screen_ += c;
    return screen_;
  }
  int wait() {
    int status = 0;
    REQUIRE(::waitpid(launcher, &status, 0) == launcher);
    launcher = -1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  pid_t launcher = -1;

 private:
  int keyboard_;
  std::string screen_;
};

constexpr char control_c = 3, control_z = 26;

std::atomic<int> interruptions{0};
volatile std::sig_atomic_t asked = 0;

void say(const std::string& text) {
  CHECK(::write(STDOUT_FILENO, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}

}  // namespace

// A shell's trap would take two signals in short order for one.
TEST_CASE("one rank counts its SIGINTs until SIGUSR1", "[.counts]") {
  ::signal(SIGINT, [](int) { ++interruptions; });
  ::signal(SIGUSR1, [](int) { asked = 1; });
  if (::isatty(STDOUT_FILENO)) say("terminal\n");
  say("ready\n");
  for (int seen = 0; !asked || seen < interruptions;) {
    if (seen < interruptions) {
      say(fmt::format("interrupted {}\n", ++seen));
    } else {
      ::usleep(2'000);
    }
  }
  say(fmt::format("count {}\n", interruptions.load()));
}

TEST_CASE("Ctrl-C reaches every rank once: the second one, which does not save, is the user's to press") {
  const std::string counting =
      fmt::format("exec '{}' '[.counts]'", std::filesystem::read_symlink("/proc/self/exe").string());
  Terminal terminal(counting);
  // Rank 0 has the terminal itself, so its progress lines know that somebody watches.
  const std::string begun = terminal.await("ready\r\n", 2);
  CHECK(begun.find("\nterminal\r\n") != std::string::npos);
  CHECK(begun.find("[rank 1] terminal") == std::string::npos);
  for (const int presses : {1, 2}) {
    terminal.press(control_c);
    terminal.await(fmt::format("interrupted {}\r\n", presses), 2);
  }
  ::usleep(50'000);  // for any that come late
  ::kill(terminal.launcher, SIGUSR1);
  const std::string end = terminal.await("count 2\r\n", 2);
  CHECK(end.find("[rank 1] count 2\r\n") != std::string::npos);
  CHECK(terminal.wait() == 0);
}

TEST_CASE("Ctrl-Z stops the ranks with the launcher, and they go on with it") {
  Terminal terminal(
      "trap 'echo bye; exit 0' USR1; echo ready; n=0; while :; do sleep 0.01; n=$((n+1)); echo tick; done");
  terminal.await("tick", 4);
  terminal.press(control_z);
  int status = 0;
  REQUIRE(::waitpid(terminal.launcher, &status, WUNTRACED) == terminal.launcher);
  REQUIRE(WIFSTOPPED(status));
  // What was on its way arrives; after that the screen stands still.
  ::usleep(100'000);
  const std::string before = terminal.screen();
  ::usleep(200'000);
  CHECK(terminal.screen() == before);
  ::kill(terminal.launcher, SIGCONT);
  const auto ticks = [](const std::string& text) {
    int n = 0;
    for (size_t at = 0; (at = text.find("tick", at)) != std::string::npos; ++at) ++n;
    return n;
  };
  terminal.await("tick", ticks(before) + 4);
  ::kill(terminal.launcher, SIGUSR1);
  terminal.await("bye\r\n", 2);
  CHECK(terminal.wait() == 0);
}
