#include "comm/local_launcher.h"

#include <sys/socket.h>

#include <filesystem>

#include "comm/launched_shells.h"
#include "comm/rank_output.h"
#include "comm/variables.h"

using namespace octet;
using namespace octet::testing;

TEST_CASE("every rank knows its place, the job, the meeting place and its share of the cores") {
  ::unsetenv("OMP_NUM_THREADS");
  const std::string script =
      "echo place=$OCTET_RANK/$OCTET_RANKS local=$OCTET_LOCAL_RANK/$OCTET_LOCAL_RANKS at=$OCTET_RENDEZVOUS "
      "job=$OCTET_JOB restart=$OCTET_RESTART threads=$OMP_NUM_THREADS fd=${OCTET_RENDEZVOUS_FD:-none}.";
  const Outcome outcome = outcome_of(shells(3, script));
  CHECK(outcome.code == 0);
  CHECK(outcome.errors.empty());
  std::set<std::string> shared;
  for (int rank = 0; rank < 3; ++rank) {
    const std::string prefix = rank == 0 ? "" : fmt::format("[rank {}] ", rank);
    const std::string begins = fmt::format("{0}place={1}/3 local={1}/3 at=127.0.0.1:", prefix, rank);
    const size_t at = outcome.output.find(begins);
    INFO(outcome.output);
    REQUIRE(at != std::string::npos);
    CHECK((at == 0 || outcome.output[at - 1] == '\n'));
    const std::string line = outcome.output.substr(at, outcome.output.find('\n', at) - at);
    const size_t port = line.find("at="), descriptor = line.find(" fd=");
    shared.insert(line.substr(port, descriptor - port));
    CHECK((line.substr(descriptor) == " fd=none.") == (rank > 0));
    CHECK_THAT(line, contains_text(" restart=0 threads="));
    CHECK(line.find("threads= ") == std::string::npos);
  }
  CHECK(shared.size() == 1);  // the same for all
  // Another start is another job.
  const std::string again = outcome_of(shells(1, script)).output;
  CHECK(again.find(shared.begin()->substr(0, shared.begin()->find(" restart"))) == std::string::npos);
  // A number of threads that the user has chosen stays.
  ::setenv("OMP_NUM_THREADS", "7", 1);
  CHECK_THAT(outcome_of(shells(2, "echo threads=$OMP_NUM_THREADS.")).output,
             contains_text("[rank 1] threads=7."));
  ::unsetenv("OMP_NUM_THREADS");
}

TEST_CASE("the meeting place is listened on from the start, by a socket of rank 0 alone") {
  // bash connects through /dev/tcp. Rank 1 comes while rank 0 has not accepted anything, and again when rank
  // 0 has gone: the launcher keeps nothing open.
  char folder[] = "/tmp/octet-launcher-XXXXXX";
  REQUIRE(::mkdtemp(folder));
  LocalLaunch launch = shells(2, "");
  const std::string script = fmt::format(
      "connect() {{ (: < /dev/tcp/${{OCTET_RENDEZVOUS/:/\\/}}) 2> /dev/null; }}\n"
      "if [ $OCTET_RANK = 0 ]; then\n"
      "  readlink /proc/self/fd/$OCTET_RENDEZVOUS_FD\n"
      "  until [ -e {0}/met ]; do sleep 0.01; done; echo $$ > {0}/pid\n"
      "else\n"
      "  ls -l /proc/self/fd | grep socket: || echo no socket\n"
      "  connect && echo connected; touch {0}/met\n"
      "  until [ -s {0}/pid ]; do sleep 0.01; done; while kill -0 $(cat {0}/pid) 2> /dev/null; do sleep "
      "0.01; done\n"
      "  connect || echo refused\n"
      "fi",
      folder);
  launch.program = "/bin/bash";
  launch.arguments = [&](int) { return std::vector<std::string>{"bash", "-c", script}; };
  const Outcome outcome = outcome_of(launch);
  INFO(outcome.output << outcome.errors);
  CHECK(outcome.code == 0);
  CHECK_THAT(outcome.output, contains_text("socket:["));
  for (const char* line : {"[rank 1] no socket\n", "[rank 1] connected\n", "[rank 1] refused\n"})
    CHECK_THAT(outcome.output, contains_text(line));
  std::filesystem::remove_all(folder);
}

TEST_CASE("lines of the other ranks have their rank before them, on both streams, and arrive whole") {
  const Outcome outcome =
      outcome_of(shells(3, "printf 'one\\n\\nlast without end'; printf 'a warning\\n' >&2"));
  CHECK(outcome.code == 0);
  for (const char* rank : {"[rank 1] ", "[rank 2] "}) {
    CHECK_THAT(outcome.output, contains_text(fmt::format("{0}one\n", rank)));
    CHECK_THAT(outcome.output, contains_text(fmt::format("{0}\n", rank)));
    CHECK_THAT(outcome.output, contains_text(fmt::format("{0}last without end\n", rank)));
    CHECK_THAT(outcome.errors, contains_text(fmt::format("{0}a warning\n", rank)));
  }
  CHECK(outcome.output.find("[rank 0]") == std::string::npos);
  CHECK(outcome.output.find("a warning") == std::string::npos);
}

