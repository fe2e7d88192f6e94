#include "training/health_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace octet {
namespace {

constexpr size_t series_of_block = kurtosis_tensors + 1;

std::string subject_of(size_t block, Observed what) {
  return fmt::format("blocks.{}.{}", block, name_of(what));
}

const char* format_name(Format format) { return format == Format::E4M3 ? "E4M3" : "E5M2"; }

bool in_attention(Observed what) {
  return what == Observed::Qkv || what == Observed::QkvInput || what == Observed::Query ||
         what == Observed::Key;
}

// In the order of the forward pass.
constexpr Observed forward_order[] = {Observed::QkvInput,
                                      Observed::Qkv,
                                      Observed::Query,
                                      Observed::Key,
                                      Observed::FfnBeforeActivation,
                                      Observed::FfnHidden,
                                      Observed::FfnOutput,
                                      Observed::BlockOutput};

// -1: the weight is in none.
int64_t block_of(const WeightHealth& weight) {
  constexpr std::string_view prefix = "blocks.";
  return weight.name.starts_with(prefix) ? std::stoll(weight.name.substr(prefix.size())) : -1;
}

const char* saturation_remedy(Scaling scaling) {
  if (is_counted(scaling))
    return "its scale, which follows the distribution a factor of two a step, has not caught up: a smaller "
           "share in precision.adaptive leaves room, \"scaling\": \"current\" does not look back";
  if (scaling == Scaling::Delayed)
    return "its scale is that of calmer steps: precision.delayed.margin leaves room, \"scaling\": "
           "\"current\" does not look back";
  if (scaling == Scaling::Static)
    return "its scale is a constant of the model, whose values have grown: a lower learning rate or more "
           "weight decay, or \"scaling\": \"current\" for this role";
  return "no current scale saturates by itself: look at the recipe's clipping";
}

}  // namespace

// Of a Gaussian with deviation 1, whose squared error is the sum over binades of P(binade) ulp^2 /
// 12: 7.0e-4, four times that in E5M2.
double ideal_snr(Format format) { return format == Format::E4M3 ? 31.5 : 25.5; }

HealthRules::HealthRules(int64_t warmup_steps, const HealthLimits& limits)
    : limits_(limits), growth_(warmup_steps) {}

HealthRules::ShareLimits HealthRules::limits_of(Scaling scaling) const {
  const AdaptiveScaling& adaptive = limits_.adaptive;
  ShareLimits most{limits_.saturated, limits_.flushed};
  if (scaling == Scaling::Quantile) most.saturated = std::max(most.saturated, 4 * adaptive.above);
  if (scaling == Scaling::Following) {
    most.saturated = std::max(most.saturated, 4 * adaptive.saturated);
    most.flushed = std::max(most.flushed, 4 * adaptive.flushed);
  }
  return most;
}

void HealthRules::judge_sites(const Health& health, Warnings& found) const {
  for (const SiteHealth& s : health.sites) {
    if (!is_float8(s.cast.format)) continue;
    const char* format = format_name(s.cast.format);
    // The core of attention has one scale a tensor, or is not in FP8.
    const char* finer =
        s.name.find(".core.") != std::string::npos
            ? "precision.attention \"storage\" takes the core out of FP8"
            : "a finer scale keeps the others (smooth_swiglu for ffn.down, scales by row), or "
              "this layer in BF16";
    const ShareLimits most = limits_of(s.cast.scaling);
    if (s.saturated > most.saturated && !is_near_its_end(s))
      found.push_back(
          {"saturation", s.name, s.block, s.saturated,
           fmt::format("{}: {:.2g} % of the values are beyond {} (amax {:.3g}, scale {:.3g}); {}", s.name,
                       100 * s.saturated, format, s.amax, s.scale, saturation_remedy(s.cast.scaling))});
    if (s.flushed > most.flushed)
      found.push_back({"flushing", s.name, s.block, s.flushed,
                       fmt::format("{}: {:.2g} % of the values vanish in {} (amax {:.3g}): outliers set the "
                                   "scale; {}",
                                   s.name, 100 * s.flushed, format, s.amax, finer)});
    // The energy of outliers is what a quantile gives up for the others' accuracy.
    const bool gives_up = s.cast.scaling == Scaling::Quantile && s.saturated <= most.saturated;
    if (s.snr < ideal_snr(s.cast.format) - limits_.snr_drop && !gives_up)
      found.push_back({"signal_to_noise", s.name, s.block, s.snr,
                       fmt::format("{}: {:.1f} dB of signal to noise after the cast, rounding to {} alone "
                                   "leaves {:.1f}: saturation or flushing loses the rest; {}",
                                   s.name, s.snr, format, ideal_snr(s.cast.format), finer)});
  }
}

