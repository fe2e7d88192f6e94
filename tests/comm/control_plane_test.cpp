#include "comm/control_plane.h"

#include <fmt/format.h>

#include "ranks.h"

using namespace octet;

TEST_CASE("ranks meet, know each other, gather, broadcast and leave together") {
  for (const int ranks : {1, 2, 4}) {
    const auto results = run_as_threads(ranks, [&](const Launch& launch) {
      ControlPlane control(launch, {}, quick_options(launch));
      std::string text = fmt::format("{} of {}:", control.rank(), control.ranks());
      for (const Peer& peer : control.peers()) text += " " + peer.host;
      for (int round = 0; round < 3; ++round)
        for (const std::string& value : control.all_gather("names", fmt::format("{}{}", launch.rank, round)))
          text += " " + value;
      text += " " + control.broadcast("id", fmt::format("from{}", launch.rank), ranks - 1);
      control.barrier("the end");
      control.finish();
      return text;
    });
    for (int r = 0; r < ranks; ++r) {
      std::string expected = fmt::format("{} of {}:", r, ranks);
      for (int other = 0; other < ranks; ++other) expected += fmt::format(" host{}", other);
      for (int round = 0; round < 3; ++round)
        for (int other = 0; other < ranks; ++other) expected += fmt::format(" {}{}", other, round);
      CHECK(results[static_cast<size_t>(r)] == expected + fmt::format(" from{}", ranks - 1));
    }
  }
}

TEST_CASE("a blob of megabytes passes whole") {
  const auto results = run_as_threads(3, [](const Launch& launch) {
    ControlPlane control(launch, {}, quick_options(launch));
    const std::string mine(static_cast<size_t>(3 << 20) + static_cast<size_t>(launch.rank),
                           static_cast<char>('a' + launch.rank));
    const auto all = control.all_gather("big", mine);
    control.finish();
    for (size_t r = 0; r < 3; ++r)
      if (all[r] != std::string((3u << 20) + r, static_cast<char>('a' + r))) return std::string("differs");
    return std::string("whole");
  });
  CHECK(results == std::vector<std::string>(3, "whole"));
}

TEST_CASE("a request of any one rank is every rank's at the same step") {
  // Rank 2 asks to stop in the middle of step 3 and rank 1 to save in step 2; both after they proposed.
  const auto results = run_as_threads(3, [](const Launch& launch) {
    ControlPlane control(launch, {}, quick_options(launch));
    std::string text;
    for (int64_t step = 0; step < 100; ++step) {
      control.propose(step);
      if (launch.rank == 1 && step == 2) control.request_save();
      if (launch.rank == 2 && step == 3) control.request_stop("SIGTERM");
      const Requests requests = control.agreed(step);
      if (requests.save) text += fmt::format("save {} ", step);
      if (requests.stop) {
        text += fmt::format("stop {}: {}", step, requests.stop_reason);
        break;
      }
    }
    control.finish();
    return text;
  });
  CHECK(results == std::vector<std::string>(3, "save 3 stop 4: SIGTERM (rank 2)"));
}

TEST_CASE("one rank alone has its own requests") {
  ControlPlane control(Launch{}, {}, {});
  control.propose(1);
  CHECK_FALSE(control.agreed(1).stop);
  control.request_stop("SIGINT");
  control.propose(2);
  CHECK(control.agreed(2).stop_reason == "SIGINT");
  control.set_phase("save", 2);
  control.check();
  control.finish();
}

TEST_CASE("a rank that gives up takes the others out of their waits, with its reason, step and phase") {
  const auto results = run_as_threads(3, [](const Launch& launch) {
    ControlPlane control(launch, {}, quick_options(launch));
    control.set_phase("save", 37);
    control.barrier("all are in step 37");
    if (launch.rank == 1) {
      control.abort("no space left on the disk");
      return std::string("gave up");
    }
    control.barrier("never");
    return std::string("passed");
  });
  CHECK(results[1] == "gave up");
  for (const size_t r : {0, 2})
    CHECK_THAT(results[r], contains_text("exit 31: rank 1 (host host1, pid ") &&
                               contains_text("gave up: no space left on the disk, at step 37, phase save"));
}

TEST_CASE("a rank that ends its run early without a word is named by its destructor") {
  for (const int early : {0, 1}) {
    const auto results = run_as_threads(2, [&](const Launch& launch) {
      ControlPlane control(launch, {}, quick_options(launch));
      control.set_phase("validate", 5);
      if (launch.rank == early) return std::string("left");
      control.barrier("never");
      return std::string("passed");
    });
    CHECK_THAT(results[static_cast<size_t>(1 - early)],
               contains_text(fmt::format("rank {} (host host{}", early, early)) &&
                   contains_text("ended without finishing the run, at step 5, phase validate"));
  }
}

