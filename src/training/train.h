// Trains one run from its configuration to its last step, or until asked to stop.
#pragma once
#include <functional>
#include <string>

#include "base/error.h"
#include "config/run_config.h"

namespace octet {

struct ResumePolicy {
  enum class Kind : uint8_t { Never, Auto, Require, Path } kind = Kind::Auto;
  std::string path;
};
struct TrainRequest {
  RunConfig config;
  std::string device = "auto";  // auto, cpu, cuda
  ResumePolicy resume;
  bool overwrite = false;  // start afresh in a folder that holds another run (F05)
  std::string stop_after;  // tests and drills: fault injection, see docs/operations.md
};
struct TrainResult {
  ExitCode code = ExitCode::Success;
  int64_t step = 0;
  double final_loss = 0, validation_loss = 0;
  std::string folder, reason;
};

TrainResult train(const TrainRequest& request);

}  // namespace octet
