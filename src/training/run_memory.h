// Everything a run keeps in planned memory. The trainer and `octet plan` build this one struct, so the
// printed table and the run cannot disagree.
#pragma once
#include <string>
#include <vector>

#include "config/run_config.h"
#include "data/loader.h"
#include "device/device.h"
#include "model/transformer.h"
#include "optimizer/adamw.h"
#include "tensor/memory_plan.h"
#include "training/checkpoint.h"
#include "training/data_parallel.h"

namespace octet {

// Copies of the state a checkpoint holds, taken at a step boundary into planned host memory, so that a
// writer thread works on them while training goes on. Of several ranks each copies what it holds: its
// elements of parameters that are sharded, and their moments; all of the rest.
class Snapshot {
 public:
  Snapshot(Transformer& model, AdamW& optimizer, MemoryPlan& host_plan);
  void take(Device& device);            // device -> host
  void put_back(Device& device) const;  // host -> device (resume, rollback)
  // Files -> host; names, types and shapes of the whole tensors must match, however many ranks wrote them and
  // read them. Scales belong to the precision they were made with:
  // with Scales::Forget their file is not read, and every site is without history.
  enum class Scales : uint8_t { Restore, Forget };
  void load(const std::filesystem::path& checkpoint, Scales scales);
  const std::vector<Payload>& payloads() const { return payloads_; }
  // The same for any number of ranks, all of which call it together. [docs/formats.md, "init_hash"]
  std::string masters_hash(RankGroup& group) const;
  std::string masters_hash() const;  // of a process alone

 private:
  struct Pair {
    Tensor device, host;
  };
  struct Item {
    std::string name;
    Tensor device;
    Shape shape;  // of the whole
    int64_t begin = 0;
  };
  void add_master(const Parameter& parameter, MemoryPlan& plan);
  void add_moment(const Parameter& parameter, const char* suffix, const MomentTensor& moment,
                  MemoryPlan& plan);
  void add(Payload& payload, const Item& item, MemoryPlan& plan);
  void forget_stateless_sites() const;

  Transformer* model_;
  ScaleTable* scales_;
  std::vector<Pair> pairs_;
  std::vector<Payload> payloads_;
};

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
  AdamW optimizer;
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
WindowOrder window_order(const RunConfig& config);

}  // namespace octet
