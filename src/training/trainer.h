// The step loop. A step is a pure function of (configuration, step, masters, moments, scale state): nothing
// else is remembered, so a checkpoint is exactly that list and resuming is exact.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/signals.h"
#include "data/loader.h"
#include "device/device.h"
#include "training/detector.h"
#include "training/fallback.h"
#include "training/health_rules.h"
#include "training/inject.h"
#include "training/metrics.h"
#include "training/progress.h"
#include "training/ranks.h"
#include "training/run_folder.h"
#include "training/run_memory.h"
#include "training/saver.h"
#include "training/segment.h"
#include "training/step_readback.h"
#include "training/train.h"

namespace octet {

struct TrainerParts {
  const TrainRequest& request;
  Device& device;
  const Dataset& train;
  const Dataset* validation;  // null: no evaluation
  std::string data_fingerprint;
  RunFolder& folder;
  RunMemory& memory;
  size_t planned_bytes;
  SignalGuard& signals;
  Injector& injector;
  Ranks& ranks;
  ObservedDevice* observed;  // the device once more, where something is injected into the state
  const Segment& segment;
};

class Trainer {
 public:
  explicit Trainer(const TrainerParts& parts);
  // Empty: the segment is over and its state saved; the folder says where the next one begins.
  std::optional<TrainResult> run();

 private:
  enum class Outcome : uint8_t { Done, Interrupted, Diverged };
  struct StepReport {
    int64_t step = 0;  // from 1
    double begin = 0;  // monotonic
    double loss = 0, gradient_norm = 0, learning_rate = 0;
    bool skip = false;  // the policy says so
    bool applied = false, spike = false;
    std::vector<uint64_t> batch_hashes;              // of this rank's micro-batches; settled: of all
    std::vector<double> source_loss, source_tokens;  // of mixtures
    uint64_t batch_hash = 0;
    // Of this rank; settled: the most that any rank sent, the mean of what they waited.
    Traffic traffic;
    MatmulCounts matmuls;
    std::vector<int> sources;         // of mixtures: of every context window
    std::vector<std::string> epochs;  // that begin in it
    Json health;                      // null: not due
  };

  std::optional<TrainResult> loop();
  void begin();  // initial weights or those of a checkpoint
  int64_t launched() const;
  bool runs_ahead();
  bool stop_requested() const;  // by a signal here; several ranks: as all have agreed
  bool take_save_request();
  std::string stop_reason() const;
  // What only all ranks know together; of ranks that train alone also loss, norm and outcome.
  void exchange(StepReport& report, UpdateControl& control);
  Outcome launch();
  Outcome settle();
  bool gradients(StepReport& report);  // all micro-batches; false when a stop was asked for meanwhile
  void update(const StepReport& report);
  bool judge(const StepReport& report, const UpdateControl& control);
  // trainer_health.cpp
  bool statistics_due(int64_t step) const;
  void look_at(int64_t next_step);     // statistics on or off
  void take_statistics(int64_t step);  // of all ranks; enqueued
  void forget_statistics();            // of a step that is given up
  // Record and warnings, once the step is settled; empty: no statistics in it.
  std::optional<Health> examine(StepReport& report);
  bool may_fall_back(int64_t step) const;
  void fall_back(const StepReport& report, const std::optional<Health>& health, const UpdateControl& control);
  void record(const StepReport& report);
  void record_start(const MatmulCounts& counts);
  void add_source_losses(StepReport& report) const;
  void note_epochs(const MicroBatch& batch, StepReport& report);

  bool evaluation_due(int64_t step) const;
  bool evaluate_if_due();  // false when interrupted
  bool roll_back(double loss, double deviation);
  std::string diagnosis(const StepReport& report, const UpdateControl& control) const;

  void restore(const FoundCheckpoint& found);
  bool goes_on_in_new_segment() const;
  void note_resume();  // of a process, or of the segment before
  bool saved() const;  // the state of this step is on disk, its evaluation included
  void save_if_due();
  bool busy_anywhere(const char* when);
  bool save_now();  // waits; false when it failed
  void start_save();
  void take_state();  // the snapshot is of this step
  void keep_state();
  void give_up_round();
  void poll_saver();  // Error(Checkpoint) where a failed save ends the run
  void finish(const std::optional<SaveOutcome>& outcome);
  void finish_save(const SaveOutcome& outcome);  // says how it ended

  void note_moments(const std::filesystem::path& checkpoint);  // of another number of ranks
  void check_first_step();  // Error(Usage) of the disk, Error(Data) of the ids
  void open_loader();
  void load_validation_windows();
  std::string communication() const;  // of a step on average; empty alone
  TrainResult result(ExitCode code, const std::string& reason);
  TrainResult stop();

  void change_state(int64_t step, const MicroBatch& first);  // what --inject asks for, if anything

  const RunConfig& config_;
  const TrainRequest& request_;
  Device& device_;
  ObservedDevice* observed_;
  const DeviceInfo device_info_;  // asked once: a CPU's clock, hence its stated peak, moves
  const Dataset& data_;
  const Dataset* validation_;
  std::string fingerprint_;
  RunFolder& folder_;
  Segment segment_;
  RunMemory& memory_;
  size_t planned_bytes_;
  SignalGuard& signals_;
  Injector& injector_;
  Ranks& ranks_;
  Requests requests_;  // several ranks: what all do after the step launched last

  TrainingState state_;
  // Of the snapshot. Where ranks train alone, it is taken whenever they agree: a stop between goes back to
  // it.
  std::optional<TrainingState> kept_;
  SpikeDetector detector_;
  HealthRules rules_;
  SampleOrder order_;
  RunLog log_;
  Progress progress_;
  CheckpointSaver saver_;
  std::unique_ptr<Loader> loader_;
  int64_t evaluated_late_ = -1;  // step that was saved before its evaluation: a stop cut that short
  std::vector<int64_t> epochs_;  // newest epoch seen, by source; -1: none yet
  int64_t validation_batches_ = 0, validation_windows_ = 0;
  double step_seconds_ = 0;  // smoothed, for the time left
  // Of this process's steps so far.
  Traffic traffic_;
  double all_seconds_ = 0;
  int64_t settled_steps_ = 0;
  bool started_ = false;  // the start record is written after the first step
  // The step the device works on while the next is enqueued; `state_` is that before it.
  std::optional<StepReport> in_flight_;
  StepReadback readback_;
  double settled_at_ = 0;    // monotonic
  bool changed_ = false;     // the masters are those of an injected step that has not ended yet
  bool save_asked_ = false;  // a signal's, not yet answered
  std::string failure_;      // why the run has to end
  std::string save_error_;   // of the newest save that failed
};

}  // namespace octet
