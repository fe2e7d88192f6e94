// Everything a run keeps in planned memory. The trainer and `octet plan` build this one struct, so the
// printed table and the run cannot disagree.
#pragma once
#include <string>
#include <vector>

#include "config/run_config.h"
#include "data/loader.h"
#include "device/device.h"
#include "model/transformer.h"
#include "optimizer/optimizer.h"
#include "tensor/memory_plan.h"
#include "training/data_parallel.h"
#include "training/snapshot.h"

namespace octet {

struct RunMemory {
  // With measuring plans the device is only asked for its workspace; without one (null) that is a CPU
  // device's with default options, whatever the run's.
  // `offload`: page-locked host memory for memory.offload; unused without it.
  struct Plans {
    MemoryPlan &device, &host, &offload;
  };
  // Several ranks: `communicator` may be null while measuring.
  RunMemory(Device* device, const RunConfig& config, const Plans& plans, const Sharding& ranks = {},
            Communicator* communicator = nullptr);

  Transformer model;
  Optimizer optimizer;
  DataParallel data_parallel;
  Tensor evaluation_sums;  // F64 [batches] on the device: of token losses
  Tensor
      validation_tokens;  // I32 [batches, micro * context] on the host, the same windows at every evaluation
  Tensor validation_targets;
  Snapshot snapshot;
};

// What RunMemory will take, each rounded up to whole alignments.
struct PlannedMemory {
  size_t device_bytes = 0, host_bytes = 0;
  size_t offload_bytes = 0;     // page-locked, beside host_bytes
  size_t validation_bytes = 0;  // of host_bytes
};
PlannedMemory measure_memory(Device* device, const RunConfig& config, const Sharding& ranks = {});
// Error(Usage) when the arenas, both where the device uses the host's memory, are more than `available` bytes
// of it (0: unknown). A machine that promises more than it has kills the run at some step instead.
void require_memory(const PlannedMemory& planned, const DeviceInfo& device, size_t available);

int64_t global_batch(const RunConfig& config);  // context windows a step
// Micro-batches of a step on each rank. Error(Usage) with the numbers of ranks that work when they do not
// divide the global batch.
int64_t accumulation(const RunConfig& config, int ranks = 1);
// Whether ranks train alone for some steps (parallel.sync_every).
inline bool trains_alone(const RunConfig& config) { return config.parallel.sync_every > 1; }
WindowOrder window_order(const RunConfig& config);

}  // namespace octet
