#include "training/fallback.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "model/block.h"
#include "training/health_rules.h"

namespace octet {
namespace {

struct Candidate {
  int block;
  BlockLinear linear;
  std::string name;

  Fallback taken(int64_t step, const char* reason, double value, double limit) const {
    return {step, block, linear, name, reason, value, limit};
  }
};

std::vector<Candidate> linears_in_float8(const FallbackEvidence& e) {
  std::vector<Candidate> found;
  const int layers = static_cast<int>(e.spec.layers);
  for (int block = 0; block < layers; ++block)
    for (int i = 0; i < block_linears; ++i) {
      const auto which = static_cast<BlockLinear>(i);
      if (formats_of(e.recipe, layers, block, which).float8())
        found.push_back({block, which, name_of_linear(e.spec, block, which)});
    }
  return found;
}

bool belongs(const std::string& site, const std::string& linear) { return site.starts_with(linear + "."); }

// The largest share of one of its casts.
double saturated_share(const Health& health, const std::string& linear) {
  double most = 0;
  for (const SiteHealth& site : health.sites)
    if (belongs(site.name, linear) && !is_near_its_end(site)) most = std::max(most, site.saturated);
  return most;
}

double input_kurtosis(const Health& health, const Candidate& linear) {
  const auto block = static_cast<size_t>(linear.block);
  if (block >= health.blocks.size()) return unknown;
  if (linear.linear == BlockLinear::Qkv) return health.blocks[block].of(Observed::QkvInput).kurtosis;
  if (linear.linear == BlockLinear::Down) return health.blocks[block].of(Observed::FfnHidden).kurtosis;
  return unknown;
}

// Whether one of its casts in the forward pass, or in the backward pass, saw a value that is not finite.
bool saw_nonfinite(const FallbackEvidence& e, const std::string& linear, bool of_gradient) {
  for (size_t s = 0; s < e.sites.size(); ++s) {
    const std::string& site = e.sites[s].name;
    if (!belongs(site, linear) || std::isfinite(e.amax[s])) continue;
    if (site.starts_with(linear + ".grad") == of_gradient) return true;
  }
  return false;
}

const Candidate* first_nonfinite(const FallbackEvidence& e, const std::vector<Candidate>& linears) {
  for (const Candidate& one : linears)
    if (saw_nonfinite(e, one.name, false)) return &one;
  for (auto one = linears.rbegin(); one != linears.rend(); ++one)
    if (saw_nonfinite(e, one->name, true)) return &*one;
  return nullptr;
}

}  // namespace

std::vector<Fallback> linears_past_limits(const FallbackOptions& limits, const FallbackEvidence& e) {
  const std::vector<Candidate> linears = linears_in_float8(e);
  const Candidate* const broken = limits.nonfinite && e.dropped ? first_nonfinite(e, linears) : nullptr;
  std::vector<Fallback> passed;
  for (const Candidate& one : linears) {
    if (&one == broken) {
      passed.push_back(one.taken(e.step, "nonfinite", 0, 0));
      continue;
    }
    if (!e.health) continue;
    const double saturated = saturated_share(*e.health, one.name), kurtosis = input_kurtosis(*e.health, one);
    if (limits.saturated > 0 && saturated > limits.saturated)
      passed.push_back(one.taken(e.step, "saturated", saturated, limits.saturated));
    else if (limits.kurtosis > 0 && kurtosis > limits.kurtosis)
      passed.push_back(one.taken(e.step, "kurtosis", kurtosis, limits.kurtosis));
  }
  return passed;
}

std::string describe(const Fallback& f) {
  const std::string why =
      f.reason == "saturated"
          ? fmt::format("{:.2g} % of the values of one of its casts saturated, limit {:.2g} %", 100 * f.value,
                        100 * f.limit)
      : f.reason == "kurtosis"
          ? fmt::format("the kurtosis of its input is {:.3g}, limit {:.3g}", f.value, f.limit)
          : std::string("the step was dropped, and its values are the first that are not finite");
  return fmt::format("{} runs in BF16 from step {} on: {} (precision.fallback.{})", f.name, f.step + 1, why,
                     f.reason);
}

}  // namespace octet
