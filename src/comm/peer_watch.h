// Rank 0's judgement of its peers: from what was heard of them, and when, it follows who is lost. Plain data
// and a clock that is passed in.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "comm/wire.h"

namespace octet {

// Times in seconds of monotonic_seconds().
class PeerWatch {
 public:
  PeerWatch(std::vector<Peer> peers, const ControlTiming& timing, double now);

  void heard(int rank, const RankStatus& status, double now);  // a heartbeat
  void said_goodbye(int rank, double now);
  // Its connection is closed; a failure unless it said goodbye.
  void closed(int rank, double now);
  // Another rank misses it, for instance because their data connection broke. A rank in trouble is soon gone
  // altogether, so the accusation counts only after a while, and only when nothing better is known by then.
  void suspected(int rank, const std::string& reason, double now);
  // This process itself stood still: nothing could be heard meanwhile.
  void stood_still(double seconds);

  const RankStatus& status(int rank) const { return ranks_[static_cast<size_t>(rank)].status; }
  const Peer& peer(int rank) const { return ranks_[static_cast<size_t>(rank)].peer; }
  bool has_said_goodbye(int rank) const { return ranks_[static_cast<size_t>(rank)].goodbye.has_value(); }
  bool all_said_goodbye() const;
  // "the others: rank 0 step 7 phase forward, ...", for the log.
  std::string table() const;

  // The first rank that is lost, and why; nullopt: none.
  std::optional<RunFailure> judge(double now) const;

 private:
  struct Watched {
    Peer peer;
    RankStatus status;
    double heard = 0;       // last
    double progressed = 0;  // since when its status is what it is
    std::optional<double> goodbye, closed, suspected;
    std::string suspicion;
  };
  bool others_wait(double now) const;
  std::optional<RunFailure> judge_stall(double now) const;
  // How long an accusation waits for a better reason.
  double grace() const { return timing_.deadline_seconds / 10; }

  std::vector<Watched> ranks_;
  ControlTiming timing_;
};

}  // namespace octet