// The first tensor, in the order of the forward pass, that is not finite: all later ones are not either.
void HealthRules::judge_finiteness(const Health& health, Warnings& found) const {
  for (size_t b = 0; b < health.blocks.size(); ++b) {
    for (const Observed what : forward_order) {
      const double amax = health.blocks[b].of(what).amax;
      if (std::isfinite(amax)) continue;
      found.push_back({"not_finite", subject_of(b, what), static_cast<int64_t>(b), amax,
                       fmt::format("block {}: {} is the first tensor with values that are not finite; the "
                                   "step is not applied; a lower learning rate or stronger clipping, and "
                                   "the steps before it show what grew",
                                   b, name_of(what))});
      return;
    }
  }
}

void HealthRules::judge_growth(int64_t step, const Health& health, Warnings& found) {
  std::vector<double> values;
  for (const BlockHealth& block : health.blocks) {
    for (const TensorHealth& tensor : block.tensors) values.push_back(tensor.kurtosis);
    values.push_back(block.of(Observed::BlockOutput).rms);
  }
  growth_.observe(step, values);
  for (size_t i = 0; i < values.size(); ++i) {
    if (!growth_.alarm(i)) continue;
    const size_t b = i / series_of_block, t = i % series_of_block;
    const auto block = static_cast<int64_t>(b);
    const std::string numbers = fmt::format(
        "grows as step^{:.1f} and is {:.0f} times what it was after warm-up "
        "({:.3g} now)",
        growth_.exponent(i), growth_.factor(i), values[i]);
    if (t == kurtosis_tensors) {
      found.push_back(
          {"residual_growth", subject_of(b, Observed::BlockOutput), block, values[i],
           fmt::format("block {}: the RMS of the residual stream {}; a lower learning rate, weight "
                       "decay, or norms after the branches keep it down",
                       b, numbers)});
      continue;
    }
    const auto what = static_cast<Observed>(t);
    const char* remedy =
        in_attention(what) ? "a QK norm or a lower learning rate keeps attention in range"
        : what == Observed::FfnHidden
            ? "precision.smooth_swiglu \"dual\" keeps its cast accurate, \"bf16\" takes it out"
            : "a lower learning rate, or this block in BF16";
    found.push_back({"kurtosis_growth", subject_of(b, what), block, values[i],
                     fmt::format("block {}: the kurtosis of {} {}: outliers form; {}", b, name_of(what),
                                 numbers, remedy)});
  }
}

void HealthRules::judge_attention(const Health& health, Warnings& found) {
  log_sum_exp_.resize(health.blocks.size(), unknown);
  for (size_t b = 0; b < health.blocks.size(); ++b) {
    const double now = health.blocks[b].log_sum_exp, before = log_sum_exp_[b];
    log_sum_exp_[b] = now;
    if (!(now > limits_.log_sum_exp && now > before)) continue;
    found.push_back({"attention_logits", subject_of(b, Observed::LogSumExp), static_cast<int64_t>(b), now,
                     fmt::format("block {}: attention logits reach {:.1f} and grow ({:.1f} at the record "
                                 "before): softmax becomes a choice of one, its gradient vanishes or jumps; "
                                 "a QK norm, or a lower learning rate",
                                 b, now, before)});
  }
}

