// The connections between the ranks of a run besides their data: who is there, what each does, requests to
// stop and save, and the news that one is lost.
//
// The constructor is the rendezvous (rendezvous.h). From then on a thread of each process keeps the
// connection to rank 0: a heartbeat with step and phase every second, and whatever the methods below send.
// Rank 0 judges (peer_watch.h): a rank whose connection closes without a goodbye, that is silent for
// deadline_seconds, that says goodbye while the others wait for it, that others wait for and that makes no
// progress for stall_seconds, or that gives up, is the failure of the run. Every rank learns who, on which
// host, at which step and phase, and why; whoever waits here or in a collective gets that as Error(PeerLost),
// and check() throws it.
//
// How a trainer uses it:
//
//   ControlPlane control(launch, agreement, options);
//   try {
//     for (step...) {
//       control.propose(step);                  // carries this rank's stop and save requests; does not wait
//       control.set_phase("forward", step); ...
//       const Requests requests = control.agreed(step);  // the same on every rank: all save, and stop, after
//       this step
//     }
//     control.finish();                         // goodbye; waits for everybody's
//   } catch (const std::exception& error) {
//     control.abort(error.what());              // the others need not find out by themselves
//     throw;
//   }
//
// No rank can stop a step earlier than another: rank 0 folds the requests of one step only when every rank
// has proposed for that step, and all get the same answer. A request made after propose(step) acts on step
// + 1.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/agreement.h"
#include "comm/launch.h"
#include "comm/peer_watch.h"
#include "comm/rendezvous.h"
#include "comm/socket.h"
#include "comm/wire.h"

namespace octet {

struct ControlOptions {
  RendezvousOptions rendezvous;  // .timing: heartbeats and deadlines
  // A process that is still here so long after the run failed, because its main thread hangs, leaves with
  // exit code 31 and the reason on standard error. 0: never.
  double leave_seconds = 60;
};

// What all ranks do after a step.
struct Requests {
  bool stop = false, save = false;
  std::string stop_reason;  // "SIGTERM (rank 3)"
};

class ControlPlane {
 public:
  ControlPlane(const Launch& launch, const Agreement& agreement, const ControlOptions& options = {});
  // Without finish() the others are told that this rank ended early.
  ~ControlPlane();
  ControlPlane(const ControlPlane&) = delete;
  ControlPlane& operator=(const ControlPlane&) = delete;

  int rank() const { return rank_; }
  int ranks() const { return static_cast<int>(peers_.size()); }
  const std::vector<Peer>& peers() const { return peers_; }  // by rank

  // What this rank does, for the others' error messages. Has left this process when it returns (rank 0 of
  // more than 16: with its next heartbeat).
  void set_phase(const std::string& phase, int64_t step);
  // A sign of life of the main thread within a phase longer than stall_seconds. Costs a lock.
  void progress();

  // Of this rank; any thread.
  void request_stop(const std::string& reason);
  void request_save();
  void propose(int64_t step);
  Requests agreed(int64_t step);

  // This rank cannot go on. Does not throw. `code`: of the error that this rank's own calls throw from now
  // on.
  void abort(const std::string& reason, ExitCode code = ExitCode::PeerLost) noexcept;
  // Throws once the run has failed. To be called where a long phase can be left; one atomic load.
  void check() const;
  std::optional<RunFailure> failure() const;
  int failure_fd() const { return failed_event_.fd(); }  // readable once the run has failed, for poll()
  // For a communicator whose connection to `rank` broke: throws why that rank is gone, once that is known.
  [[noreturn]] void peer_gone(int rank, const std::string& observation);

  // Small collectives. Parts of equal name belong together; up to a MiB or so each.
  std::vector<std::string> all_gather(const std::string& name, const std::string& mine);  // by rank
  std::string broadcast(const std::string& name, const std::string& mine, int root);
  void barrier(const std::string& name);

  // This rank's work is done. Returns when every rank's is; throws when one is lost before.
  void finish();

  // While it lives this rank waits for others in an operation.
  class Waiting {
   public:
    Waiting(ControlPlane& control, std::string operation);
    ~Waiting();
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    ControlPlane& control_;
  };

  // This process's own address on the way to rank 0, and rank 0's as seen from here; nullopt with one rank.
  std::optional<SocketAddress> local_address() const { return local_address_; }
  std::optional<SocketAddress> rank_0_address() const { return rank_0_address_; }
  const ControlTiming& timing() const { return timing_; }

 private:
  using Bytes = std::shared_ptr<const std::string>;  // one copy, however many ranks it goes to
  struct Link {
    PeerLink peer;
    std::deque<Bytes> unsent;  // in order
    size_t sent_of_first = 0;
    double heard = 0;
  };
  // Of one name, at rank 0, until the last rank's is here.
  struct Collection {
    CollectKind kind;
    uint32_t root;
    std::vector<std::optional<std::string>> values;
    size_t count = 0;
  };

  // Everything below is called with mutex_ held, but for serve().
  // control_plane.cpp
  void send(Link& link, std::string bytes);
  void send_to_all(std::string bytes);
  void send_status();
  void fail(const RunFailure& failure);
  [[noreturn]] void throw_failure() const;
  void contribute(const Contribution& part);
  std::vector<std::string> await(std::unique_lock<std::mutex>& lock, const std::string& name);
  std::vector<std::string> collect(const Contribution& part);

  // control_loop.cpp
  void serve();  // the thread
  bool serve_once(double& next_beat);
  void read(Link& link, double now);
  void handle_all(Link& link, double now);
  void handle_at_rank_0(Link& link, const Frame& frame, double now);
  void handle_from_rank_0(const Frame& frame);
  void collected_from(int rank, const Contribution& part);
  void closed(Link& link, double now);
  void judge(double now);
  void leave_if_stuck(double now);
  void send_unsent(Link& link);
  void check_goodbyes();
  bool is_over(double now);

  int rank_;
  std::vector<Peer> peers_;
  ControlTiming timing_;
  double leave_seconds_;
  std::optional<SocketAddress> local_address_, rank_0_address_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Link> links_;
  std::optional<PeerWatch> watch_;  // rank 0's
  RankStatus own_, rank_0_;
  std::vector<std::string> waits_;
  std::map<std::string, Collection> collections_;              // rank 0's
  std::map<std::string, std::vector<std::string>> collected_;  // not yet asked for
  Requests own_requests_;
  std::optional<RunFailure> failure_;
  ExitCode failure_code_ = ExitCode::PeerLost;
  double failed_at_ = 0;
  bool said_goodbye_ = false, farewell_ = false;
  std::optional<double> closing_;  // the destructor runs, since when
  std::atomic<bool> has_failed_{false};
  WakeEvent wake_, failed_event_;
  std::thread thread_;  // last: uses all of the above
};

}  // namespace octet
