// The folder of one run: whose it is, what is in it, where to go on.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/files.h"
#include "config/run_config.h"
#include "training/checkpoint.h"
#include "training/train.h"

namespace octet {

std::filesystem::path run_output(const RunConfig& config);  // run.output, or runs/NAME

class RunFolder {
 public:
  // Locks the folder and decides between a fresh start and a resume (F05, F06, F11, F23); writes config.json.
  // A folder that held no run is as it was before when the run is refused, here or before settle().
  RunFolder(const TrainRequest& request, const std::string& data_fingerprint);
  // On a rank that follows rank 0, which has made the other one: nothing is locked or written.
  RunFolder(std::filesystem::path path, FoundCheckpoint resume);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }
  const FoundCheckpoint& resume() const { return resume_; }         // folder empty: start at step 0
  const std::vector<std::string>& notes() const { return notes_; }  // events to record once the log is open

  // The next segment (training/segment.h) begins with this folder's checkpoint of `step`.
  void go_on_from(int64_t step);

  enum class State : uint8_t { Running, Finished, Stopped, Failed };
  void settle();  // the run begins: its files stay from now on
  // Never throws: a status that cannot be written is a warning. Nothing is written before settle() into a
  // folder that held no run.
  void write_status(State state, ExitCode code, const std::string& reason) const noexcept;
  void set_step(int64_t step) { step_ = step; }  // what the next status says

 private:
  void prepare(const TrainRequest& request);
  void find_resume(const TrainRequest& request);
  void check_resumable(const TrainRequest& request, const std::string& data_fingerprint);
  void clear();

  // The lock, and what was made for a run that may yet be refused.
  struct Claim {
    std::filesystem::path folder;
    std::vector<std::filesystem::path> made;  // folders, outermost first
    std::unique_ptr<FolderLock> lock;
    bool settled = false;
    Claim() = default;
    ~Claim();
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;
  };

  std::filesystem::path path_;
  bool follows_ = false;
  Claim claim_;
  FoundCheckpoint resume_;
  int64_t step_ = 0;
  std::vector<std::string> notes_;
};

}  // namespace octet