TEST_CASE("much output of many ranks is neither lost nor torn") {
  // 4 x 3000 lines of 100 bytes: more than every pipe and buffer on the way holds.
  Capture output;
  LocalLaunch launch = shells(5,
                              "[ $OCTET_RANK = 0 ] && exit 0\ni=0\nwhile [ $i -lt 3000 ]; do\n"
                              "printf '%s %099d\\n' x$OCTET_RANK $i; i=$((i+1)); done");
  LauncherProcess process(launch);
  std::string text = process.output.text();
  CHECK(process.wait() == 0);
  size_t lines = 0, whole = 0;
  for (size_t at = 0; at < text.size(); ++lines) {
    const size_t end = text.find('\n', at);
    REQUIRE(end != std::string::npos);
    const std::string line = text.substr(at, end - at);
    whole += line.size() == 9 + 3 + 99 && line.substr(0, 6) == "[rank " && line[6] == line[10];
    at = end + 1;
  }
  CHECK(lines == 12000);
  CHECK(whole == 12000);
}

TEST_CASE("prefixed lines: pieces are joined, long lines are cut") {
  PrefixedLines lines(3);
  CHECK(lines.take("ab").empty());
  CHECK(lines.take("c\nd\n\ne") == "[rank 3] abc\n[rank 3] d\n[rank 3] \n");
  CHECK(lines.rest() == "[rank 3] e\n");
  CHECK(lines.rest().empty());
  const std::string cut = lines.take(std::string((16 << 10) + 5, 'x'));
  CHECK(cut == "[rank 3] " + std::string(16 << 10, 'x') + "\n");
  CHECK(lines.take("\n") == "[rank 3] xxxxx\n");
}

TEST_CASE("output that nobody reads any more stops no rank") {
  Capture kept;
  LocalLaunch launch = shells(2,
                              "trap '' PIPE; i=0; while [ $i -lt 20000 ]; do echo $OCTET_RANK $i "
                              "2>/dev/null; i=$((i+1)); done; exit 5");
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  ::close(ends[0]);
  launch.output = ends[1];
  launch.errors = kept.writer();
  CHECK(launch_local(launch) == 5);
  ::close(ends[1]);
}

TEST_CASE("one exit code: the one all agree on, or that of the rank that failed by itself") {
  struct Case {
    const char* name;
    std::vector<RankEnd> ends;
    int code, rank;
  };
  const std::vector<Case> cases = {
      {"all finished", {{1, 0}, {0, 0}}, 0, -1},
      {"all stopped on request", {{0, 75}, {1, 75}}, 75, -1},
      {"all refused the same", {{0, 2}, {1, 2}}, 2, -1},
      {"the others lost a peer later", {{2, 3}, {0, 31}, {1, 31}}, 3, 2},
      {"the others lost a peer earlier", {{0, 31}, {1, 31}, {2, 139}}, 139, 2},
      {"the first of two failures", {{1, 20}, {0, 3}}, 20, 1},
      {"killed", {{1, 137}, {0, 31}}, 137, 1},
      {"killed by the launcher", {{1, 31}, {0, 137, true}}, 31, 1},
      {"terminated by the launcher after a failure", {{1, 4}, {0, 143, true}, {2, 76, true}}, 4, 1},
      {"ended with 0 too early", {{1, 0}, {0, 31}, {2, 31}}, 31, 0},
      {"stopped, and its peers found it gone", {{0, 75}, {1, 31}}, 31, 1},
      {"finished and stopped", {{0, 0}, {1, 75}}, 75, 1},
      {"one could not save", {{0, 75}, {1, 76}}, 76, 1},
  };
  for (const Case& c : cases) {
    INFO(c.name);
    CHECK(judge(c.ends).code == c.code);
    CHECK(judge(c.ends).rank == c.rank);
  }
}

TEST_CASE("the exit code of the ranks is the launcher's, a signal's is 128 and its number") {
  CHECK(outcome_of(shells(3, "exit 0")).code == 0);
  CHECK(outcome_of(shells(3, "exit 75")).code == 75);
  CHECK(outcome_of(shells(3, "[ $OCTET_RANK = 2 ] && exit 3; exit 31")).code == 3);
  const Outcome killed = outcome_of(shells(2, "[ $OCTET_RANK = 1 ] && kill -SEGV $$; exit 31"));
  CHECK(killed.code == 139);
  CHECK_THAT(killed.errors, contains_text("launcher: rank 1 was killed by SIGSEGV\n"));
}

