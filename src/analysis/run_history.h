// A finished or running run, as its folder tells it (training/run_files.h).
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "training/metrics.h"
#include "training/run_status.h"

namespace octet {

struct StepRecord {
  int64_t step = 0, tokens = 0;
  double loss = 0, gradient_norm = 0, learning_rate = 0, tokens_per_second = 0, fp8_flop_share = 0,
         memory_bytes = 0;
  bool skipped = false;
  std::string batch_hash;
};
struct ValidationRecord {
  int64_t step = 0;
  double loss = 0;
};
struct SiteRecord {
  std::string name;
  int block = 0;
  double amax = 0, scale = 0, saturated = 0, flushed = 0;  // the last two are shares of the elements
  double snr = 0;                                          // dB; NaN: not measured
};
struct HealthRecord {
  int64_t step = 0;
  std::vector<SiteRecord> sites;
  // By block, where activations were observed: "kurtosis/qkv" and so on, "log_sum_exp".
  std::map<std::string, std::vector<double>> blocks;
};
struct EventRecord {
  int64_t step = 0;
  std::string event, message;
};

inline constexpr const char* sharpness_file = "sharpness.json";  // in a run's folder, of octet sharpness

// Epsilon-sharpness of a checkpoint, percent (analysis/sharpness.h).
struct SharpnessRecord {
  int64_t step = 0;
  double epsilon = 0;
  double last = 0, last_error = 0;  // mean over the sequences of their last token, and its standard error
  double all = 0;                   // mean over all tokens
};

struct RunHistory {
  std::filesystem::path folder;
  std::string name;
  Json config, start;               // start: the newest "start" record; null before the first step
  std::vector<Json> starts;         // by step; a run whose precision changed has one of each
  std::optional<RunStatus> status;  // empty without a status.json
  std::vector<StepRecord> steps;    // ascending, one a step: what a resume rewound is dropped
  std::vector<ValidationRecord> validations;
  std::vector<HealthRecord> health;
  std::vector<EventRecord> events;
  std::vector<SharpnessRecord> sharpness;  // by step, then epsilon; empty: not measured
};

// Throws Error(Data) naming the file, the line and the key; a partial last line (a killed writer) is
// tolerated.
RunHistory read_run_history(const std::filesystem::path& folder);
// "finished", "killed after step 12", ...; "?" without a status.
std::string describe_state(const RunHistory& run);
double median_throughput(
    const RunHistory& run);  // tokens per second, over the finite records; NaN without one

}  // namespace octet
