#include "training/loaded_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "base/text.h"
#include "training/run_files.h"

namespace octet {
namespace fs = std::filesystem;

std::vector<CheckpointEntry> checkpoints_at(const fs::path& path) {
  std::error_code ignored;
  if (fs::exists(path / manifest_file, ignored)) return {{read_manifest(path).state.step, path}};
  std::vector<CheckpointEntry> entries = list_checkpoints(path / checkpoint_folder);
  if (entries.empty()) entries = list_checkpoints(path);
  if (entries.empty())
    throw Error(ExitCode::Checkpoint, fmt::format("{}: no checkpoints here", escape_control(path.string())),
                "give a run's folder, its checkpoints folder or one checkpoint");
  return entries;
}

RunConfig config_of(const Manifest& manifest, const fs::path& checkpoint,
                    const std::vector<std::string>& overrides) {
  const std::string text = manifest.config.dump(), source = (checkpoint / manifest_file).string();
  // The precision of the step that was saved.
  RunConfig saved = parse_config(text, source);
  saved.precision = segment_of_step(saved, manifest.state.fallbacks, manifest.state.step).recipe;
  saved.precision_schedule.clear();
  saved.fallback = {};
  if (overrides.empty()) return saved;
  const Json own = Json::parse(to_json(saved));
  Json config = Json::parse(to_json(parse_config(own.dump(), source, overrides)));
  // As they are stored, whatever another recipe would make of them.
  for (const char* state : {"moments", "master"})
    if (own.at("precision").contains(state)) config["precision"][state] = own.at("precision").at(state);
  return parse_config(config.dump(), source);
}

// Memory of the three kinds, given back together.
struct LoadedModel::Arenas {
  Arenas(Device& the_device, const PlannedMemory& the_bytes)
      : device(the_device),
        bytes(the_bytes),
        on_device(device.allocate(bytes.device_bytes)),
        on_host(std::aligned_alloc(MemoryPlan::alignment, std::max(bytes.host_bytes, MemoryPlan::alignment))),
        page_locked(bytes.offload_bytes > 0 ? device.allocate_host(bytes.offload_bytes) : nullptr) {
    if (!on_host) throw out_of_memory();
    device_plan = MemoryPlan(on_device, bytes.device_bytes);
    host_plan = MemoryPlan(on_host, bytes.host_bytes);
    offload_plan = MemoryPlan(page_locked, bytes.offload_bytes);
  }
  ~Arenas() {
    if (page_locked) device.free_host(page_locked);
    std::free(on_host);
    device.free(on_device);
  }
  Arenas(const Arenas&) = delete;
  Arenas& operator=(const Arenas&) = delete;

  Device& device;
  PlannedMemory bytes;
  void *on_device, *on_host, *page_locked;
  MemoryPlan device_plan, host_plan, offload_plan;
};

LoadedModel::LoadedModel(Device& device, const RunConfig& config) : device_(device), config_(config) {
  config_.evaluation.every = 0;  // no validation windows
  config_.parallel = {};         // one rank
  arenas_ = std::make_unique<Arenas>(device, measure_memory(&device, config_));
  memory_ = std::make_unique<RunMemory>(
      &device, config_, RunMemory::Plans{arenas_->device_plan, arenas_->host_plan, arenas_->offload_plan});
}

LoadedModel::~LoadedModel() { device_.set_workspace({}); }

void LoadedModel::load(const fs::path& checkpoint) {
  const Manifest manifest = verify_checkpoint(checkpoint);
  const bool same = config_of(manifest, checkpoint).precision == config_.precision;
  memory_->model.initialize_masters();  // scratch is as it is after a start
  memory_->snapshot.load(checkpoint, same ? Snapshot::Scales::Restore : Snapshot::Scales::Forget);
  memory_->snapshot.put_back(device_);
  memory_->data_parallel.refresh_working_weights(manifest.state.step);
  device_.synchronize();
}

}  // namespace octet
