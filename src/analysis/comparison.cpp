#include "analysis/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/text.h"
#include "training/json_fields.h"
#include "training/run_files.h"

namespace octet {
namespace {

constexpr int64_t fewest_steps = 50;   // below this nothing is claimed
constexpr size_t fewest_records = 20;  // of a window: what a log that passes steps over must still hold
constexpr double degraded_bands = 3;   // SMALL GAP up to 3 bands, DEGRADED beyond
constexpr double diverged_gap = 0.25;  // nats above the baseline at the end
constexpr double diverged_rise = 0.5;  // nats above its own minimum without coming back

// The last steps of a run that decide: a fifth, 20 at least. Steps, not records: log.every changes nothing.
int64_t window_of(int64_t steps) { return std::min(steps, std::max<int64_t>(20, (steps + 4) / 5)); }

std::vector<double> losses_of(const RunHistory& run) {
  std::vector<double> losses;
  for (const StepRecord& step : run.steps) losses.push_back(step.loss);
  return losses;
}

std::vector<int64_t> steps_of(const RunHistory& run) {
  std::vector<int64_t> steps;
  for (const StepRecord& step : run.steps) steps.push_back(step.step);
  return steps;
}

std::vector<double> averaged_losses(const RunHistory& run, double decay) {
  return exponential_average(losses_of(run), steps_of(run), decay);
}

// Final-window mean of a run's finite losses.
double final_loss(const RunHistory& run) {
  if (run.steps.empty()) return std::numeric_limits<double>::quiet_NaN();
  const int64_t last = run.steps.back().step, before = last - window_of(last);
  double sum = 0;
  size_t count = 0;
  for (const StepRecord& step : run.steps) {
    if (step.step <= before || !std::isfinite(step.loss)) continue;
    sum += step.loss;
    ++count;
  }
  return count ? sum / static_cast<double>(count) : std::numeric_limits<double>::quiet_NaN();
}

// Why a run diverged on its own: its status says so, it ended in non-finite losses, or its averaged loss rose
// and stayed up.
std::string own_divergence(const RunHistory& run) {
  if (run.status && run.status->exit_code == static_cast<int>(ExitCode::Numerics)) {
    return fmt::format("{} stopped: {}", run.name,
                       run.status->reason.empty() ? "non-finite loss" : run.status->reason);
  }
  if (run.steps.empty()) return {};
  const StepRecord& last = run.steps.back();
  if (!std::isfinite(last.loss))
    return fmt::format("{} ends with a non-finite loss at step {}", run.name, last.step);
  if (last.step < fewest_steps) return {};
  const std::vector<double> average = averaged_losses(run, 0.9);
  const double lowest = *std::min_element(average.begin(), average.end());
  if (average.back() <= lowest + diverged_rise) return {};
  return fmt::format("{}'s loss ends {:.3f} above its own minimum of {:.3f}", run.name,
                     average.back() - lowest, lowest);
}

double tokens_to_reach(const RunHistory& run, const std::vector<double>& average, double loss) {
  for (size_t i = 0; i < average.size(); ++i) {
    if (average[i] <= loss) return static_cast<double>(run.steps[i].tokens);
  }
  return std::numeric_limits<double>::quiet_NaN();
}

double token_penalty(const RunHistory& baseline, const RunHistory& variant) {
  const std::vector<double> b = averaged_losses(baseline, 0.95), v = averaged_losses(variant, 0.95);
  const double shared = std::max(b.back(), v.back());  // the lowest loss both reached
  const double penalty = tokens_to_reach(variant, v, shared) / tokens_to_reach(baseline, b, shared);
  return std::isfinite(penalty) && penalty > 0 ? penalty : 1;
}

std::string text_at(const Json& object, const char* key) {
  return object.is_object() ? object.value(key, std::string{}) : std::string{};
}

// On a CPU, and on the kernel interpreter there, FP8 is emulated: its speed says nothing.
bool ran_on_gpu(const RunHistory& run) {
  const std::string device = text_at(run.start, "device");
  return !device.empty() && device.find("CPU (") == std::string::npos;
}

double speed_up(const RunHistory& baseline, const RunHistory& variant) {
  if (!ran_on_gpu(baseline) || !ran_on_gpu(variant)) return std::numeric_limits<double>::quiet_NaN();
  return median_throughput(variant) / median_throughput(baseline);
}

struct Paired {
  std::vector<int64_t> steps;
  std::vector<double> baseline, gap;
};

Paired pair_steps(const RunHistory& baseline, const RunHistory& variant) {
  std::map<int64_t, double> losses;
  for (const StepRecord& step : baseline.steps) losses[step.step] = step.loss;
  Paired paired;
  for (const StepRecord& step : variant.steps) {
    const auto it = losses.find(step.step);
    if (it == losses.end() || !std::isfinite(it->second) || !std::isfinite(step.loss)) continue;
    paired.steps.push_back(step.step);
    paired.baseline.push_back(it->second);
    paired.gap.push_back(step.loss - it->second);
  }
  return paired;
}

double last_validation_gap(const RunHistory& baseline, const RunHistory& variant) {
  for (auto v = variant.validations.rbegin(); v != variant.validations.rend(); ++v) {
    for (auto b = baseline.validations.rbegin(); b != baseline.validations.rend(); ++b) {
      if (v->step == b->step) return v->loss - b->loss;
    }
  }
  return std::numeric_limits<double>::quiet_NaN();
}

// The half-width falls with the square root of the window, and the window is a fifth of the run.
int64_t steps_to_decide(const Comparison& c, double band) {
  double distance = std::numeric_limits<double>::infinity();
  for (double edge : {0.0, band, degraded_bands * band})
    distance = std::min(distance, std::abs(c.final_gap.value - edge));
  const double factor = distance > 0 ? std::pow(c.final_gap.half_width / distance, 2) : 0;
  return factor > 1 && factor < 100
             ? static_cast<int64_t>(std::ceil((factor - 1) * 5 * static_cast<double>(c.window)))
             : 0;
}

// Records of the last `steps` steps.
size_t records_of_last(const std::vector<int64_t>& recorded, int64_t steps) {
  const auto first = std::upper_bound(recorded.begin(), recorded.end(), recorded.back() - steps);
  return static_cast<size_t>(recorded.end() - first);
}
size_t half_of(const std::vector<int64_t>& recorded) {
  return records_of_last(recorded, (recorded.back() + 1) / 2);
}

void judge(Comparison& c) {
  const double band = c.band.relative * c.baseline_loss;
  const std::string gap = fmt::format("the gap over the last {} steps is {:+.4f} ({:+.2f} % ± {:.2f} %)",
                                      c.window, c.final_gap.value, 100 * c.final_gap.value / c.baseline_loss,
                                      100 * c.final_gap.half_width / c.baseline_loss);
  const std::string against = fmt::format("the band is {:.2f} % ({})", 100 * c.band.relative, c.band.source);
  const double half_run =
      static_cast<double>(c.steps.back() - c.steps[c.steps.size() - half_of(c.steps)]) / 1000.0;
  if (c.final_gap.value > diverged_gap) {
    c.verdict = Verdict::Diverged;
    c.sentence = fmt::format("{}, beyond {:.2f} nats", gap, diverged_gap);
  } else if (c.slope.low() > 0 && c.slope.value * half_run > band && c.final_gap.low() > band) {
    c.verdict = Verdict::Diverging;
    c.sentence = fmt::format("{} and grows by {:.4f} per 1000 steps over the last half; {}", gap,
                             c.slope.value, against);
  } else if (c.final_gap.high() <= band) {
    c.verdict = Verdict::Equivalent;
    const char* better = c.final_gap.high() < -band ? ": the variant is better, which counts as equivalent"
                         : c.final_gap.low() > 0    ? ": measurably worse, but by less than the band"
                                                    : "";
    c.sentence = fmt::format("{}{}; {}", gap, better, against);
  } else if (c.final_gap.low() > degraded_bands * band) {
    c.verdict = Verdict::Degraded;
    c.sentence = fmt::format("{}, more than {:.0f} bands; {}", gap, degraded_bands, against);
  } else if (c.final_gap.low() > 0 && c.final_gap.high() <= degraded_bands * band) {
    c.verdict = Verdict::SmallGap;
    c.sentence = fmt::format("{}; {}", gap, against);
  } else {
    c.verdict = Verdict::Inconclusive;
    c.more_steps_needed = steps_to_decide(c, band);
    c.sentence = fmt::format("{}, which decides nothing; {}", gap, against);
    if (c.more_steps_needed) c.sentence += fmt::format("; about {} more steps would", c.more_steps_needed);
  }
}

// Whatever the order of its keys.
nlohmann::json model_of(const RunHistory& run) {
  return run.config.contains("model") ? nlohmann::json::parse(run.config.at("model").dump())
                                      : nlohmann::json{};
}

// Whether a section "precision" has FP8 linears; empty: it does not say.
std::optional<bool> claims_fp8(const Json& in, const std::string& source) {
  const JsonFields fields(in, source);
  const Json precision = fields.object("precision");
  if (!precision.contains("input") || !precision.at("input").is_object()) return {};
  const JsonFields input(precision.at("input"), source + ": /precision/input");
  return input.text("format", "").starts_with("e");
}

// Linears that left FP8 on the way (precision.fallback).
struct Fallbacks {
  int64_t linears = 0, first = std::numeric_limits<int64_t>::max();  // the step after which the first did
};
Fallbacks fallbacks_of(const RunHistory& run) {
  Fallbacks found;
  for (const EventRecord& event : run.events) {
    if (event.event != "fallback") continue;
    ++found.linears;
    found.first = std::min(found.first, event.step);
  }
  return found;
}

void require_claimed_precision(const RunHistory& run) {
  if (run.steps.empty() || !run.config.contains("precision")) return;
  const std::string source = (run.folder / config_file).string();
  const std::vector<Json> stages = JsonFields(run.config, source).objects("precision_schedule");
  const int64_t fallback = fallbacks_of(run).first;  // all linears may have fallen back after it
  // Every step: a run may have gone on from a checkpoint of another recipe.
  for (const StepRecord& step : run.steps) {
    if (step.step > fallback) continue;
    const Json* section = &run.config;
    for (const Json& stage : stages)
      if (JsonFields(stage, source).integer("from", 0) < step.step) section = &stage;
    const std::optional<bool> claimed = claims_fp8(*section, source);
    if (!claimed || *claimed == (step.fp8_flop_share > 0)) continue;
    throw Error(
        ExitCode::Usage,
        fmt::format("{}: the configuration {} FP8 linears, but {:.1f} % of the GEMM FLOPs that ran in "
                    "step {} were FP8",
                    run.name, *claimed ? "claims" : "has no", 100 * step.fp8_flop_share, step.step),
        "the run is not what its label says, or changed its recipe on the way: do not compare it");
  }
}

}  // namespace

const char* name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::Equivalent:
      return "EQUIVALENT";
    case Verdict::SmallGap:
      return "SMALL GAP";
    case Verdict::Degraded:
      return "DEGRADED";
    case Verdict::Diverging:
      return "DIVERGING";
    case Verdict::Diverged:
      return "DIVERGED";
    default:
      return "INCONCLUSIVE";
  }
}

