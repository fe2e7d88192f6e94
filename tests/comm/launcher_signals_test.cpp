// Signals to the built-in launcher, its ranks and their end by force.
#include <sys/prctl.h>

#include <filesystem>

#include "base/clock.h"
#include "base/signals.h"
#include "comm/launched_shells.h"

using namespace octet;
using namespace octet::testing;

// A rank that is slow to take signals.
TEST_CASE("one rank makes its SignalGuard late, and says which signal it was asked to stop by", "[.late]") {
  fmt::print("up\n");
  std::fflush(stdout);
  ::usleep(200'000);
  {
    const SignalGuard guard;
    for (int i = 0; i < 500 && !guard.stop_requested(); ++i) ::usleep(10'000);
    fmt::print("taken {}\n", guard.stop_reason());
    CHECK(guard.stop_requested());
  }
}

TEST_CASE("ranks that do not end after a failure get SIGTERM, then SIGKILL") {
  LocalLaunch launch = shells(3,
                              "case $OCTET_RANK in\n"
                              "0) trap 'echo rank 0 got TERM; exit 9' TERM; while :; do sleep 0.01; done;;\n"
                              "1) trap '' TERM; while :; do sleep 0.01; done;;\n"
                              "2) sleep 0.2; exit 20;; esac");
  launch.deadlines = {0.3, 0.5, 0};
  const Outcome outcome = outcome_of(launch);
  INFO(outcome.errors);
  CHECK(outcome.code == 20);  // neither of those the launcher ended
  CHECK_THAT(outcome.output, contains_text("rank 0 got TERM"));
  CHECK_THAT(outcome.errors, contains_text("launcher: rank 2 ended with exit code 20\n"));
  CHECK_THAT(outcome.errors, contains_text("launcher: ranks 0, 1 did not end within 0.3 s: SIGTERM\n"));
  CHECK_THAT(outcome.errors,
             contains_text("launcher: rank 1 did not end within 0.5 s of SIGTERM: SIGKILL\n"));
  CHECK(children_of(::getpid()).empty());
}

TEST_CASE("ranks that are stopped are killed as soon as a failure leaves no others, not at the deadlines") {
  const double began = monotonic_seconds();
  const Outcome outcome = outcome_of(
      shells(4, "[ $OCTET_RANK -ge 2 ] && kill -STOP $$; sleep 0.1$OCTET_RANK; exit $((31 * OCTET_RANK))"));
  CHECK(outcome.code == 31);
  CHECK(monotonic_seconds() - began < 100);  // the deadlines are 300 s each
  CHECK_THAT(outcome.errors,
             contains_text("launcher: ranks 2, 3 are stopped and would never end: SIGKILL\n"));
  CHECK(children_of(::getpid()).empty());
}

TEST_CASE("without a failure a rank that is stopped is waited for") {
  const Outcome outcome = outcome_of(
      shells(2, "[ $OCTET_RANK = 1 ] && { (sleep 0.3; kill -CONT $$) & kill -STOP $$; echo on; }; exit 0"));
  CHECK(outcome.code == 0);
  CHECK(outcome.output == "[rank 1] on\n");
}

TEST_CASE("signals to the launcher reach every rank, a second one as well") {
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGUSR2}) {
    INFO(number);
    LauncherProcess process(shells(2,
                                   "n=0; trap 'n=$((n+1)); echo got $n; [ $n = 2 ] && exit 75' TERM INT HUP "
                                   "USR2; echo ready; while :; do sleep 0.01; done"));
    process.output.await("ready\n", 2);
    ::kill(process.pid, number);
    process.output.await("got 1\n", 2);
    ::kill(process.pid, number);
    CHECK(process.wait() == 75);
    const std::string text = process.output.text();
    CHECK_THAT(text, contains_text("[rank 1] got 2\n"));
  }
}

