// One JSON file per run, read into one struct tree; each floor below defines its own part.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "comm/gradient_reduction.h"
#include "data/dataset.h"
#include "model/spec.h"
#include "model/transformer.h"
#include "numerics/recipe.h"
#include "optimizer/optimizer.h"
#include "optimizer/schedule.h"

namespace octet {

struct RunOptions {
  std::string name = "run";  // [A-Za-z0-9._-]
  std::string output;        // folder; default runs/NAME
  uint64_t seed = 1337;
  int64_t steps = 100;
  bool deterministic = false;
  int threads = 0;  // CPU device; 0 = all
  bool cuda_graphs = true;
  bool operator==(const RunOptions&) const = default;
};
struct BatchOptions {
  int64_t tokens = 8192;  // a step, over all ranks
  int64_t micro = 8;      // context windows a micro-batch
  Recompute recompute = Recompute::None;
  int64_t head_chunk = 1024;
  bool operator==(const BatchOptions&) const = default;
};
struct LossOptions {
  double z_loss = 0;
  bool operator==(const LossOptions&) const = default;
};
struct CheckpointOptions {
  int64_t every = 100;     // steps; 0 = only at the end and on request
  int64_t keep = 3;        // newest ones kept
  int64_t keep_every = 0;  // permanent ones; 0 = none
  bool asynchronous = true;
  std::string on_error = "continue";  // or "exit": what a failed save does
  bool operator==(const CheckpointOptions&) const = default;
};
struct EvaluationOptions {
  int64_t every = 50, batches = 8;
  bool operator==(const EvaluationOptions&) const = default;
};
struct LogOptions {
  int64_t every = 1;
  bool tensorboard = true;
  bool operator==(const LogOptions&) const = default;
};
enum class SpikePolicy : uint8_t { Log, Skip, Rollback };
struct HealthOptions {
  int64_t every = 20;                       // steps between statistics; 0 = off
  bool activations = true;                  // statistics of activations and weights, beside those of casts
  int64_t stop_after_nonfinite = 5;         // consecutive steps (F28)
  SpikePolicy on_spike = SpikePolicy::Log;  // (F30)
  double spike_deviations = 6;              // robust deviations above the median of the window
  int64_t spike_window = 128;
  int64_t max_rollbacks = 3;
  bool operator==(const HealthOptions&) const = default;
};

// Where the states of matrices and embeddings live: with the model, or the optimizer's (masters, moments) in
// host memory, from where they visit the device once a step.
enum class Offload : uint8_t { None, Optimizer };
struct MemoryOptions {
  Offload offload = Offload::None;
  bool operator==(const MemoryOptions&) const = default;
};

// Several ranks. zero 0: every rank keeps all states; 1: masters and moments are sharded; 2: gradients
// too. sync_every above 1: local SGD, ranks train alone for so many steps, then an outer step makes their
// masters one.
struct ParallelOptions {
  int64_t zero = 1;
  GradientWire reduce = GradientWire::BF16;
  int64_t sync_every = 1;
  double outer_learning_rate = 0.7, outer_momentum = 0.9;
  double timeout_seconds = 30;  // a rank that is silent for so long is lost
  double stall_seconds = 300;   // and one that others wait for and that gets no further for so long; 0: never
  bool operator==(const ParallelOptions&) const = default;
};

// The precision of the steps after the first `from`, up to the next stage's (training/segment.h).
struct PrecisionStage {
  int64_t from = 0;
  Recipe precision;
  bool operator==(const PrecisionStage&) const = default;
};

// What takes a single linear out of FP8 while the run goes on (training/fallback.h). A limit of 0 is none.
struct FallbackOptions {
  double saturated = 0;    // share of the values of one of its casts, in a step with statistics
  bool nonfinite = false;  // a step was dropped, and this linear is the first with a value that is not finite
  double kurtosis = 0;     // of its input, in a step with statistics
  int64_t at_most = 4;     // linears
  bool operator==(const FallbackOptions&) const = default;

  bool reads_statistics() const { return saturated > 0 || kurtosis > 0; }
  bool on() const { return reads_statistics() || nonfinite; }
};

struct RunConfig {
  RunOptions run;
  TransformerSpec model;
  Recipe precision;  // of the first stage
  std::vector<PrecisionStage> precision_schedule;
  FallbackOptions fallback;
  DataOptions data;
  BatchOptions batch;
  MemoryOptions memory;
  ParallelOptions parallel;
  LossOptions loss;
  OptimizerOptions optimizer;
  ScheduleOptions schedule;
  CheckpointOptions checkpoint;
  EvaluationOptions evaluation;
  LogOptions log;
  HealthOptions health;
  bool operator==(const RunConfig&) const = default;
};

// Everything wrong at once, as one Error(Usage): JSON pointer, line, found, allowed, nearest valid key
// (F01-F03). `overrides` are "a.b.c=value" (value is JSON, or a bare string).
RunConfig load_config(const std::string& path, const std::vector<std::string>& overrides = {});
RunConfig parse_config(const std::string& text, const std::string& source_name,
                       const std::vector<std::string>& overrides = {});
std::string default_output(const std::string& run_name);  // runs/NAME
// Fully resolved, stable key order, pretty. Only run.output stays empty where it is the default.
std::string to_json(const RunConfig& config);
std::string config_hash(
    const RunConfig& config);  // 16 hex digits of what decides the numbers (not names, paths, log intervals)
std::string json_schema();

// How a key may change on resume (F06).
enum class ChangeClass : uint8_t { Free, Recorded, Forbidden };
struct ConfigChange {
  std::string pointer, before, after;
  ChangeClass change_class;
};
std::vector<ConfigChange> compare_configs(const std::string& before_json, const std::string& after_json);

}  // namespace octet
