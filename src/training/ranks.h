// The ranks of a run: this process's place, the connections to the others, their collectives. Alone there are
// none, and everything here returns at once.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/control_plane.h"
#include "comm/launch.h"
#include "config/run_config.h"
#include "device/device.h"

namespace octet {

class Ranks {
 public:
  // Meets the others: Error(PeerLost) naming who is missing, Error(Usage) naming what they disagree on.
  // `device` is the one of this rank. With NCCL where it is a GPU and the program has it, else over sockets.
  Ranks(const Launch& launch, const Agreement& agreement, const ParallelOptions& parallel, Device& device);
  ~Ranks();
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  int rank() const { return rank_; }
  int count() const { return count_; }
  bool alone() const { return count_ == 1; }
  bool leads() const { return rank_ == 0; }           // decides about the run's folder and writes its logs
  ControlPlane* control() { return control_.get(); }  // null when alone
  Communicator* communicator() { return communicator_.get(); }  // null when alone

  Traffic take_traffic();  // since the last call
  void set_phase(const char* phase, int64_t step);
  void check() const;  // Error(PeerLost) once another rank has failed
  // Rank 0's text on every rank. `name` is used once.
  std::string from_leader(const std::string& name, const std::string& mine);
  std::vector<std::string> all(const std::string& name, const std::string& mine);  // everybody's, by rank
  void finish();                                   // goodbye: this rank's work is done
  void abort(const std::string& reason) noexcept;  // the others need not find out by themselves

 private:
  int rank_ = 0, count_ = 1;
  std::unique_ptr<ControlPlane> control_;
  std::unique_ptr<Communicator> communicator_;
  Traffic taken_;
};

}  // namespace octet
