#include "training/saver.h"

#include <chrono>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"

namespace octet {

CheckpointSaver::CheckpointSaver(std::filesystem::path checkpoints, Retention retention, int64_t newest,
                                 RankGroup group)
    : checkpoints_(std::move(checkpoints)), retention_(retention), newest_(newest), group_(std::move(group)) {
  if (group_.alone()) return;
  group_.all_gather = [this, gather = std::move(group_.all_gather)](const std::string& name,
                                                                    const std::string& mine) {
    try {
      return gather(name, mine);
    } catch (...) {
      lost_ = std::current_exception();
      throw;
    }
  };
}

CheckpointSaver::~CheckpointSaver() {
  if (running_.valid()) running_.wait();
}

bool CheckpointSaver::busy() const { return running_.valid(); }

void CheckpointSaver::start(Manifest manifest, std::span<const Payload> payloads) {
  running_ = std::async(std::launch::async, [this, m = std::move(manifest), payloads]() mutable {
    return save(std::move(m), payloads);
  });
}

std::optional<SaveOutcome> CheckpointSaver::take_outcome() {
  if (!running_.valid() || running_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return {};
  return wait();
}

std::optional<SaveOutcome> CheckpointSaver::wait() {
  if (!running_.valid()) return {};
  SaveOutcome outcome = running_.get();
  if (lost_) std::rethrow_exception(std::exchange(lost_, nullptr));
  if (outcome.error.empty()) newest_ = outcome.step;
  return outcome;
}

SaveOutcome CheckpointSaver::save(Manifest manifest, std::span<const Payload> payloads) noexcept {
  SaveOutcome outcome;
  outcome.step = manifest.state.step;
  const double begin = monotonic_seconds();
  try {
    write_checkpoint(checkpoints_, std::move(manifest), payloads, group_);
    retire();
  } catch (const Error& error) {
    outcome.error = error.hint().empty() ? error.what() : fmt::format("{} ({})", error.what(), error.hint());
  } catch (const std::exception& error) {
    outcome.error = error.what();
  }
  outcome.seconds = monotonic_seconds() - begin;
  return outcome;
}

// After the newest is verified. A checkpoint that cannot be removed costs space, not the save.
void CheckpointSaver::retire() noexcept {
  if (!group_.leads()) return;
  try {
    const std::vector<CheckpointEntry> entries = list_checkpoints(checkpoints_);
    std::vector<int64_t> steps;
    for (const CheckpointEntry& e : entries) steps.push_back(e.step);
    for (const int64_t step : removable(steps, retention_))
      remove_durably(checkpoints_ / checkpoint_name(step), ExitCode::Checkpoint);
  } catch (const std::exception& error) {
    try {
      log_warning("old checkpoints: {}", error.what());
    } catch (...) {
    }
  }
}

}  // namespace octet
