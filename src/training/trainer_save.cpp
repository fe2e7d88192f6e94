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
  const bool busy = busy_anywhere();
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
bool Trainer::busy_anywhere() {
  bool busy = false;
  for (const std::string& one :
       ranks_.all(fmt::format("busy/{}/{}", state_.rollbacks, state_.step), saver_.busy() ? "busy" : ""))
    busy = busy || !one.empty();
  return busy;
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
  memory_.snapshot.take(device_);
  Manifest manifest;
  manifest.config = Json::parse(to_json(config_));
  manifest.config["run"].erase("output");
  manifest.config_hash = config_hash(config_);
  manifest.data_fingerprint = fingerprint_;
  manifest.version = version();
  state_.gradient_reduction = memory_.data_parallel.reduction_state();
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
