#include "comm/peer_watch.h"

#include "catch.h"

using namespace octet;

namespace {

constexpr ControlTiming timing{.heartbeat_seconds = 1, .deadline_seconds = 30, .stall_seconds = 300};

PeerWatch three_ranks() {
  std::vector<Peer> peers;
  for (int r = 0; r < 3; ++r)
    peers.push_back({.rank = r, .host = "h", .pid = r, .machine = {}, .network = {}});
  return PeerWatch(peers, timing, 0);
}

RankStatus at(int64_t step, const std::string& waits_in = {}) {
  return {.step = step, .phase = "forward", .progress = static_cast<uint64_t>(step), .waits_in = waits_in};
}

// All ranks' hearts beat, with the status they had.
void beat(PeerWatch& watch, double now) {
  for (int r = 0; r < 3; ++r) watch.heard(r, watch.status(r), now);
}

std::string verdict(const PeerWatch& watch, double now) {
  const auto failure = watch.judge(now);
  return failure ? text_of(*failure) : "";
}

}  // namespace

TEST_CASE("silence is held against a rank after the deadline, not before") {
  PeerWatch watch = three_ranks();
  watch.heard(0, at(5), 20);
  watch.heard(1, at(5), 10);
  watch.heard(2, at(5), 20);
  CHECK(verdict(watch, 40) == "");
  CHECK(verdict(watch, 40.1) ==
        "rank 1 (host h, pid 1) was lost: nothing heard from it for 30 s, at step 5, phase forward");
}

TEST_CASE("the silence of a judge that stood still is nobody's") {
  PeerWatch watch = three_ranks();
  beat(watch, 10);
  watch.stood_still(1000);
  CHECK(verdict(watch, 1039) == "");
  CHECK(verdict(watch, 1041) != "");
}

TEST_CASE("a closed connection without a goodbye is a loss at once, with one it is none") {
  PeerWatch watch = three_ranks();
  watch.said_goodbye(1, 1);
  watch.closed(1, 2);
  CHECK(verdict(watch, 2) == "");
  watch.closed(2, 3);
  CHECK(verdict(watch, 3) ==
        "rank 2 (host h, pid 2) was lost: its connection closed without a goodbye, at step 0, phase startup");
}

TEST_CASE("an accusation waits for a better reason") {
  PeerWatch watch = three_ranks();
  watch.suspected(1, "its data connection to rank 0 is gone", 10);
  beat(watch, 12);
  CHECK(verdict(watch, 13) == "");
  CHECK(verdict(watch, 13.1) ==
        "rank 1 (host h, pid 1) was lost: its data connection to rank 0 is gone, at step 0, phase startup");
  watch.closed(1, 13.1);
  CHECK_THAT(verdict(watch, 13.1), contains_text("its connection closed without a goodbye"));
}

TEST_CASE("a goodbye is held against a rank only when all who are left wait in vain") {
  PeerWatch watch = three_ranks();
  watch.heard(0, at(9, "all_reduce"), 1);
  watch.heard(1, at(9), 1);
  watch.heard(2, at(9), 1);
  watch.said_goodbye(2, 2);
  beat(watch, 60);
  CHECK(verdict(watch, 60) == "");  // rank 0 may wait for rank 1
  watch.heard(1, at(9, "all_reduce"), 61);
  beat(watch, 91);
  CHECK(verdict(watch, 91) == "");
  CHECK(verdict(watch, 91.1) ==
        "rank 2 (host h, pid 2) left the run while others still needed it, at step 9, phase forward");
}

TEST_CASE("no progress is held against a rank only while another waits for it") {
  PeerWatch watch = three_ranks();
  for (int r = 0; r < 3; ++r) watch.heard(r, at(4), 1);
  beat(watch, 400);
  CHECK(verdict(watch, 400) == "");  // a long evaluation on all ranks
  watch.heard(1, at(5, "gradients"), 401);
  beat(watch, 701);
  CHECK(verdict(watch, 701) == "");
  CHECK(verdict(watch, 701.1) ==
        "rank 0 (host h, pid 0) hangs: no progress for 11m 40s, while rank 1 waits for it in "
        "gradients, at step 4, phase forward");
  watch.heard(0, at(5), 702);  // it got on
  CHECK_THAT(verdict(watch, 702), contains_text("rank 2 (host h, pid 2) hangs"));
}

TEST_CASE("ranks that all wait are told what each waits in") {
  PeerWatch watch = three_ranks();
  for (int r = 0; r < 3; ++r) watch.heard(r, at(4, r == 0 ? "a" : "b"), 1);
  beat(watch, 301);
  CHECK(verdict(watch, 301) == "");
  CHECK_THAT(verdict(watch, 301.1),
             contains_text("rank 0 step 4 phase forward (waits in a), rank 1 step 4 phase "
                           "forward (waits in b)"));
}