TEST_CASE("a goodbye while the others still need the rank is a failure, one before the others' is none") {
  const auto run = [](bool early) {
    return run_as_threads(3, [&](const Launch& launch) {
      ControlPlane control(launch, {}, quick_options(launch));
      control.set_phase("forward", 8);
      if (launch.rank != 1 && early) control.barrier("step 8");
      if (launch.rank == 2) poll(nullptr, 0, 300);  // later than the others: longer than a goodbye's grace
      control.finish();
      return std::string("finished");
    });
  };
  for (const std::string& result : run(true))
    CHECK_THAT(
        result,
        contains_text("exit 31: rank 1 (host host1") &&
            contains_text("left the run while others still needed it for step 8, at step 8, phase forward"));
  CHECK(run(false) == std::vector<std::string>(3, "finished"));
}

TEST_CASE("a rank that hangs while its heart beats is named once others have waited for it too long") {
  const auto results = run_as_threads(3, [](const Launch& launch) {
    ControlOptions options = quick_options(launch);
    options.rendezvous.timing.stall_seconds = 0.5;
    ControlPlane control(launch, {}, options);
    control.set_phase("backward", 12);
    if (launch.rank == 2) {
      pollfd until_failure{control.failure_fd(), POLLIN, 0};
      poll(&until_failure, 1, 60000);  // hangs, for a test
      control.check();
    }
    control.barrier("gradients");
    return std::string("passed");
  });
  for (const std::string& result : results)
    CHECK_THAT(result, contains_text("rank 2 (host host2") && contains_text("hangs: no progress for") &&
                           contains_text("waits for it in gradients, at step 12, phase backward"));
}

TEST_CASE("ranks that wait for different things are told so, with what each waits in") {
  const auto results = run_as_threads(2, [](const Launch& launch) {
    ControlOptions options = quick_options(launch);
    options.rendezvous.timing.stall_seconds = 0.4;
    ControlPlane control(launch, {}, options);
    control.barrier(launch.rank == 0 ? "before the save" : "after the save");
    return std::string("passed");
  });
  for (const std::string& result : results)
    CHECK_THAT(result, contains_text("waits in before the save") && contains_text("waits in after the save"));
}

TEST_CASE("a killed, a stopped and an exiting process are named with host, step and phase") {
  struct Case {
    const char* how;
    const char* reason;
  };
  for (const int victim : {0, 2})
    for (const Case& what :
         {Case{"kill", "was lost: its connection closed without a goodbye, at step 37, phase save"},
          Case{"stop", "was lost: nothing heard from it for"},
          Case{"exit", "was lost: its connection closed without a goodbye, at step 37, phase save"}}) {
      RankProcesses processes(3, [&](const Launch& launch) {
        ControlOptions options = quick_options(launch);
        if (what.how[0] == 's') options.rendezvous.timing.deadline_seconds = 1;
        ControlPlane control(launch, {}, options);
        control.set_phase("forward", 37);
        control.barrier("step 37");
        control.set_phase("save", 37);
        if (launch.rank == victim) {
          if (what.how[0] == 'k') raise(SIGKILL);
          if (what.how[0] == 's') raise(SIGSTOP);
          _exit(0);
        }
        control.barrier("saved");
        return std::string("passed");
      });
      for (int r = 0; r < 3; ++r) {
        if (r == victim) continue;
        INFO(what.how << " of rank " << victim << ", seen by rank " << r);
        const std::string result = processes.result(r);
        CHECK_THAT(result, contains_text(fmt::format("exit 31: rank {} (host host{}, pid {})", victim, victim,
                                                     processes.pid(victim))) &&
                               contains_text(what.reason) && contains_text("at step 37, phase save"));
      }
    }
}

TEST_CASE("a process whose main thread hangs after the run failed leaves by itself with 31") {
  RankProcesses processes(2, [](const Launch& launch) {
    ControlOptions options = quick_options(launch);
    options.leave_seconds = 0.2;
    ControlPlane control(launch, {}, options);
    control.barrier("begin");
    if (launch.rank == 1) raise(SIGKILL);
    poll(nullptr, 0, 60000);
    return std::string("still here");
  });
  CHECK(processes.result(0).empty());
  CHECK(processes.exit_code(0) == 31);
}
