// The state a run saves, in host memory.
#pragma once
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "device/device.h"
#include "model/transformer.h"
#include "optimizer/optimizer.h"
#include "tensor/memory_plan.h"
#include "tensor/safetensors.h"
#include "training/checkpoint.h"

namespace octet {

// Copies of the state a checkpoint holds, taken at a step boundary into planned host memory, so that a
// writer thread works on them while training goes on. Of several ranks each copies what it holds: its
// elements of parameters that are sharded, and their moments; all of the rest.
//
// Ranks that train alone for some steps have moments of their own. Each saves its own file of them; a rank
// reads that of its number modulo those there are, so that any number of ranks, and a synchronous run, can go
// on.
class Snapshot {
 public:
  struct Local {
    int rank = 0, ranks = 1;
    std::vector<NamedTensor> outer = {};  // of local SGD, the same on all ranks; empty: synchronous
  };
  Snapshot(Transformer& model, Optimizer& optimizer, MemoryPlan& host_plan);
  Snapshot(Transformer& model, Optimizer& optimizer, MemoryPlan& host_plan, const Local& local);
  void take(Device& device);            // device -> host
  void put_back(Device& device) const;  // host -> device (resume, rollback)
  // Files -> host; names, types and shapes of the whole tensors must match, however many ranks wrote them and
  // read them. Scales belong to the precision they were made with:
  // with Scales::Forget their file is not read, and every site is without history. A checkpoint without outer
  // states is a synchronous run's: their velocity is zero.
  enum class Scales : uint8_t { Restore, Forget };
  void load(const std::filesystem::path& checkpoint, Scales scales);
  const std::vector<Payload>& payloads() const { return payloads_; }
  // The same for any number of ranks, all of which call it together. [docs/formats.md, "init_hash"]
  std::string masters_hash(RankGroup& group) const;
  std::string masters_hash() const;  // of a process alone
  // How many ranks' moments a checkpoint holds.
  static int ranks_with_moments(const std::filesystem::path& checkpoint);

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
  static std::vector<Item> masters_of(const Parameter& parameter);
  static std::vector<Item> moments_of(const Parameter& parameter, const Optimizer::State& state);
  static void add_scales(std::vector<Item>& items, const Parameter& parameter, const std::string& name,
                         const MomentTensor& moment);
  void add(Payload& payload, const Item& item, MemoryPlan& plan);
  void forget_stateless_sites() const;

  Transformer* model_;
  ScaleTable* scales_;
  int rank_;
  std::vector<Pair> pairs_;
  std::vector<Payload> payloads_;
};

}  // namespace octet
