// What the trainer asks the model to look at, and what it makes of it.
#include <iterator>

#include "base/log.h"
#include "base/text.h"
#include "training/trainer.h"

namespace octet {

bool Trainer::statistics_due(int64_t step) const {
  return config_.health.every > 0 && step % config_.health.every == 0;
}

// The statistics of a step begin with the casts of its working weights, at the end of the step before.
void Trainer::look_at(int64_t next_step) {
  ScaleTable& scales = memory_.model.scales();
  scales.count = statistics_due(next_step) && !scales.sites.empty();
  Observations& observations = memory_.model.observations();
  observations.on = statistics_due(next_step) && observations.planned();
  memory_.optimizer.measure_update_rms(observations.on);
}

void Trainer::take_statistics(int64_t step) {
  const ScaleTable& scales = memory_.model.scales();
  if (scales.count || (config_.fallback.nonfinite && !scales.sites.empty()))
    readback_.take_statistics(step, scales);
  Observations& observations = memory_.model.observations();
  if (observations.on) {
    memory_.model.observe_weights();
    memory_.data_parallel.merge_observations();
    readback_.take_observations(step, observations);
    readback_.take_update_rms(step, memory_.optimizer.update_rms());
    observations.clear(device_);
  }
}

void Trainer::forget_statistics() {
  if (ScaleTable& scales = memory_.model.scales(); !scales.sites.empty()) {
    device_.zero(scales.amax);
    device_.zero(scales.counters);
  }
  if (Observations& observations = memory_.model.observations(); observations.planned())
    observations.clear(device_);
}

std::optional<Health> Trainer::examine(StepReport& report) {
  if (!statistics_due(report.step)) return {};
  Health health;
  const ScaleTable& scales = memory_.model.scales();
  if (!scales.sites.empty()) health.sites = health_of_sites(scales, readback_.statistics(report.step));
  if (const Observations& observations = memory_.model.observations(); observations.planned()) {
    ObservedStep step;
    step.layout = observations.layout;
    step.tokens = static_cast<int64_t>(memory_.data_parallel.step_tokens());
    step.context = config_.model.context;
    for (const size_t parameter : memory_.model.observed_weights()) {
      const Parameter& p = memory_.model.parameters()[parameter];
      step.weights.push_back(p.name);
      step.weight_rows.push_back(p.gradient.rows());
      step.update_rms.push_back(static_cast<double>(readback_.update_rms(report.step)[parameter]));
    }
    add_observations(health, step, readback_.observed(report.step));
  }
  if (health.sites.empty() && health.blocks.empty()) return {};
  const std::vector<HealthWarning> warnings = rules_.judge(report.step, health);
  report.health = health_record(health);
  state_.health = rules_.state();
  constexpr size_t shown = 5;
  for (size_t i = 0; i < warnings.size(); ++i) {
    const HealthWarning& w = warnings[i];
    log_.write("event", report.step,
               {{"event", "warning"},
                {"rule", w.rule},
                {"subject", w.subject},
                {"block", w.block},
                {"value", json_number(w.value)},
                {"message", w.message}});
    if (ranks_.leads() && i < shown) log_warning("step {}: {}", report.step, w.message);
  }
  if (ranks_.leads() && warnings.size() > shown)
    log_warning("step {}: and {} in metrics.jsonl", report.step,
                plural(static_cast<int64_t>(warnings.size() - shown), "warning"));
  return health;
}

// Whether what this step shows may end the segment: then nothing is launched before it is known.
bool Trainer::may_fall_back(int64_t step) const {
  return config_.fallback.nonfinite || (config_.fallback.reads_statistics() && statistics_due(step));
}

// What passed a limit runs in BF16 from the next step on: the segment ends with this one.
void Trainer::fall_back(const StepReport& report, const std::optional<Health>& health,
                        const UpdateControl& control) {
  if (!may_fall_back(report.step)) return;
  const std::vector<Fallback> passed =
      linears_past_limits(config_.fallback, {.step = report.step,
                                             .spec = config_.model,
                                             .recipe = segment_.recipe,
                                             .health = health ? &*health : nullptr,
                                             .dropped = !report.skip && control.apply == 0,
                                             .sites = memory_.model.scales().sites,
                                             .amax = readback_.statistics(report.step).amax});
  for (const Fallback& one : passed) {
    if (std::ssize(state_.fallbacks) < config_.fallback.at_most) {
      state_.fallbacks.push_back(one);
      segment_.end = report.step;
      if (ranks_.leads()) log_warning("{}", describe(one));
      log_.write("event", report.step,
                 {{"event", "fallback"},
                  {"linear", one.name},
                  {"reason", one.reason},
                  {"value", json_number(one.value)},
                  {"limit", one.limit},
                  {"message", describe(one)}});
    } else if (!state_.fallbacks_used_up) {
      state_.fallbacks_used_up = true;
      const std::string text =
          fmt::format("{} passed precision.fallback.{} and stays in FP8: {} in BF16 already (at_most)",
                      one.name, one.reason, plural(config_.fallback.at_most, "linear"));
      if (ranks_.leads()) log_warning("step {}: {}", report.step, text);
      log_.write("event", report.step,
                 {{"event", "warning"},
                  {"rule", "fallback"},
                  {"subject", one.name},
                  {"block", one.block},
                  {"value", json_number(one.value)},
                  {"message", text}});
    }
  }
}

}  // namespace octet
