#include "training/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/text.h"
#include "optimizer/schedule.h"

namespace octet {

Trainer::Trainer(const TrainerParts& p)
    : config_(p.request.config),
      request_(p.request),
      device_(p.device),
      observed_(p.observed),
      device_info_(p.device.info()),
      data_(p.train),
      validation_(p.validation),
      fingerprint_(p.data_fingerprint),
      folder_(p.folder),
      segment_(p.segment),
      memory_(p.memory),
      planned_bytes_(p.planned_bytes),
      signals_(p.signals),
      injector_(p.injector),
      ranks_(p.ranks),
      state_(p.folder.resume().manifest.state),
      detector_(config_.health.spike_deviations, config_.health.spike_window),
      rules_(config_.schedule.warmup_steps, {.adaptive = segment_.recipe.adaptive}),
      order_(p.train, config_.run.seed, window_order(config_)),
      log_({p.ranks.leads() ? folder_.path() : std::filesystem::path(),
            folder_.resume().folder.empty() ? -1 : state_.step, config_.log.tensorboard}),
      saver_(
          folder_.checkpoints(), {config_.checkpoint.keep, config_.checkpoint.keep_every},
          folder_.resume().folder == folder_.checkpoints() / checkpoint_name(state_.step) ? state_.step : -1,
          p.ranks.alone() ? RankGroup{} : rank_group(*p.ranks.control())),
      epochs_(p.train.sources().size(), -1),
      readback_(device_,
                {static_cast<int64_t>(memory_.model.scales().sites.size()),
                 memory_.model.observations().layout, static_cast<int64_t>(memory_.model.parameters().size()),
                 p.train.sources().size() > 1 ? accumulation(config_, p.ranks.count()) : 0,
                 config_.batch.micro * config_.model.context}) {}

std::optional<TrainResult> Trainer::run() {
  begin();
  try {
    return loop();
  } catch (const Error& error) {
    // With several ranks a save needs all of them, and the others wait in the step's reductions: this rank
    // leaves at once, they follow, and the newest checkpoint is whole.
    // Nor is a state saved that an injection has begun to change.
    if (error.code() != ExitCode::Data || !ranks_.alone() || changed_) throw;
    // A shard shrank or vanished under the run (F12): what was learned so far is kept.
    settle();
    give_up_round();
    log_error("{}: saving step {} before stopping", error.what(), state_.step);
    save_now();
    log_.event(state_.step, "stop", error.what());
    throw;
  }
}

std::optional<TrainResult> Trainer::loop() {
  // What a stop cut short is made up for before the first step, as an uninterrupted run would have done it.
  if (!evaluate_if_due()) return stop();
  if (evaluated_late_ == state_.step && state_.step < config_.run.steps) save_if_due();
  while (launched() < segment_.end) {
    Outcome outcome = stop_requested() ? Outcome::Interrupted : launch();
    const bool ahead = outcome == Outcome::Done && runs_ahead();
    if (!ahead && settle() == Outcome::Diverged) outcome = Outcome::Diverged;
    if (outcome == Outcome::Diverged) return result(ExitCode::Numerics, failure_);
    if (outcome == Outcome::Interrupted) return stop();
    poll_saver();
    if (ahead || !memory_.data_parallel.agrees_after(state_.step)) continue;
    keep_state();
    if (!evaluate_if_due()) return stop();
    if (kept_ && kept_->step == state_.step) kept_ = state_;  // and what the evaluation found
    save_if_due();
  }
  const bool finished = state_.step == config_.run.steps;
  if (!finished && stop_requested()) return stop();
  if (!save_now())
    return result(ExitCode::Checkpoint,
                  (finished ? "trained to the end, but the last save failed: "
                            : "the precision changes after this step, and the save failed: ") +
                      save_error_);
  if (finished) return result(ExitCode::Success, "");
  folder_.go_on_from(state_.step);
  return {};
}

// ---- the step
// ---------------------------------------------------------------------------------------------------

int64_t Trainer::launched() const { return in_flight_ ? in_flight_->step : state_.step; }

// Whether the next step may be launched before this one is settled: nobody needs its result, or the state as
// it leaves it.
bool Trainer::runs_ahead() {
  const int64_t step = launched(), save = config_.checkpoint.every;
  save_asked_ = take_save_request() || save_asked_;
  return device_info_.asynchronous && config_.health.on_spike == SpikePolicy::Log && step < segment_.end &&
         !may_fall_back(step) && !save_asked_ && !stop_requested() && (save <= 0 || step % save != 0) &&
         !evaluation_due(step) && !(trains_alone(config_) && memory_.data_parallel.agrees_after(step));
}

// Enqueues a step, then settles the one before: the host waits while the device has work.
Trainer::Outcome Trainer::launch() {
  StepReport report;
  report.step = launched() + 1;
  report.begin = monotonic_seconds();
  report.learning_rate = learning_rate(config_.schedule, report.step - 1, config_.run.steps);
  ranks_.set_phase("step", report.step);
  injector_.enter(Phase::Step, report.step);
  if (ControlPlane* control = ranks_.control()) {
    if (signals_.stop_requested()) control->request_stop(signals_.stop_reason());
    if (signals_.take_save_request()) control->request_save();
    control->propose(report.step);
  }
  device_.reset_matmul_counts();

  if (!gradients(report)) return Outcome::Interrupted;
  if (config_.health.on_spike != SpikePolicy::Log) {  // decided before the update, so the host waits
    double sum = 0;
    device_.synchronize();
    device_.copy_to_host(&sum, memory_.model.loss_sum().data, sizeof(sum));
    const double loss = sum / static_cast<double>(config_.batch.tokens);
    const bool spike = std::isfinite(loss) && detector_.is_spike(loss);
    report.skip = spike && config_.health.on_spike == SpikePolicy::Skip;
    if (spike && config_.health.on_spike == SpikePolicy::Rollback) {
      const int64_t from = state_.step;
      if (roll_back(loss, detector_.deviation(loss))) {
        if (ControlPlane* control = ranks_.control()) requests_ = control->agreed(report.step);
        return Outcome::Done;
      }
      if (!failure_.empty()) return Outcome::Diverged;
      log_.event(from, "spike", "no checkpoint to roll back to: the run goes on");
    }
  }
  update(report);
  report.traffic = ranks_.take_traffic();
  report.matmuls = device_.matmul_counts();
  if (ControlPlane* control = ranks_.control()) requests_ = control->agreed(report.step);
  if (settle() == Outcome::Diverged) return Outcome::Diverged;  // what was just enqueued is given up
  in_flight_ = std::move(report);
  return Outcome::Done;
}

bool Trainer::gradients(StepReport& report) {
  const int64_t micros = accumulation(config_, ranks_.count());
  DataParallel& parallel = memory_.data_parallel;
  const double tokens = parallel.step_tokens();
  parallel.begin_step();
  for (int64_t micro = 0; micro < micros; ++micro) {
    // A partial step leaves no trace in the state: what is saved now is the end of the step before.
    // With several ranks all stop after the same step.
    if (ranks_.alone() && stop_requested() && !changed_) return false;
    const MicroBatch& batch = loader_->next();
    if (micro == 0) change_state(report.step, batch);
    note_epochs(batch, report);
    report.batch_hashes.push_back(batch.hash);
    const MicroBatchPlace place{micro * ranks_.count() + ranks_.rank(), micro + 1 == micros};
    memory_.model.forward_backward(batch.tokens.data(), batch.targets.data(), static_cast<float>(1 / tokens),
                                   {report.step - 1, place.over_ranks},
                                   parallel.reduce_as_ready(report.step, place), parallel.ready_work());
    if (data_.sources().size() > 1) {
      readback_.take_token_losses(report.step, micro, memory_.model.token_losses());
      report.sources.insert(report.sources.end(), batch.sources.begin(), batch.sources.end());
    }
  }
  parallel.finish_gradients();

  if (const double extra = injector_.spike(report.step); extra > 0) {
    double sum = 0;
    device_.synchronize();
    device_.copy_to_host(&sum, memory_.model.loss_sum().data, sizeof(sum));
    sum += extra * tokens;
    device_.copy_from_host(memory_.model.loss_sum().data, &sum, sizeof(sum));
  }
  if (injector_.nan(report.step)) {
    const Tensor gradient = memory_.model.parameters().front().step_gradient();
    const uint32_t nan32 = 0x7fc00000u;
    const uint16_t nan16 = 0x7fc0u;
    const bool narrow = gradient.dtype == DType::BF16;
    if (gradient.elements() > 0)
      device_.upload(gradient.data, narrow ? static_cast<const void*>(&nan16) : &nan32, narrow ? 2 : 4);
  }
  return true;
}

// Before the first forward pass of a step, so that a checkpoint of the step before is from before it. The
// step then ends whatever happens: a change that is saved half would be made twice.
void Trainer::change_state(int64_t step, const MicroBatch& first) {
  for (const StateInjection& one : injector_.of_state()) {
    if (one.step != step) continue;
    changed_ = true;
    const std::string text = apply(one, {*observed_, memory_, ranks_, step, state_.rollbacks, first});
    log_warning("step {}: injected {}", step, text);
    log_.event(step, "inject", text);
  }
}

// Scales first, working weights second: the codes are then a function of what a checkpoint holds. After a
// step that is not applied the scales stay, and its amaxes (which may be NaN) and counters are forgotten.
// Whether it is applied the device decides for itself.
void Trainer::update(const StepReport& report) {
  ranks_.set_phase("update", report.step);
  injector_.enter(Phase::Update, report.step);
  RunMemory& m = memory_;
  m.data_parallel.decide(report.step);
  m.data_parallel.merge_amaxes();
  m.data_parallel.merge_counters();
  take_statistics(report.step);
  readback_.take_outcome(report.step, m.model.loss_sum(), m.optimizer.control());
  look_at(report.step + 1);
  if (report.skip) {
    forget_statistics();
    m.data_parallel.refresh_working_weights(report.step);
    changed_ = false;
    return;
  }
  m.model.update_scales(report.step - 1, m.optimizer.control());
  m.data_parallel.update(report.learning_rate, report.step);
  changed_ = false;
}

// Waits for the step in flight and does the books: `state_` is the device's again.
Trainer::Outcome Trainer::settle() {
  if (!in_flight_) return Outcome::Done;
  StepReport report = std::move(*in_flight_);
  in_flight_.reset();
  readback_.wait(report.step);
  ranks_.check();
  add_source_losses(report);
  UpdateControl control = readback_.control(report.step);
  report.loss = readback_.loss_sum(report.step) / memory_.data_parallel.step_tokens();
  exchange(report, control);
  report.gradient_norm = control.gradient_norm;
  report.applied = !report.skip && control.apply != 0;
  report.spike = std::isfinite(report.loss) && detector_.is_spike(report.loss);
  const std::optional<Health> health = examine(report);
  const bool goes_on = judge(report, control);
  if (goes_on) fall_back(report, health, control);
  detector_.observe(report.loss);
  state_.step = report.step;
  folder_.set_step(state_.step);
  state_.tokens += config_.batch.tokens;
  state_.next_sample += global_batch(config_);
  state_.loss = report.loss;
  state_.spike_history = detector_.history();
  record(report);
  return goes_on ? Outcome::Done : Outcome::Diverged;
}

bool Trainer::stop_requested() const { return ranks_.alone() ? signals_.stop_requested() : requests_.stop; }
bool Trainer::take_save_request() {
  return ranks_.alone() ? signals_.take_save_request() : std::exchange(requests_.save, false);
}
std::string Trainer::stop_reason() const {
  return ranks_.alone() ? signals_.stop_reason() : requests_.stop_reason;
}

// What a spike, or a loss or norm that is not finite, means for the run; false when it has to end.
bool Trainer::judge(const StepReport& report, const UpdateControl& control) {
  for (const std::string& note : report.epochs) log_.event(report.step - 1, "epoch", note);
  if (report.spike) {
    const std::string text = fmt::format(
        "loss {:.4f} is {:.1f} robust deviations above the median of {} steps{}", report.loss,
        detector_.deviation(report.loss), detector_.history().size(), report.skip ? ": update skipped" : "");
    log_warning("step {}: {}", report.step, text);
    log_.event(report.step, "spike", text);
  }
  const bool finite = control.apply != 0;
  state_.consecutive_nonfinite = finite ? 0 : state_.consecutive_nonfinite + 1;
  if (report.applied) return true;
  ++state_.skipped_steps;
  if (finite) {
    log_.event(report.step, "skipped", "loss spike");
    return true;
  }
  const std::string why = diagnosis(report, control);
  log_warning("step {}: {}; the update was not applied ({} in a row)", report.step, why,
              state_.consecutive_nonfinite);
  log_.event(report.step, "skipped", why);
  if (config_.health.stop_after_nonfinite <= 0 ||
      state_.consecutive_nonfinite < config_.health.stop_after_nonfinite)
    return true;
  failure_ =
      fmt::format("{} in a row not finite; last: {}", plural(state_.consecutive_nonfinite, "step"), why);
  return false;
}

void Trainer::note_epochs(const MicroBatch& batch, StepReport& report) {
  for (const int64_t sample : batch.samples) {
    const SampleLocation at = order_.locate(sample);
    int64_t& newest = epochs_[static_cast<size_t>(at.source)];
    if (newest >= 0 && at.epoch > newest)
      report.epochs.push_back(fmt::format("source {}: epoch {} begins, in an order of its own",
                                          data_.sources()[static_cast<size_t>(at.source)].name,
                                          at.epoch + 1));
    newest = std::max(newest, at.epoch);
  }
}

// ---- rollback
// ---------------------------------------------------------------------------------------------------

// Back to the newest checkpoint, and on with the data after the spike.  [PaLM 2204.02311, 5.1]
bool Trainer::roll_back(double loss, double deviation) {
  if (const auto outcome = saver_.wait()) finish_save(*outcome);
  const std::string text = fmt::format("loss {:.4f} at step {} is {:.1f} robust deviations above the median",
                                       loss, state_.step + 1, deviation);
  if (state_.rollbacks >= config_.health.max_rollbacks) {
    failure_ = fmt::format("{}, after {} (health.max_rollbacks)", text, plural(state_.rollbacks, "rollback"));
    return false;
  }
  FoundCheckpoint found;
  if (ranks_.leads()) found = find_newest_checkpoint(folder_.checkpoints());
  found.folder = ranks_.from_leader(fmt::format("rollback/{}", state_.rollbacks), found.folder.string());
  if (found.folder.empty()) return false;
  if (!ranks_.leads()) found.manifest = read_manifest(found.folder);
  if (found.manifest.state.step < segment_.begin) {  // each segment begins with a save: it is damaged
    failure_ = fmt::format(
        "{}, and the newest whole checkpoint, {}, is from before the precision changed at step {}", text,
        found.folder.filename().string(), segment_.begin);
    return false;
  }
  const int64_t next_sample = state_.next_sample + global_batch(config_), rollbacks = state_.rollbacks + 1,
                skipped = next_sample - found.manifest.state.next_sample;
  restore(found);
  changed_ = false;
  state_ = found.manifest.state;
  if (ranks_.leads())
    set_aside_later(folder_.checkpoints(), state_.step);  // damaged ones that were passed over
  saver_.go_back_to(state_.step);
  state_.next_sample = next_sample;
  state_.rollbacks = rollbacks;
  folder_.set_step(state_.step);
  detector_.restore(state_.spike_history);
  rules_.restore(state_.health);
  forget_statistics();
  look_at(state_.step + 1);
  memory_.data_parallel.start(state_.step);
  open_loader();
  log_.rewind(state_.step);
  const std::string message =
      fmt::format("{}: back to step {}, {} of data passed over (rollback {} of {})", text, state_.step,
                  plural(skipped, "window"), rollbacks, config_.health.max_rollbacks);
  log_warning("{}", message);
  log_.event(state_.step, "rollback", message);
  return true;
}

// ---- the end
// ---------------------------------------------------------------------------------------------------

TrainResult Trainer::stop() {
  const std::string signal = stop_reason();
  give_up_round();
  log_info("{}: saving step {} before stopping", signal, state_.step);
  if (!save_now()) return result(ExitCode::StoppedUnsaved, signal + ", and the save failed: " + save_error_);
  return result(ExitCode::Stopped, signal);
}

TrainResult Trainer::result(ExitCode code, const std::string& reason) {
  if (const auto outcome = saver_.wait()) finish_save(*outcome);
  if (code != ExitCode::Success) log_.event(state_.step, "stop", reason);
  const bool stopped = code == ExitCode::Stopped || code == ExitCode::StoppedUnsaved;
  folder_.write_status(code == ExitCode::Success ? RunFolder::State::Finished
                       : stopped                 ? RunFolder::State::Stopped
                                                 : RunFolder::State::Failed,
                       code, reason);
  std::vector<std::string> fallbacks;
  for (const Fallback& one : state_.fallbacks) fallbacks.push_back(describe(one));
  return {code,
          state_.step,
          state_.loss,
          state_.validated_step == state_.step ? state_.validation_loss : 0,
          folder_.path().string(),
          reason,
          saver_.newest(),
          communication(),
          fallbacks};
}

}  // namespace octet
