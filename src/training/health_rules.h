// From a run's health to warnings: one sentence each, with layer, number and remedy.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "numerics/recipe.h"
#include "training/growth.h"
#include "training/health.h"

namespace octet {

struct HealthWarning {
  std::string rule;     // "kurtosis_growth"
  std::string subject;  // "blocks.3.qkv"
  int64_t block = 0;    // -1: of none
  double value = 0;     // what the rule looked at
  std::string message;
};

// A quantile's threshold falls to 15/16 of where values end, however many lie between. Up to an amax of 1.25
// thresholds (values of a warm-up grow in that step, too) no value loses more than a fifth, and none is lost.
inline bool is_near_its_end(const SiteHealth& site) {
  return site.cast.scaling == Scaling::Quantile && site.utilisation <= 1.25;
}

// Ours, unless they say whose.
struct HealthLimits {
  // Shares of a cast's values. A saturated value is off by any factor, and one in a thousand is far beyond
  // what a scale with history lets through by chance; a flushed one is small, so many have to be.
  double saturated = 1e-3, flushed = 0.05;
  // Scales that follow these shares hold them: a share is worth a warning at four times as many, which is
  // beyond what counting a few values does to them.
  AdaptiveScaling adaptive = {};
  // Below what rounding to nearest leaves: 10 dB are three times its error. Stochastic rounding costs 3.
  double snr_drop = 10;
  // log-sum-exp of attention. QK-Clip (Kimi K2, 2507.20534) cuts at 100; healthy runs stay below some 30.
  double log_sum_exp = 50;
  // Of the weights of a gate and an up projection, when the channel is an outlier too.  [Fishman et al.,
  // 2409.12517, theorem 1: towards one]
  double cosine = 0.9, channel_ratio = 8;
  // Of an update: 28 of 30 loss spikes followed one within some steps.  [StableAdamW, 2304.13013, 3.4]
  double update_rms = 2.3;
  int quiet_records = 3;  // without a warning's reason until it may come again
};

// Of Gaussian values rounded to nearest, nothing saturated or flushed, in dB.
double ideal_snr(Format format);

// A pure function of what it was given, which state() is all of: checkpointed, so that a resumed run warns as
// an uninterrupted one.
class HealthRules {
 public:
  // `warmup_steps`: growth is measured from there on.
  explicit HealthRules(int64_t warmup_steps, const HealthLimits& limits = {});

  // What is new at this step: a warning comes once, until its reason has been gone for quiet_records. Fills
  // in the growth of weights.
  std::vector<HealthWarning> judge(int64_t step, Health& health);

  Json state() const;  // null: nothing to remember yet
  void restore(const Json& state);

 private:
  using Warnings = std::vector<HealthWarning>;
  struct ShareLimits {
    double saturated, flushed;
  };
  ShareLimits limits_of(Scaling scaling) const;
  void judge_sites(const Health& health, Warnings& found) const;
  void judge_finiteness(const Health& health, Warnings& found) const;
  void judge_growth(int64_t step, const Health& health, Warnings& found);
  void judge_attention(const Health& health, Warnings& found);
  void judge_alignment(const Health& health, Warnings& found) const;
  void judge_updates(const Health& health, Warnings& found) const;
  void measure_weights(Health& health);
  Warnings only_new(Warnings found);

  HealthLimits limits_;
  GrowthTable growth_;                 // of each block: kurtosis of eight tensors, RMS of its output
  std::vector<double> log_sum_exp_;    // of the record before, by block
  std::vector<double> weight_rms_;     // of the first record
  std::map<std::string, int> active_;  // rule and subject: records since its reason went
};

}  // namespace octet
