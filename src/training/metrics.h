// metrics.jsonl and the TensorBoard log beside it (training/run_files.h).
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "training/tensorboard.h"

namespace octet {

using Json = nlohmann::ordered_json;

// JSON has no NaN or infinity: those are the strings "NaN", "Infinity", "-Infinity".
Json json_number(double value);
double number_of(const Json& value);  // the way back

// Prepares metrics.jsonl for a run that goes on from `step`: a torn last line and every record beyond the
// step are dropped by writing the file anew beside the old one. Never throws; returns the records dropped.
int64_t rewind_metrics(const std::filesystem::path& path, int64_t step) noexcept;

struct RunLogOptions {
  std::filesystem::path folder;  // empty: nothing is written (rank 0 writes for all)
  int64_t resumed_from = -1;     // step; -1: a fresh run, former records go
  bool tensorboard = true;
};

// Both logs of a run. Faults warn once and never stop training (F41, F48).
class RunLog {
 public:
  explicit RunLog(const RunLogOptions& options);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  // One line {"kind", "step", ...fields}; numeric fields with a slash in their name go to TensorBoard too.
  void write(const char* kind, int64_t step, const Json& fields) noexcept;
  void event(int64_t step, const char* name, const std::string& message) noexcept;
  void rewind(int64_t step) noexcept;  // rollback: both logs forget what came after `step`

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::unique_ptr<TensorBoardLog> tensorboard_;
};

}  // namespace octet