TEST_CASE("ranks are started again after a failure that may pass, and told how often") {
  LocalLaunch launch = shells(2, "");
  std::vector<int> asked;
  launch.arguments = [&](int restart) {
    asked.push_back(restart);
    return std::vector<std::string>{
        "sh", "-c",
        fmt::format("echo start {} env $OCTET_RESTART $OCTET_JOB; [ $OCTET_RESTART -lt 2 ] && [ $OCTET_RANK "
                    "= 1 ] && kill -KILL $$; "
                    "[ $OCTET_RESTART -lt 2 ] && exit 31; exit 0",
                    restart)};
  };
  launch.max_restarts = 5;
  const Outcome outcome = outcome_of(launch);
  INFO(outcome.errors);
  CHECK(outcome.code == 0);
  CHECK(asked == std::vector<int>{0, 1, 2});
  for (int restart = 0; restart < 3; ++restart)
    CHECK_THAT(outcome.output, contains_text(fmt::format("[rank 1] start {0} env {0} ", restart)));
  CHECK_THAT(
      outcome.errors,
      contains_text("launcher: rank 1 was killed by SIGKILL; starting all 2 ranks again (restart 1 of 5)\n"));
  CHECK_THAT(outcome.errors, contains_text("(restart 2 of 5)\n"));
  CHECK(outcome.errors.find("(restart 3 of 5)") == std::string::npos);
  // Each start is a job of its own.
  std::set<std::string> jobs;
  for (size_t at = 0; (at = outcome.output.find("env ", at)) != std::string::npos; ++at)
    jobs.insert(outcome.output.substr(at + 6, 32));
  CHECK(jobs.size() == 3);
}

TEST_CASE("restarts are for failures that may pass, are counted, and not against the user's will") {
  for (const int code : {31, 30, 128 + SIGKILL, 128 + SIGSEGV, 128 + SIGABRT, 128 + SIGBUS})
    CHECK(worth_a_restart(code));
  for (const int code :
       {0, 2, 3, 4, 20, 70, 75, 76, 128 + SIGTERM, 128 + SIGINT, 128 + SIGHUP, 128 + SIGQUIT})
    CHECK_FALSE(worth_a_restart(code));
  const auto starts = [](const std::string& text) {
    size_t count = 0;
    for (size_t at = 0; (at = text.find("started", at)) != std::string::npos; ++at) ++count;
    return count;
  };
  LocalLaunch launch = shells(1, "echo started; exit 31");
  launch.max_restarts = 2;
  const Outcome used_up = outcome_of(launch);
  CHECK(used_up.code == 31);
  CHECK(starts(used_up.output) == 3);
  launch.arguments = [](int) { return std::vector<std::string>{"sh", "-c", "echo started; exit 20"}; };
  CHECK(starts(outcome_of(launch).output) == 1);
  // Asked to stop, and killed while at it: it stays down.
  LocalLaunch stopped = shells(2, "trap 'kill -KILL $$' TERM; echo ready; while :; do sleep 0.01; done");
  stopped.max_restarts = 3;
  LauncherProcess process(stopped);
  process.output.await("ready\n", 2);
  ::kill(process.pid, SIGTERM);
  CHECK(process.wait() == 137);
  CHECK(process.errors.text().find("again") == std::string::npos);
}

TEST_CASE("a program that cannot be started is an error, and no rank is left") {
  LocalLaunch launch = shells(3, "");
  launch.program = "/nonexistent/octet";
  CHECK_THAT(error_of([&] { launch_local(launch); }),
             contains_text("2: rank 0: /nonexistent/octet cannot be started: No such file"));
  CHECK(children_of(::getpid()).empty());
}

TEST_CASE("when all is over there is no child, no zombie and no descriptor left") {
  const auto descriptors = [] {
    std::set<std::string> open;
    DIR* folder = ::opendir("/proc/self/fd");
    REQUIRE(folder);
    while (const dirent* entry = ::readdir(folder)) open.insert(entry->d_name);
    ::closedir(folder);
    return open;
  };
  sigset_t before, after;
  ::sigprocmask(SIG_BLOCK, nullptr, &before);
  const auto open_before = descriptors();
  // Any of the three that fail may be the first.
  CHECK(outcome_of(shells(4, "exit $((OCTET_RANK > 0))")).code == 1);
  CHECK(descriptors() == open_before);
  CHECK(children_of(::getpid()).empty());
  ::sigprocmask(SIG_BLOCK, nullptr, &after);
  for (const int number : {SIGINT, SIGTERM, SIGCHLD, SIGTSTP})
    CHECK(::sigismember(&before, number) == ::sigismember(&after, number));
}
