#include "base/signals.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "base/error.h"
#include "catch.h"

using namespace octet;

namespace {
// Exit status of a child that runs `action`; 128 + signal when a signal ended it.
template <class Action>
int status_of_child(Action action) {
  const pid_t child = ::fork();
  if (child == 0) {
    action();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
}  // namespace

TEST_CASE("SIGTERM, SIGINT, SIGHUP and SIGUSR2 ask to stop and name themselves") {
  for (const auto& [number, name] :
       {std::pair{SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"}, {SIGHUP, "SIGHUP"}, {SIGUSR2, "SIGUSR2"}}) {
    const SignalGuard guard;
    CHECK_FALSE(guard.stop_requested());
    CHECK(std::string(guard.stop_reason()).empty());
    ::raise(number);
    CHECK(guard.stop_requested());
    CHECK(guard.stop_reason() == std::string(name));
  }
}

TEST_CASE("a lost terminal stops a run, but not under nohup") {
  CHECK(status_of_child([] {
          ::signal(SIGHUP, SIG_DFL);
          const SignalGuard guard;
          ::raise(SIGHUP);
          ::_exit(guard.stop_requested() ? 10 : 11);
        }) == 10);
  CHECK(status_of_child([] {
          ::signal(SIGHUP, SIG_IGN);
          const SignalGuard guard;
          ::raise(SIGHUP);
          ::_exit(guard.stop_requested() ? 10 : 11);
        }) == 11);
}

TEST_CASE("SIGUSR1 asks for one save, each time") {
  SignalGuard guard;
  CHECK_FALSE(guard.take_save_request());
  ::raise(SIGUSR1);
  CHECK(guard.take_save_request());
  CHECK_FALSE(guard.take_save_request());
  ::raise(SIGUSR1);
  CHECK(guard.take_save_request());
  CHECK_FALSE(guard.stop_requested());
}

TEST_CASE("a second SIGINT or SIGTERM leaves at once with the code of an unsaved stop") {
  CHECK(status_of_child([] {
          const SignalGuard guard;
          ::raise(SIGTERM);
          ::raise(SIGINT);
        }) == 76);
  CHECK(status_of_child([] {
          const SignalGuard guard;
          ::raise(SIGUSR2);
          ::raise(SIGTERM);  // the first of its kind: still time to save
        }) == 0);
}

TEST_CASE("SIGPIPE is ignored under the guard and deadly without it") {
  CHECK(status_of_child([] {
          const SignalGuard guard;
          ::raise(SIGPIPE);
        }) == 0);
  CHECK(status_of_child([] {
          ::signal(SIGPIPE, SIG_DFL);
          { const SignalGuard guard; }
          ::raise(SIGPIPE);
        }) == 128 + SIGPIPE);
}

TEST_CASE("two guards at once are a bug") {
  const SignalGuard guard;
  CHECK_THROWS_AS(SignalGuard(), Error);
}
