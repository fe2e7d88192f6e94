// `octet compare`: trains the twins one after the other, then judges them; or judges two runs that exist.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "analysis/comparison.h"
#include "config/run_config.h"

namespace octet {

struct CompareRequest {
  RunConfig config;                   // run.output becomes the comparison's folder
  std::vector<std::string> variants;  // recipe names, the first is the baseline
  int seeds = 1;                      // runs of the baseline that make the noise band
  std::string device = "auto";
  std::vector<std::string> inject = {};  // into the state of every run (training/state_injection.h)
};

// The precision section a variant name stands for: the configuration's own when it is that recipe, otherwise
// the named recipe.
Recipe recipe_of_variant(const RunConfig& config, const std::string& variant);

// Trains what is not finished (interrupted runs go on where they stopped), writes report.html and report.json
// into run.output. Refuses a folder with a run of another configuration, whatever octet train would allow.
// Returns the exit code of the worst verdict, or 75/76 when training was interrupted.
int compare(const CompareRequest& request);
// An empty `output`: the folder VARIANT-against-BASELINE beside the variant.
int compare_finished(const std::filesystem::path& baseline, const std::filesystem::path& variant,
                     const std::filesystem::path& output);

}  // namespace octet
