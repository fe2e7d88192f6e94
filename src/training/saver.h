// Saves checkpoints beside the training: one at a time, on its own thread, then retention. With several ranks
// each has a saver; they begin the same saves in the same order, rank 0's applies retention.
#pragma once
#include <exception>
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
  CheckpointSaver(std::filesystem::path checkpoints, Retention retention, int64_t newest,
                  RankGroup group = {});
  // Waits for a save under way: on a rank that gives up, that may be until the others know (or have gone).
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  bool busy() const;  // a save is under way or its outcome was not taken yet
  // The payloads' memory must stay as it is until the outcome is taken. Only when not busy().
  void start(Manifest manifest, std::span<const Payload> payloads);
  // Both throw what the group threw, when a rank was lost meanwhile.
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
  RankGroup group_;
  std::exception_ptr lost_;  // what the group threw in the save that has ended
  std::future<SaveOutcome> running_;
};

}  // namespace octet
