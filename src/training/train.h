// Trains one run from its configuration to its last step, or until asked to stop.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/launch.h"
#include "config/run_config.h"

namespace octet {

struct ResumePolicy {
  enum class Kind : uint8_t { Never, Auto, Require, Path } kind = Kind::Auto;
  std::string path;
};
struct TrainRequest {
  RunConfig config;
  std::string device = "auto";  // auto, cpu, cuda, interpreter
  ResumePolicy resume;
  bool overwrite = false;                // start afresh in a folder that holds another run (F05)
  bool accept_changed_data = false;      // resume although the shards are not those of the checkpoint (F11)
  std::vector<std::string> inject = {};  // tests and drills: faults on demand, training/inject.h
  bool quiet = false;                    // no progress lines
  Launch launch = {};                    // which of how many ranks this process is
};
struct TrainResult {
  ExitCode code = ExitCode::Success;
  int64_t step = 0;
  double final_loss = 0;
  double validation_loss = 0;  // of this very step; 0: it was not evaluated
  std::string folder, reason;
  int64_t newest_checkpoint = -1;  // step of the newest one of this folder known whole; -1: none
  // Of several ranks: what a step sent and waited for, on average, as one sentence.
  std::string communication = {};
  std::vector<std::string> fallbacks = {};  // linears that left FP8, a sentence each
};

// Returns with Success, Stopped, StoppedUnsaved, Numerics (diverged) or Checkpoint (finished, last save
// failed); throws Error for everything found before or beside the numbers. status.json says the same.
TrainResult train(const TrainRequest& request);

}  // namespace octet