int exit_code_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::Equivalent:
    case Verdict::SmallGap:
      return static_cast<int>(ExitCode::Success);
    case Verdict::Degraded:
      return static_cast<int>(ExitCode::Degraded);
    case Verdict::Diverging:
      return static_cast<int>(ExitCode::Diverging);
    case Verdict::Diverged:
      return static_cast<int>(ExitCode::Numerics);
    default:
      return static_cast<int>(ExitCode::Inconclusive);
  }
}

NoiseBand noise_band(const std::vector<RunHistory>& baseline_seeds) {
  NoiseBand band;
  if (baseline_seeds.size() < 2) return band;
  double lowest = std::numeric_limits<double>::infinity(), highest = -lowest;
  for (const RunHistory& run : baseline_seeds) {
    const double loss = final_loss(run);
    if (!std::isfinite(loss)) return band;
    lowest = std::min(lowest, loss);
    highest = std::max(highest, loss);
  }
  band.relative = (highest - lowest) / (0.5 * (highest + lowest));
  band.source = fmt::format("largest difference between {} seeds of the baseline", baseline_seeds.size());
  return band;
}

void require_comparable(const RunHistory& baseline, const RunHistory& variant) {
  const auto refuse = [&](const std::string& what, const std::string& a, const std::string& b) {
    throw Error(
        ExitCode::Usage,
        fmt::format("{} and {} have different {}: {} and {}", baseline.name, variant.name, what, a, b),
        "a paired comparison needs the same model, initial weights and batches; octet compare CONFIG makes "
        "such twins");
  };
  for (const RunHistory* run : {&baseline, &variant}) {
    if (!run->start.is_object())
      throw Error(ExitCode::Data,
                  fmt::format("{}: no records in {}: the run did not finish a step", run->name,
                              (run->folder / metrics_file).string()),
                  "compare it when it has trained");
  }
  if (model_of(baseline) != model_of(variant)) {
    refuse("models", "see config.json of the first", "of the second");
  }
  const std::string init_a = text_at(baseline.start, "init_hash"),
                    init_b = text_at(variant.start, "init_hash");
  if (init_a != init_b) refuse("initial weights", init_a, init_b);
  std::map<int64_t, std::string> hashes;
  for (const StepRecord& step : baseline.steps) hashes[step.step] = step.batch_hash;
  for (const StepRecord& step : variant.steps) {
    const auto it = hashes.find(step.step);
    if (it != hashes.end() && it->second != step.batch_hash) {
      refuse(fmt::format("batches at step {}", step.step), it->second, step.batch_hash);
    }
  }
  require_claimed_precision(baseline);
  require_claimed_precision(variant);
}

