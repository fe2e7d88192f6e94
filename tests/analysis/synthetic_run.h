// Run folders made from formulas, for tests of what reads them.
#pragma once
#include <filesystem>
#include <functional>
#include <random>
#include <string>

#include "analysis/run_history.h"

namespace octet::testing {

struct SyntheticRun {
  std::string name = "bf16";
  int64_t steps = 400;
  std::function<double(int64_t)> gap = [](int64_t) { return 0.0; };  // added to the shared loss curve
  double noise = 0.002;                                              // of the gap, independent between runs
  uint64_t noise_seed = 1;
  double fp8_share = 0;
  std::string input_format = "bf16", init_hash = "00000000000000aa", batch_salt;
  std::string device = "NVIDIA synthetic", data_fingerprint = "train+validation";
  nlohmann::json config = nlohmann::json::object();  // sections beside model and precision
  bool health = false;
  int64_t log_every = 1;  // steps between step records; the last is always there
};

// A falling loss with the noise of the batches, which twins share.
double shared_loss(int64_t step);
RunHistory synthetic_log(const SyntheticRun& run);
void write_synthetic_run(const SyntheticRun& run, const std::filesystem::path& folder);

}  // namespace octet::testing
