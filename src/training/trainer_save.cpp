// When a run saves, and what it says about it. training/saver.h writes.
#include "base/log.h"
#include "base/text.h"
#include "base/version.h"
#include "training/trainer.h"

namespace octet {

bool Trainer::saved() const { return saver_.newest() == state_.step && evaluated_late_ != state_.step; }

void Trainer::poll_saver() { finish(saver_.take_outcome()); }

void Trainer::finish(const std::optional<SaveOutcome>& outcome) {
  if (!outcome) return;
  finish_save(*outcome);
  if (!outcome->error.empty() && config_.checkpoint.on_error == "exit")
    throw Error(
        ExitCode::Checkpoint, fmt::format("the save of step {} failed: {}", outcome->step, outcome->error),
        saver_.newest() >= 0 ? fmt::format("free disk space; the same command goes on from {}",
                                           checkpoint_name(saver_.newest()))
                             : "free disk space; there is no checkpoint: the same command starts afresh");
}

void Trainer::save_if_due() {
  poll_saver();
  const int64_t every = config_.checkpoint.every;
  const bool asked = take_save_request() || save_asked_;
  save_asked_ = false;
  const bool due = every > 0 && state_.step % every == 0 && state_.step < config_.run.steps;
  if ((!asked && !due) || saved()) return;
  const bool busy = busy_anywhere("save");
  if (busy && asked) {
    finish(saver_.wait());
  } else if (busy) {  // never queue: a slow disk must not hold the training up (F25)
    const std::string text =
        fmt::format("step {}: not saved, the save before it is still running", state_.step);
    log_warning("{}", text);
    log_.event(state_.step, "checkpoint", text);
    return;
  }
  start_save();
  if (!config_.checkpoint.asynchronous) finish(saver_.wait());
}

// All ranks begin the same saves.
bool Trainer::busy_anywhere(const char* when) {
  bool busy = false;
  for (const std::string& one : ranks_.all(fmt::format("busy/{}/{}/{}", when, state_.rollbacks, state_.step),
                                           saver_.busy() ? "busy" : ""))
    busy = busy || !one.empty();
  return busy;
}

void Trainer::take_state() {
  memory_.snapshot.take(device_);
  state_.gradient_reduction = memory_.data_parallel.reduction_state();
}

// After a step that all ranks agree after: the steps to come are each rank's own, and no checkpoint. While a
// save still reads the snapshot, it stays as it is.
void Trainer::keep_state() {
  if (!trains_alone(config_) || busy_anywhere("keep")) return;
  take_state();
  kept_ = state_;
}

// A stop does not wait for the ranks to agree: what is saved is the state kept when they did last.
void Trainer::give_up_round() {
  if (!kept_ || memory_.data_parallel.agrees_after(state_.step) || kept_->step == state_.step) return;
  log_info("the {} since step {} were each rank's own: they are given up",
           plural(state_.step - kept_->step, "step"), kept_->step);
  state_ = *kept_;
  folder_.set_step(state_.step);
}

bool Trainer::save_now() {
  if (const auto outcome = saver_.wait()) finish_save(*outcome);
  if (saved()) return true;
  start_save();
  const auto outcome = saver_.wait();
  finish_save(*outcome);
  return outcome->error.empty();
}

void Trainer::start_save() {
  ranks_.set_phase("save", state_.step);
  injector_.enter(Phase::Save, state_.step);
  evaluated_late_ = -1;
  if (!kept_ || kept_->step != state_.step) {
    take_state();
    if (kept_) kept_ = state_;
  }
  Manifest manifest;
  manifest.config = Json::parse(to_json(config_));
  manifest.config["run"].erase("output");
  manifest.config_hash = config_hash(config_);
  manifest.data_fingerprint = fingerprint_;
  manifest.version = version();
  manifest.state = state_;
  saver_.start(std::move(manifest), memory_.snapshot.payloads());
}

void Trainer::finish_save(const SaveOutcome& outcome) {
  if (outcome.error.empty()) {
    const std::string text =
        fmt::format("{} saved in {:.2f} s", checkpoint_name(outcome.step), outcome.seconds);
    log_.event(outcome.step, "checkpoint", text);
    folder_.write_status(RunFolder::State::Running, ExitCode::Success, "");
    if (!request_.quiet && ranks_.leads()) progress_.note(text);
    return;
  }
  save_error_ = outcome.error;
  const std::string newest = saver_.newest() >= 0
                                 ? fmt::format("the newest whole one is {}", checkpoint_name(saver_.newest()))
                                 : "THERE IS NO CHECKPOINT YET";
  const std::string text = fmt::format("SAVE OF STEP {} FAILED: {}; {}", outcome.step, outcome.error, newest);
  log_error("{}", text);
  log_.event(outcome.step, "checkpoint", text);
}

}  // namespace octet
