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
  std::string fault = {};           // empty: "align"; without its step: at a third of the run
  std::vector<int64_t> seeds = {};  // empty: three, from the configuration's own
  std::vector<std::string> overrides;
  std::string output;
};
// The experiment around a run's configuration: BF16; FP8 with delayed scaling and without smoothing; FP8 with
// Smooth-SwiGLU `dual` and `channel`; FP8 with the down projection in BF16. Or, when the file is a sweep with
// "inject", that sweep, which has its own faults and seeds.
Sweep injection_experiment(const std::string& path, const InjectionOptions& options);

// What a group of an injected sweep did, against its BF16 twins with the same seeds and the same injection:
// by what the injection added to a run's gap, its mean over the (up to 100) steps from the last injection on
// less its mean over as many before the first.
//
//   breaks   every seed's run has failed, or the injection added at least 0.10
//   holds    it added at most 0.03 with every seed; 0.02 where the down projection is in BF16
//
// It says nothing of formats where BF16 itself failed, or more than 0.25 was added to the loss of a twin.
namespace injection {
inline constexpr double breaks = 0.10, holds = 0.03, holds_bf16_down = 0.02, threw_off = 0.25;
inline constexpr int64_t window = 100, fewest = 10;  // steps
}  // namespace injection
enum class InjectionVerdict : uint8_t {
  Reference,
  ReferenceBroke,
  Breaks,
  SomeBreak,
  Holds,
  Between,
  Unknown
};
InjectionVerdict injection_verdict(const SweepReport& report, const GroupRow& group);
std::string describe(InjectionVerdict verdict);

}  // namespace octet
