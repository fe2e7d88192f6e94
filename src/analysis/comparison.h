// Two runs on the same weights and batches: the gap, its confidence, and a verdict.  (docs/numerics.md,
// "Verdict")
#pragma once
#include <string>
#include <vector>

#include "analysis/differences.h"
#include "analysis/run_history.h"
#include "analysis/statistics.h"

namespace octet {

enum class Verdict : uint8_t { Equivalent, SmallGap, Degraded, Diverging, Diverged, Inconclusive };
const char* name_of(Verdict verdict);  // "EQUIVALENT", "SMALL GAP", ...
int exit_code_of(Verdict verdict);     // 0, 0, 11, 12, 20, 10

// What the gap is judged against, as a share of the baseline's loss.
struct NoiseBand {
  double relative =
      0.0025;  // the anchor when there are no seeds: FP8 within 0.25 % of BF16 is what large runs report
  std::string source = "single seed: the 0.25 % anchor";
};
// The largest difference between any two seeds of the baseline (final-window mean loss, relative). Fewer than
// two runs: the anchor.
NoiseBand noise_band(const std::vector<RunHistory>& baseline_seeds);

struct Comparison {
  Verdict verdict = Verdict::Inconclusive;
  std::string sentence;  // why, in one sentence with numbers
  NoiseBand band;
  std::vector<int64_t> steps;           // common, finite ones
  std::vector<double> gap;              // variant - baseline, per step
  int64_t window = 0;                   // last steps that decide
  size_t records = 0;                   // of them in both logs: fewer than the steps with log.every > 1
  double baseline_loss = 0;             // mean over the window
  Estimate final_gap;                   // over the window, nats
  Estimate slope;                       // nats per 1000 steps over the last half
  std::vector<Difference> also_differ;  // beside the recipe; part of the sentence
  double validation_gap = 0;  // last common validation; NaN when there is none or they validated differently
  double token_penalty = 1;   // tokens the variant needs for a loss the baseline reached with 1
  double speed_up = 1;        // tokens per second, median; NaN when one of them ran on a CPU
  double net_benefit = 1;     // speed_up / token_penalty
  int64_t more_steps_needed = 0;  // INCONCLUSIVE only; 0 = unknown
};

// Throws Error(Usage) when the runs cannot be compared: other initial weights, other batches, other model, or
// an FP8 FLOP share that contradicts what a run claims. Error(Data): one has no records.
void require_comparable(const RunHistory& baseline, const RunHistory& variant);
Comparison compare_runs(const RunHistory& baseline, const RunHistory& variant, const NoiseBand& band);

}  // namespace octet
