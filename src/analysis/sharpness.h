// `octet sharpness`: epsilon-sharpness of the logits, of a checkpoint or along a run.
//
// [Lee et al. 2405.18710: sharpness of the last token's logits rises before a low-precision run diverges.
// numerics/sharpness.h has the formula.] The forward pass is that of the run, in its precision; its logits
// are not rounded. The sequences are the first windows of the validation shards in an order that does not
// depend on the run, so the numbers of several runs are of the same text.
#pragma once
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "analysis/run_history.h"

namespace octet {

struct SharpnessRequest {
  std::filesystem::path path;          // a run's folder, or one checkpoint
  std::vector<std::string> overrides;  // of the configuration in the checkpoint
  std::vector<std::string> data;       // shards; empty: the run's validation shards, or its training shards
  int64_t sequences = 64;
  std::vector<double> epsilons{5e-4, 1e-3};
  std::string device = "auto";
};

struct SharpnessResult {
  int64_t sequences = 0;  // no more than there are
  std::vector<std::string> data;
  std::vector<SharpnessRecord> points;
};

// `measured` is called after each checkpoint, with its points.
SharpnessResult measure_sharpness(const SharpnessRequest& request,
                                  const std::function<void(std::span<const SharpnessRecord>)>& measured = {});
Json to_json(const SharpnessResult& result);

}  // namespace octet
