// The model of a checkpoint, in the memory that its run had, without data and folder: for measurements.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "config/run_config.h"
#include "device/device.h"
#include "training/checkpoint.h"
#include "training/run_memory.h"

namespace octet {

// The checkpoints at a path: of a run's folder all, oldest first; or the one that it is. Error(Checkpoint)
// when there are none.
std::vector<CheckpointEntry> checkpoints_at(const std::filesystem::path& path);

// What the checkpoint's run was configured to be, with overrides on top. Moments and masters keep the formats
// that the checkpoint has them in: forward and backward passes do not read them.
RunConfig config_of(const Manifest& manifest, const std::filesystem::path& checkpoint,
                    const std::vector<std::string>& overrides = {});

class LoadedModel {
 public:
  LoadedModel(Device& device, const RunConfig& config);  // one rank
  ~LoadedModel();
  LoadedModel(const LoadedModel&) = delete;
  LoadedModel& operator=(const LoadedModel&) = delete;

  // The whole state, and working weights; scales are forgotten where the checkpoint was made with another
  // precision. Error(Checkpoint) when it is damaged, or of another model.
  void load(const std::filesystem::path& checkpoint);
  Transformer& model() { return memory_->model; }

 private:
  struct Arenas;
  Device& device_;
  RunConfig config_;
  std::unique_ptr<Arenas> arenas_;
  std::unique_ptr<RunMemory> memory_;
};

}  // namespace octet