TEST_CASE("a signal that comes before a rank can take it waits for its handlers") {
  LocalLaunch launch = shells(2, "");
  launch.program = std::filesystem::read_symlink("/proc/self/exe");
  launch.arguments = [](int) { return std::vector<std::string>{"late", "[.late]"}; };
  for (const int number : {SIGHUP, SIGUSR2}) {
    INFO(number);
    launch.hold_signals = true;
    LauncherProcess held(launch);
    held.output.await("up\n", 2);
    ::kill(held.pid, number);
    CHECK(held.wait() == 0);
    const std::string text = held.output.text();
    const std::string taken = fmt::format("taken SIG{}\n", sigabbrev_np(number));
    CHECK_THAT(text, contains_text("\n" + taken) && contains_text("[rank 1] " + taken));
    // Negative control: not held back, it kills the rank.
    launch.hold_signals = false;
    LauncherProcess killed(launch);
    killed.output.await("up\n", 2);
    ::kill(killed.pid, number);
    CHECK(killed.wait() == 128 + number);
  }
}

TEST_CASE("SIGUSR1 reaches every rank and the job goes on") {
  LauncherProcess process(shells(
      2, "trap 'echo saved; exit 0' USR1; trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done"));
  process.output.await("ready\n", 2);
  ::kill(process.pid, SIGUSR1);
  CHECK(process.wait() == 0);
  CHECK_THAT(process.output.text(), contains_text("[rank 1] saved\n"));
}

TEST_CASE("ranks are out of the way of the terminal's Ctrl-C: the launcher passes it on once") {
  // Field 5 of /proc/PID/stat is the process group, field 3 after the name.
  const Outcome outcome =
      outcome_of(shells(2, "set -- $(sed 's/.*) //' /proc/$$/stat); [ $3 = $$ ] && echo own group"));
  CHECK_THAT("\n" + outcome.output, contains_text("\nown group\n"));
  CHECK_THAT(outcome.output, contains_text("[rank 1] own group\n"));
}

TEST_CASE("a launcher that is killed takes its ranks with it") {
  // Orphans come to this process, so that none can hide.
  REQUIRE(::prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  std::set<pid_t> ranks;
  {
    LauncherProcess process(shells(3, "trap '' TERM HUP INT; echo ready; while :; do sleep 0.01; done"));
    process.output.await("ready\n", 3);
    ranks = children_of(process.pid);
    CHECK(ranks.size() == 3);
    ::kill(process.pid, SIGKILL);
    CHECK(process.wait() == 137);
    // Each of them ends by SIGKILL, or this waits for ever.
    for (const pid_t rank : ranks) {
      int status = 0;
      REQUIRE(::waitpid(rank, &status, 0) == rank);
      CHECK(WIFSIGNALED(status));
      CHECK(WTERMSIG(status) == SIGKILL);
    }
  }
  // The sleeps that the shells had started end by themselves.
  while (::waitpid(-1, nullptr, 0) > 0) {
  }
  REQUIRE(::prctl(PR_SET_CHILD_SUBREAPER, 0) == 0);
}

TEST_CASE("an ignored SIGHUP (nohup) stays ignored") {
  struct sigaction ignore = {}, former = {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGHUP, &ignore, &former);
  {
    LauncherProcess process(shells(2, "echo ready; sleep 0.3; exit 0"));
    process.output.await("ready\n", 2);
    ::kill(process.pid, SIGHUP);
    CHECK(process.wait() == 0);
  }
  ::sigaction(SIGHUP, &former, nullptr);
}

TEST_CASE("a launcher that starts with SIGCHLD ignored still sees how its ranks end") {
  struct sigaction ignore = {}, former = {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGCHLD, &ignore, &former);
  const int code = outcome_of(shells(2, "exit 3")).code;
  ::sigaction(SIGCHLD, &former, nullptr);
  CHECK(code == 3);
}

TEST_CASE("a signal in the pause before a restart ends the job") {
  LocalLaunch launch = shells(2, "exit 31");
  launch.max_restarts = 1;
  launch.deadlines.before_restart = 300;
  LauncherProcess process(launch);
  process.errors.await("restart 1 of 1", 1);
  ::kill(process.pid, SIGTERM);
  CHECK(process.wait() == 31);
}
