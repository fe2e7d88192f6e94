// What the trainer writes down: one record a step, the proof of precision, and what broke a step.
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/text.h"
#include "base/version.h"
#include "numerics/sums.h"
#include "training/precision_proof.h"
#include "training/trainer.h"

namespace octet {

namespace {

uint64_t resident_bytes() {  // of this process, now
  std::ifstream file("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

std::string Trainer::diagnosis(const StepReport& report, const UpdateControl& control) const {
  const std::string text =
      fmt::format("loss {} and gradient norm {} on samples {}..{}", report.loss, report.gradient_norm,
                  state_.next_sample, state_.next_sample + global_batch(config_) - 1);
  if (control.nonfinite_piece == 0) return text + "; every gradient is finite";
  int64_t piece = control.nonfinite_piece - 1;
  for (const Parameter& p : memory_.model.parameters()) {
    const int64_t count = p.gradient.elements(), pieces = (count + norm_piece - 1) / norm_piece;
    if (piece < pieces)
      return text + fmt::format("; first non-finite gradient: {}, elements {}..{}", p.name,
                                piece * norm_piece, std::min((piece + 1) * norm_piece, count) - 1);
    piece -= pieces;
  }
  return text;
}

// Of this rank's windows, by source of a mixture.
void Trainer::add_source_losses(StepReport& r) const {
  if (r.sources.empty()) return;
  const int64_t context = config_.model.context, windows = config_.batch.micro;
  r.source_loss.assign(data_.sources().size(), 0);
  r.source_tokens.assign(data_.sources().size(), 0);
  for (size_t w = 0; w < r.sources.size(); ++w) {
    const auto source = static_cast<size_t>(r.sources[w]);
    const auto window = static_cast<int64_t>(w);
    const float* losses = readback_.token_losses(r.step, window / windows) + window % windows * context;
    for (int64_t i = 0; i < context; ++i) r.source_loss[source] += losses[i];
    r.source_tokens[source] += static_cast<double>(context);
  }
}

void Trainer::record(const StepReport& r) {
  // Launched while the step before was under way: its own time begins where that ended.
  const double now = monotonic_seconds(), seconds = now - std::max(r.begin, settled_at_);
  settled_at_ = now;
  const double tokens_per_second = static_cast<double>(config_.batch.tokens) / seconds;
  for (size_t i = 0; i < traffic_kinds; ++i) traffic_.sent_bytes[i] += r.traffic.sent_bytes[i];
  traffic_.waited_seconds += r.traffic.waited_seconds;
  all_seconds_ += seconds;
  ++settled_steps_;
  step_seconds_ = step_seconds_ > 0 ? 0.9 * step_seconds_ + 0.1 * seconds : seconds;
  require_promised_precision(r.matmuls, config_.model, segment_.recipe);
  if (!started_) record_start(r.matmuls);

  const bool last = r.step == config_.run.steps;
  const uint64_t memory = resident_bytes();
  if (last || !r.applied || config_.log.every <= 1 || r.step % config_.log.every == 0) {
    Json record = {{"tokens", state_.tokens},
                   {"time", wall_seconds()},
                   {"train/loss", json_number(r.loss)},
                   {"train/grad_norm", json_number(r.gradient_norm)},
                   {"train/learning_rate", r.learning_rate},
                   {"train/skipped", r.applied ? 0 : 1},
                   {"data/batch_hash", hex(r.batch_hash)},
                   {"data/stalled_seconds", loader_->stalled_seconds()},
                   {"perf/tokens_per_second", tokens_per_second},
                   {"perf/step_seconds", seconds},
                   {"perf/fp8_flop_share", fp8_flop_share(r.matmuls)},
                   {"memory/bytes", memory}};
    if (!ranks_.alone())
      record.update({{"comm/gradient_bytes", r.traffic.sent(TrafficKind::Gradients)},
                     {"comm/weight_bytes", r.traffic.sent(TrafficKind::Weights)},
                     {"comm/other_bytes", r.traffic.sent(TrafficKind::Other)},
                     {"comm/waited_seconds", r.traffic.waited_seconds}});
    for (size_t s = 0; s < r.source_loss.size(); ++s)
      if (r.source_tokens[s] > 0)
        record["train/loss/" + data_.sources()[s].name] = json_number(r.source_loss[s] / r.source_tokens[s]);
    log_.write("step", r.step, record);
  }
  if (!r.health.is_null()) log_.write("health", r.step, r.health);

  if (request_.quiet || !ranks_.leads()) return;
  ProgressLine line;
  line.step = r.step;
  line.steps = config_.run.steps;
  line.loss = r.loss;
  line.gradient_norm = r.gradient_norm;
  line.learning_rate = r.learning_rate;
  line.tokens_per_second = tokens_per_second;
  if (const double peak = device_info_.peak_flops; peak > 0)
    line.peak_share = config_.model.flops_per_token() * tokens_per_second / peak;
  line.memory_bytes = memory;
  line.seconds_left = step_seconds_ * static_cast<double>(config_.run.steps - r.step);
  line.skipped = !r.applied;
  progress_.show(line);
}

std::string Trainer::communication() const {
  if (ranks_.alone() || settled_steps_ == 0) return {};
  const auto sent = [&](TrafficKind kind) {
    return human_bytes(traffic_.sent(kind) / static_cast<uint64_t>(settled_steps_));
  };
  return fmt::format(
      "sent by a rank in a step: {} of gradients, {} of weights, {} else; waited {:.1f} % of the time",
      sent(TrafficKind::Gradients), sent(TrafficKind::Weights), sent(TrafficKind::Other),
      100 * traffic_.waited_seconds / all_seconds_);
}

// After the first step of this process, when matmul has counted what it really ran.
void Trainer::record_start(const MatmulCounts& counts) {
  started_ = true;
  Json injected = Json::array();
  for (const StateInjection& one : injector_.of_state()) injected.push_back(one.text);
  log_.write("start", state_.step - 1,
             {{"time", wall_seconds()},
              {"config_hash", config_hash(config_)},
              {"init_hash", state_.init_hash},
              {"data_fingerprint", fingerprint_},
              {"device", device_info_.name},
              {"version", version()},
              {"recipe", segment_.recipe.name},
              {"stage", segment_.stage + 1},
              {"inject", injected},
              {"gemm_table", gemm_table(counts)},
              {"parameters", config_.model.parameters()},
              {"memory_bytes", planned_bytes_},
              {"environment",
               {{"build", build_summary()},
                {"peak_flops", device_info_.peak_flops},
                {"peak_source", device_info_.peak_source},
                {"flops_per_token", config_.model.flops_per_token()},
                {"threads", config_.run.threads},
                {"ranks", ranks_.count()},
                {"deterministic", config_.run.deterministic}}}});
  if (!request_.quiet && ranks_.leads()) progress_.note(format_gemm_table(counts));
}

}  // namespace octet
