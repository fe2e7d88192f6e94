// What ranks hold of a model, saved and loaded.
#include <memory>
#include <set>

#include "model/tiny_model.h"
#include "optimizer/optimizer.h"
#include "training/run_memory.h"
#include "training/team.h"

using namespace octet;
using namespace octet::testing;
namespace fs = std::filesystem;

namespace {

// A token table of five pieces of 16384 elements, the last of them short; what is smaller is not sharded.
TransformerOptions model_options(const Sharding& sharding) {
  TransformerOptions options = test::tiny("fp8");
  options.spec.layers = 1;
  options.spec.width = 96;
  options.spec.vocabulary = 700;
  options.sharding = sharding;
  return options;
}

class RankState {
 public:
  explicit RankState(const Sharding& sharding, int block = 128)
      : device_(make_cpu_device(test::deterministic())), device(*device_) {
    MemoryPlan device_plan, host_plan;
    place(sharding, block, device_plan, host_plan);
    arenas_[0] = std::make_unique<test::Arena>(device, device_plan.peak_bytes());
    arenas_[1] = std::make_unique<test::Arena>(device, host_plan.peak_bytes());
    MemoryPlan device_memory = arenas_[0]->plan(), host_memory = arenas_[1]->plan();
    place(sharding, block, device_memory, host_memory);
  }

 private:
  void place(const Sharding& sharding, int block, MemoryPlan& device_plan, MemoryPlan& host_plan) {
    snapshot.reset();
    model = std::make_unique<Transformer>(&device, model_options(sharding), device_plan);
    Moments moments = model->options().recipe.moments;
    moments.block = block;
    optimizer = std::make_unique<Optimizer>(&device, OptimizerOptions{}, Optimizer::States{moments},
                                            model->parameters(), device_plan);
    snapshot = std::make_unique<Snapshot>(*model, *optimizer, host_plan);
  }
  std::unique_ptr<Device> device_;
  std::unique_ptr<test::Arena> arenas_[2];

 public:
  Device& device;
  std::unique_ptr<Transformer> model;
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<Snapshot> snapshot;
};

// Every byte of the state something of its own, and every float finite.
void fill(const Snapshot& snapshot) {
  uint32_t seed = 1;
  for (const Payload& payload : snapshot.payloads())
    for (const TensorPiece& t : payload.tensors)
      for (size_t i = 0; i < t.values.bytes(); ++i) {
        seed = seed * 1664525u + 1013904223u;
        static_cast<char*>(t.values.data)[i] = static_cast<char>(seed >> 24 & 0x3f);
      }
}

std::map<std::string, std::string> files_of(const fs::path& checkpoint) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(checkpoint))
    files[entry.path().filename().string()] = bytes_of(entry.path());
  return files;
}

}  // namespace

TEST_CASE("a state that ranks load, hold and save has the bytes of one process, whoever saved it") {
  const TemporaryFolder one;
  {
    const RankState state({0, 1});
    fill(*state.snapshot);
    state.snapshot->put_back(state.device);
    state.snapshot->take(state.device);
    write_checkpoint(one.path, small_manifest(7), state.snapshot->payloads());
  }
  const auto expected = files_of(one.path / "step-00000007");
  REQUIRE(expected.size() == 4);
  fs::path from = one.path;
  std::vector<std::unique_ptr<TemporaryFolder>> folders;
  for (const int ranks : {4, 2, 1, 3}) {  // each loads what the one before saved
    INFO(ranks << " ranks");
    folders.push_back(std::make_unique<TemporaryFolder>());
    const fs::path to = folders.back()->path;
    std::mutex mutex;
    std::multiset<int64_t> held;  // of the token table, by rank
    Team team(ranks);
    const auto errors = team.run([&](RankGroup& group) {
      const RankState state({group.rank, group.ranks});
      state.snapshot->load(from / "step-00000007", Snapshot::Scales::Restore);
      state.snapshot->put_back(state.device);
      fill(*state.snapshot);  // what was loaded is on the device
      state.snapshot->take(state.device);
      write_checkpoint(to, small_manifest(7), state.snapshot->payloads(), group);
      const std::lock_guard lock(mutex);
      held.insert(state.model->parameters().front().master.elements());
    });
    CHECK(errors == std::vector<std::string>(static_cast<size_t>(ranks)));
    CHECK(files_of(to / "step-00000007") == expected);
    if (ranks == 1) CHECK(held == std::multiset<int64_t>{67200});
    if (ranks == 2) CHECK(held == std::multiset<int64_t>{67200 - 49152, 49152});
    if (ranks == 3) CHECK(held == std::multiset<int64_t>{67200 - 65536, 32768, 32768});
    if (ranks == 4) CHECK(held == std::multiset<int64_t>{0, 67200 - 65536, 32768, 32768});
    from = to;
  }
}

TEST_CASE("initial weights have one hash, however many ranks hold them") {
  const auto hash = [](int ranks, bool change) {
    std::vector<std::string> found(static_cast<size_t>(ranks));
    Team team(ranks);
    const auto errors = team.run([&](RankGroup& group) {
      const RankState state({group.rank, group.ranks});
      for (size_t i = 0; i < state.model->parameters().size(); ++i) {
        const Parameter& p = state.model->parameters()[i];
        state.device.fill_normal(p.master, 1, i, static_cast<uint64_t>(p.begin));
      }
      if (change && group.rank == 1)
        state.device.fill(state.model->parameters().front().master.slice(5, 1), 0);
      state.snapshot->take(state.device);
      found[static_cast<size_t>(group.rank)] = state.snapshot->masters_hash(group);
      if (group.alone()) CHECK(state.snapshot->masters_hash() == found[0]);
    });
    CHECK(errors == std::vector<std::string>(static_cast<size_t>(ranks)));
    for (const std::string& one : found) CHECK(one == found[0]);
    return found[0];
  };
  const std::string expected = hash(1, false);
  for (const int ranks : {2, 3, 4}) CHECK(hash(ranks, false) == expected);
  CHECK(hash(2, true) != expected);
}

TEST_CASE("moments with one scale a tensor cannot be sharded") {
  CHECK_NOTHROW(RankState({0, 1}, 0));
  CHECK(error_of([] {
          RankState({1, 2}, 0);
        }).find("one scale a tensor cannot be divided among ranks") != std::string::npos);
  CHECK(error_of([] {
          RankState({1, 2}, 100);
        }).find("blocks of 100 cannot be divided") != std::string::npos);
  CHECK_NOTHROW(RankState({0, 2}, 256));
}