Comparison compare_runs(const RunHistory& baseline, const RunHistory& variant, const NoiseBand& band) {
  Comparison c;
  c.band = band;
  Paired paired = pair_steps(baseline, variant);
  c.steps = std::move(paired.steps);
  c.gap = std::move(paired.gap);
  c.also_differ = other_differences(baseline, variant);
  c.validation_gap = same_validation(c.also_differ) ? last_validation_gap(baseline, variant)
                                                    : std::numeric_limits<double>::quiet_NaN();
  if (!c.steps.empty()) {
    c.window = window_of(c.steps.back());
    c.records = records_of_last(c.steps, c.window);
    const std::span<const double> gap(c.gap);
    c.final_gap = mean_with_confidence(gap.last(c.records));
    c.baseline_loss = mean_with_confidence(std::span<const double>(paired.baseline).last(c.records)).value;
    std::vector<double> thousands;
    for (int64_t step : c.steps) thousands.push_back(static_cast<double>(step) / 1000.0);
    const size_t half = half_of(c.steps);
    c.slope = slope_with_confidence(std::span<const double>(thousands).last(half), gap.last(half));
    c.token_penalty = token_penalty(baseline, variant);
    c.speed_up = speed_up(baseline, variant);
    c.net_benefit = c.speed_up / c.token_penalty;
  }
  const std::string diverged = own_divergence(variant), broken = own_divergence(baseline);
  if (!broken.empty()) {  // better than that need not be good, and as bad need not be the format's fault
    c.verdict = Verdict::Inconclusive;
    c.sentence = fmt::format("the baseline is none: {}", broken);
    if (!diverged.empty()) c.sentence += "; and " + diverged;
  } else if (!diverged.empty()) {
    c.verdict = Verdict::Diverged;
    c.sentence = diverged;
  } else if (!same_schedule(c.also_differ, baseline)) {
    c.verdict = Verdict::Inconclusive;
    c.sentence = "at the same step the two are at different places of their schedules";
  } else if (c.steps.empty() || c.steps.back() < fewest_steps) {
    const int64_t steps = c.steps.empty() ? 0 : c.steps.back();
    c.more_steps_needed = fewest_steps - steps;
    c.sentence = fmt::format("the logs have only {} in common; at least {} more are needed",
                             plural(steps, "step"), c.more_steps_needed);
  } else if (c.records < fewest_records) {
    // A window is a fifth of the run: so many steps hold enough records as far apart as these.
    const double apart = static_cast<double>(c.window) / static_cast<double>(std::max<size_t>(c.records, 1));
    c.more_steps_needed = std::max<int64_t>(
        1, static_cast<int64_t>(std::ceil(5 * apart * static_cast<double>(fewest_records))) - c.steps.back());
    c.sentence = fmt::format(
        "the last {} steps hold only {}; {} are needed: train about {} more steps, or with a "
        "smaller log.every",
        c.window, plural(static_cast<int64_t>(c.records), "common record"), fewest_records,
        c.more_steps_needed);
  } else {
    judge(c);
  }
  if (!c.also_differ.empty())
    c.sentence += fmt::format("; these runs also differ in: {}", describe(c.also_differ));
  for (const RunHistory* run : {&baseline, &variant})
    if (const Fallbacks fallbacks = fallbacks_of(*run); fallbacks.linears > 0)
      c.sentence += fmt::format("; in {} {} fell back to BF16, the first after step {}", run->name,
                                plural(fallbacks.linears, "linear"), fallbacks.first);
  return c;
}

}  // namespace octet
