// The state of a run's health at a statistics step, and the record of it: what each cast did to its tensor,
// what the activations of each block look like, how large the weights are.
#pragma once
#include <array>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "device/scale_table.h"
#include "model/observations.h"
#include "training/metrics.h"

namespace octet {

// Of one step, by site: copies of the scale table's tensors before its update.
struct ScaleStatistics {
  std::span<const float> amax, scale, inverse_scale;
  std::span<const CastCounters> counters;
};
// Copies of the tensors of Observations.
struct ObservedNumbers {
  std::span<const double> sums, weight_sums;
  std::span<const uint32_t> extremes;
  std::span<const float> cosines;
};

inline constexpr double unknown = std::numeric_limits<double>::quiet_NaN();
inline constexpr int kurtosis_tensors = observed_tensors - 1;  // all but LogSumExp

struct SiteHealth {
  std::string name;  // "blocks.3.ffn.down.input"
  int block = 0;
  Cast cast;
  double amax = 0, scale = 0;
  double utilisation = unknown;       // amax * scale / the format's largest value; of one scale a tensor
  double saturated = 0, flushed = 0;  // shares: of the values; non-zero ones that became zero
  double snr = unknown;               // dB: sum x^2 over sum of squared errors
};
struct TensorHealth {
  double kurtosis = unknown, sequence_kurtosis = unknown;  // means over tokens, over sequences
  double mean = unknown, rms = unknown, highest = unknown, amax = unknown;
};
struct BlockHealth {
  std::array<TensorHealth, kurtosis_tensors> tensors;
  double log_sum_exp = unknown;  // the largest; the largest logit is at most ln(context) below it
  // Hidden channels of the feed-forward network.
  int64_t channel = 0;  // with the largest amax
  double channel_amax = 0, channel_median = 0;
  int64_t neuron = -1;  // whose gate and up weights are most aligned; -1: none has a gate
  double cosine = 0, neuron_amax = 0;

  const TensorHealth& of(Observed what) const { return tensors[static_cast<size_t>(what)]; }
  TensorHealth& of(Observed what) { return tensors[static_cast<size_t>(what)]; }
};
struct WeightHealth {
  std::string name;
  double rms = 0;
  double growth = unknown;  // rms over that of the first record
  // Of this step's update, beside what the second moment expects; 0: the step is not applied.
  double update_rms = 0;  // [Optimizer::update_rms]
};
struct Health {
  std::vector<SiteHealth> sites;
  std::vector<BlockHealth> blocks;    // empty: activations are not observed
  std::vector<WeightHealth> weights;  // likewise
};

std::vector<SiteHealth> health_of_sites(const ScaleTable& table, const ScaleStatistics& statistics);

// What of a step went into the sums.
struct ObservedStep {
  ObservationLayout layout;
  int64_t tokens = 0, context = 0;
  std::vector<std::string> weights;  // names
  std::vector<int64_t> weight_rows;
  std::vector<double> update_rms;  // of each weight
};
// Adds to `health` what the numbers say: blocks, weights, and the sites' signal-to-noise ratios.
void add_observations(Health& health, const ObservedStep& step, const ObservedNumbers& numbers);

// The fields of a "health" record (training/run_files.h).
Json health_record(const Health& health);

}  // namespace octet