void HealthRules::judge_alignment(const Health& health, Warnings& found) const {
  for (size_t b = 0; b < health.blocks.size(); ++b) {
    const BlockHealth& block = health.blocks[b];
    const double ratio = block.neuron_amax / block.channel_median;
    if (block.neuron < 0 || !(std::abs(block.cosine) >= limits_.cosine) || !(ratio >= limits_.channel_ratio))
      continue;
    found.push_back(
        {"alignment", fmt::format("blocks.{}.ffn.neuron.{}", b, block.neuron), static_cast<int64_t>(b),
         block.cosine,
         fmt::format("block {}: gate and up weights of neuron {} are aligned (cosine {:.3f}) and its "
                     "activation reaches {:.3g}, {:.0f} times the median channel's: it grows with "
                     "the square of its input; precision.smooth_swiglu \"dual\", or \"bf16\"",
                     b, block.neuron, block.cosine, block.neuron_amax, ratio)});
  }
}

void HealthRules::judge_updates(const Health& health, Warnings& found) const {
  for (const WeightHealth& weight : health.weights) {
    if (!(weight.update_rms > limits_.update_rms)) continue;
    found.push_back({"update_rms", weight.name, block_of(weight), weight.update_rms,
                     fmt::format("{}: the update is {:.1f} times what the second moment expects: gradients "
                                 "have grown faster than it follows, and a loss spike may; "
                                 "optimizer.update_clipping, or a smaller optimizer.beta2",
                                 weight.name, weight.update_rms)});
  }
}

void HealthRules::measure_weights(Health& health) {
  if (weight_rms_.size() != health.weights.size()) {
    weight_rms_.clear();
    for (const WeightHealth& weight : health.weights) weight_rms_.push_back(weight.rms);
  }
  for (size_t w = 0; w < health.weights.size(); ++w)
    health.weights[w].growth = health.weights[w].rms / weight_rms_[w];
}

HealthRules::Warnings HealthRules::only_new(Warnings found) {
  Warnings fresh;
  for (HealthWarning& warning : found) {
    const auto [known, added] = active_.try_emplace(warning.rule + " " + warning.subject, 0);
    known->second = -1;  // not a quiet record
    if (added) fresh.push_back(std::move(warning));
  }
  for (auto it = active_.begin(); it != active_.end();)
    it = ++it->second >= limits_.quiet_records ? active_.erase(it) : std::next(it);
  return fresh;
}

std::vector<HealthWarning> HealthRules::judge(int64_t step, Health& health) {
  Warnings found;
  judge_sites(health, found);
  if (!health.blocks.empty()) {
    measure_weights(health);
    judge_finiteness(health, found);
    judge_growth(step, health, found);
    judge_attention(health, found);
    judge_alignment(health, found);
    judge_updates(health, found);
  }
  return only_new(std::move(found));
}

Json HealthRules::state() const {
  if (active_.empty() && weight_rms_.empty()) return nullptr;
  const auto numbers = [](const std::vector<double>& values) {
    Json list = Json::array();
    for (double value : values) list.push_back(json_number(value));
    return list;
  };
  return {{"growth", growth_.state()},
          {"log_sum_exp", numbers(log_sum_exp_)},
          {"weight_rms", numbers(weight_rms_)},
          {"warnings", active_}};
}

void HealthRules::restore(const Json& state) {
  *this = HealthRules(growth_.baseline_step(), limits_);
  if (state.is_null()) return;
  const auto numbers = [&](const char* name, std::vector<double>& values) {
    for (const Json& value : state.at(name)) values.push_back(number_of(value));
  };
  growth_.restore(state.at("growth"));
  numbers("log_sum_exp", log_sum_exp_);
  numbers("weight_rms", weight_rms_);
  active_ = state.at("warnings").get<std::map<std::string, int>>();
}

}  // namespace octet
