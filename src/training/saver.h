// Saves checkpoints beside the training: one at a time, on its own thread, then retention.
#pragma once
#include <filesystem>
#include <future>
#include <optional>
#include <span>
#include <string>

#include "training/checkpoint.h"

namespace octet {

struct SaveOutcome {
  int64_t step = 0;
  double seconds = 0;
  std::string error;  // empty: on disk, verified, older ones retired
};

class CheckpointSaver {
 public:
  CheckpointSaver(std::filesystem::path checkpoints, Retention retention, int64_t newest);
  ~CheckpointSaver();  // waits for a save under way
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  bool busy() const;  // a save is under way or its outcome was not taken yet
  // The payloads' memory must stay as it is until the outcome is taken. Only when not busy().
  void start(Manifest manifest, std::span<const Payload> payloads);
  std::optional<SaveOutcome> take_outcome();  // of a save that has ended; never waits
  std::optional<SaveOutcome> wait();          // until it has ended; empty when none is under way

  // Applies retention. Only while the newest checkpoint is known whole: after a save, or after resuming from
  // it.
  void retire() noexcept;

  int64_t newest() const { return newest_; }         // step of the newest checkpoint known whole; -1: none
  void go_back_to(int64_t step) { newest_ = step; }  // rollback. Only when not busy().

 private:
  SaveOutcome save(Manifest manifest, std::span<const Payload> payloads) noexcept;

  std::filesystem::path checkpoints_;
  Retention retention_;
  int64_t newest_;
  std::future<SaveOutcome> running_;
};

}  // namespace octet
