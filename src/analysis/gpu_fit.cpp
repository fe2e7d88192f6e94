#include "analysis/gpu_fit.h"

#include <algorithm>

#include "config/checks.h"
#include "training/open_device.h"
#include "training/run_memory.h"

namespace octet {
namespace {

struct Candidate {
  std::string key, value;
  RunConfig config;  // `from` with it
};

// What to try next from here, in the order of the header.
std::vector<Candidate> candidates(const RunConfig& from) {
  std::vector<Candidate> list;
  const auto add = [&](const char* key, const std::string& value, auto change) {
    Candidate candidate{key, value, from};
    change(candidate.config);
    if (!(candidate.config == from) && check_rules(candidate.config).empty()) list.push_back(candidate);
  };
  add("run.deterministic", "false", [](RunConfig& c) { c.run.deterministic = false; });
  for (int64_t micro = from.batch.micro - 1; micro > 0; --micro)
    if (from.batch.micro % micro == 0)
      add("batch.micro", std::to_string(micro), [&](RunConfig& c) { c.batch.micro = micro; });
  add("batch.head_chunk", "1024",
      [](RunConfig& c) { c.batch.head_chunk = std::min<int64_t>(c.batch.head_chunk, 1024); });
  if (from.batch.recompute == Recompute::None)
    add("batch.recompute", "norms_and_swiglu",
        [](RunConfig& c) { c.batch.recompute = Recompute::NormsAndSwiGLU; });
  add("batch.recompute", "block", [](RunConfig& c) { c.batch.recompute = Recompute::Block; });
  add("memory.offload", "optimizer", [](RunConfig& c) { c.memory.offload = Offload::Optimizer; });
  add("precision.moments.first", "e4m3", [](RunConfig& c) { c.precision.moments.first = Format::E4M3; });
  add("precision.moments.second", "e5m2", [](RunConfig& c) { c.precision.moments.second = Format::E5M2; });
  add("precision.weight_gradient", "bf16", [](RunConfig& c) { c.precision.weight_gradient = Format::BF16; });
  return list;
}

uint64_t planned_bytes_of(const RunConfig& config, const GpuModel& gpu) {
  const PlannedGpu planned = plan_gpu(gpu, device_options(config));
  return measure_memory(planned.device.get(), config).device_bytes;
}

}  // namespace

GpuFit gpu_fit(const RunConfig& config, const GpuModel& gpu, const GpuWorkspace& workspace,
               uint64_t planned_bytes) {
  GpuFit fit;
  fit.gpu = &gpu;
  fit.workspace = workspace;
  fit.planned_bytes = planned_bytes;
  RunConfig changed = config;
  uint64_t least = planned_bytes;
  bool helped = true;
  while (helped && least + fit.outside_bytes > gpu.memory_bytes()) {
    helped = false;
    for (const Candidate& candidate : candidates(changed)) {
      const uint64_t bytes = planned_bytes_of(candidate.config, gpu);
      if (bytes >= least) continue;
      changed = candidate.config;
      least = bytes;
      helped = true;
      const FitChange change{candidate.key, candidate.value, bytes,
                             bytes + fit.outside_bytes <= gpu.memory_bytes()};
      if (!fit.changes.empty() && fit.changes.back().key == change.key)
        fit.changes.back() = change;
      else
        fit.changes.push_back(change);
      break;
    }
  }
  return fit;
}

}  // namespace octet
