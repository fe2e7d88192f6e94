// `octet inject`: the same injected outlier into runs of several precisions, and who breaks.
//
// [Fishman et al. 2409.12517: FP8 training diverges when neurons of the SwiGLU align and their product grows
// in few tokens; delayed scaling, one scale for the tensor, cannot represent it; Smooth-SwiGLU or a BF16 down
// projection can.] At the paper's scale that takes 200 billion tokens; injected, a few hundred steps.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "analysis/sweep_report.h"

namespace octet {

struct InjectionOptions {
  std::string fault = "align";      // without its step: at a third of the run
  std::vector<int64_t> seeds = {};  // empty: three, from the configuration's own
  std::vector<std::string> overrides;
  std::string output;
};
// The experiment around a run's configuration: BF16; FP8 with delayed scaling and without smoothing; FP8 with
// Smooth-SwiGLU `dual` and `channel`; FP8 with the down projection in BF16. Or, when the file is a sweep with
// "inject", that sweep.
Sweep injection_experiment(const std::string& path, const InjectionOptions& options);

// What a group of an injected sweep did, against its BF16 twins with the same seeds and the same injection.
//
//   breaks   every seed's run has failed, or ended at least 0.10 above its twin
//   holds    every seed's run ended within 0.03 of its twin or below; 0.02 where the down projection is BF16
namespace injection {
inline constexpr double breaks = 0.10, holds = 0.03, holds_bf16_down = 0.02;
}
enum class InjectionVerdict : uint8_t { Reference, Breaks, SomeBreak, Holds, Between, Unknown };
InjectionVerdict injection_verdict(const SweepReport& report, const GroupRow& group);
std::string describe(InjectionVerdict verdict);

}  // namespace octet
