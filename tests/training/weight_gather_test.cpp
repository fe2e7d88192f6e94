// Weights gathered as codes: each rank encodes its shard, and all have what one process has.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>

#include "catch.h"
#include "comm/cpu_communicator.h"
#include "comm/ranks.h"
#include "training/open_device.h"
#include "training/run_memory.h"

using namespace octet;

namespace {

// Matrices of 131,072, 65,536, 32,768 and 16,384 weights and tables of 34,816, in pieces of 16,384: two ranks
// share out all but the smallest, three the two largest, and of the second the third rank has nothing.
RunConfig small(const std::vector<std::string>& settings) {
  return parse_config(R"({
    "run": {"name": "small", "seed": 7, "steps": 8, "deterministic": true, "threads": 1},
    "model": {"layers": 1, "width": 128, "heads": 2, "kv_heads": 1, "ffn_width": 512, "context": 16,
              "vocabulary": 272},
    "precision": {"recipe": "fp8"},
    "batch": {"tokens": 384, "micro": 2},
    "parallel": {"reduce": "fp32"}
  })",
                      "small", settings);
}

// What every rank must have of a run alone: codes in both layouts, scales, amaxes, counts.
using State = std::map<std::string, std::vector<std::byte>>;

class Room {
 public:
  Room(const RunConfig& config, const std::string& device, const Sharding& ranks, Communicator* communicator,
       Device* shared = nullptr)
      : own_(shared ? nullptr : open_device(device, device_options(config))),
        device_(shared ? shared : own_.get()) {
    MemoryPlan sizes, host_sizes, offload_sizes;
    { const RunMemory measured(device_, config, {sizes, host_sizes, offload_sizes}, ranks); }
    arena_ = device_->allocate(sizes.peak_bytes());
    host_ = device_->allocate_host(host_sizes.peak_bytes());
    offload_ = device_->allocate_host(std::max<size_t>(offload_sizes.peak_bytes(), 1));
    MemoryPlan plan(arena_, sizes.peak_bytes()), host_plan(host_, host_sizes.peak_bytes()),
        offload_plan(offload_, std::max<size_t>(offload_sizes.peak_bytes(), 1));
    memory = std::make_unique<RunMemory>(device_, config, RunMemory::Plans{plan, host_plan, offload_plan},
                                         ranks, communicator);
    items_ = plan.items();
  }
  ~Room() {
    memory.reset();
    device_->free(arena_);
    device_->free_host(host_);
    device_->free_host(offload_);
  }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;

  void set_scale(float scale) {
    const Tensor& scales = memory->model.scales().scale;
    const std::vector<float> all(static_cast<size_t>(scales.elements()), scale);
    device_->copy_from_host(scales.data, all.data(), scales.bytes());
  }
  // Element `at` of the parameter called `name`, on the rank that has it.
  void poison(const std::string& name, int64_t at, float value) {
    for (const Parameter& p : memory->model.parameters())
      if (p.name == name && at >= p.begin && at < p.begin + p.master.elements())
        device_->copy_from_host(p.master.as<float>() + (at - p.begin), &value, sizeof value);
  }
  void count(bool on) { memory->model.scales().count = on; }

  State state() {
    State all;
    device_->synchronize();
    const auto take = [&](const std::string& name, const void* data, size_t bytes) {
      all[name].resize(bytes);
      device_->copy_to_host(all[name].data(), data, bytes);
    };
    for (const MemoryPlan::Item& item : items_)
      for (const Parameter& p : memory->model.parameters())
        if (item.name == p.name + ".row_inverse_scale" || item.name == p.name + ".column_inverse_scale")
          take(item.name, static_cast<std::byte*>(arena_) + item.offset,
               static_cast<size_t>(item.shape.elements()) * sizeof(float));
        else if (item.name == p.name + ".row" || item.name == p.name + ".column" ||
                 item.name == p.name + ".copy")
          take(item.name, static_cast<std::byte*>(arena_) + item.offset,
               static_cast<size_t>(p.gradient.elements()) * size_of(item.dtype));
    const ScaleTable& table = memory->model.scales();
    take("scale", table.scale.data, table.scale.bytes());
    take("inverse scale", table.inverse_scale.data, table.inverse_scale.bytes());
    take("amax", table.amax.data, table.amax.bytes());
    take("counters", table.counters.data, table.counters.bytes());
    return all;
  }
  size_t bytes_of(const std::string& name) const {
    size_t bytes = 0;
    for (const MemoryPlan::Item& item : items_) bytes += item.name == name ? item.bytes : 0;
    return bytes;
  }

 private:
  std::unique_ptr<Device> own_;
  Device* device_;
  void *arena_ = nullptr, *host_ = nullptr, *offload_ = nullptr;
  std::vector<MemoryPlan::Item> items_;

 public:
  std::unique_ptr<RunMemory> memory;
};

struct Case {
  std::vector<std::string> settings;
  float scale = 0;  // that every site has from earlier steps
  float poison = 0;
  std::string device = "cpu";
  Rounding rounding = Rounding::Nearest;  // of weights; no configuration asks for another

  RunConfig config() const {
    RunConfig config = small(settings);
    config.precision.weight.rounding = rounding;
    return config;
  }
};

// Weights as a run begins with them, counted.
State prepare(Room& room, const Case& one) {
  room.memory->model.initialize_masters();
  if (one.scale != 0) room.set_scale(one.scale);
  if (one.poison != 0) room.poison("blocks.0.ffn.gate_up.weight", 5, one.poison);
  room.count(true);
  room.memory->data_parallel.refresh_working_weights(3);
  room.memory->data_parallel.merge_counters();
  return room.state();
}

std::string difference(const State& a, const State& b) {
  std::string text;
  for (const auto& [name, bytes] : a)
    if (const auto other = b.find(name); other == b.end())
      text += name + " is missing; ";
    else if (other->second != bytes)
      text += name + " differs; ";
  return text.empty() ? "the same" : text;
}

struct Outcome {
  std::string text, gather;
  Traffic traffic;
};
std::vector<Outcome> on_ranks(int ranks, const Case& one, const State& alone) {
  std::vector<Outcome> outcomes(static_cast<size_t>(ranks));
  const std::vector<std::string> texts = run_as_threads(ranks, [&](const Launch& launch) {
    const RunConfig config = one.config();
    ControlPlane control(launch, {}, quick_options(launch));
    const std::unique_ptr<Device> device = open_device(one.device, device_options(config));
    CpuCommunicator communicator(control, *device);
    std::string text;
    {
      Room room(config, one.device, {launch.rank, ranks}, &communicator, device.get());
      text = difference(alone, prepare(room, one));
      Outcome& outcome = outcomes[static_cast<size_t>(launch.rank)];
      outcome.gather = room.memory->data_parallel.describe_gather();
      outcome.traffic = communicator.traffic();
    }
    communicator.barrier();
    control.finish();
    return text;
  });
  for (size_t r = 0; r < texts.size(); ++r) outcomes[r].text = texts[r];
  return outcomes;
}

State alone(const Case& one) {
  Room room(one.config(), one.device, {}, nullptr);
  return prepare(room, one);
}

const std::string delayed = "precision.weight.scaling=delayed", current = "precision.weight.scaling=current";

}  // namespace

TEST_CASE("codes, scales, amaxes and counts of ranks that gather codes are those of one process") {
  for (const Case& one : {
           Case{{current}},
           Case{{delayed}},           // no history: its own amax
           Case{{delayed}, 0x1p20f},  // known scales that saturate
           Case{{delayed}, 0x1p-9f},  // and that flush
           Case{{current}, 0, 0, "cpu", Rounding::Stochastic},
           Case{{current}, 0, std::numeric_limits<float>::quiet_NaN()},
           Case{{delayed}, 16, std::numeric_limits<float>::infinity()},
           Case{{delayed, "memory.offload=optimizer"}, 16},
       }) {
    const State expected = alone(one);
    for (const int ranks : {2, 3}) {
      CAPTURE(one.settings.back(), one.scale, one.poison, ranks);
      for (const Outcome& outcome : on_ranks(ranks, one, expected)) {
        CHECK(outcome.text == "the same");
        CHECK(outcome.gather == (ranks == 2 ? "weights are gathered as fp8 codes (3 tensors), bf16 (2)"
                                            : "weights are gathered as fp8 codes (2 tensors), bf16 (0)"));
      }
    }
  }
}

TEST_CASE("codes are gathered on a device that runs late") {
  const Case one{{current}, 0, 0, "interpreter"};
  for (const Outcome& outcome : on_ranks(2, one, alone({{current}}))) CHECK(outcome.text == "the same");
}

TEST_CASE(
    "weights with a scale a row or a block, and a tied head's, are gathered as values and cast: one "
    "process's codes") {
  const std::string rowwise = "precision.weight.scaling=rowwise";
  for (const Case& one :
       {Case{{rowwise}}, Case{{rowwise, "memory.offload=optimizer"}},
        Case{{rowwise}, 0, std::numeric_limits<float>::quiet_NaN()}, Case{{"precision.recipe=deepseek"}},
        Case{{current, "precision.head=fp8", "model.tied_head=true"}},
        Case{{current, "precision.head=fp8"}}}) {
    const State expected = alone(one);
    const bool codes = one.settings.front() == current, tied = one.settings.back() != "precision.head=fp8";
    for (const Outcome& outcome : on_ranks(2, one, expected)) {
      CAPTURE(one.settings.back(), one.poison);
      CHECK(outcome.text == "the same");
      CHECK(outcome.gather == (!codes ? "weights are gathered in bf16 (5 tensors)"
                               : tied ? "weights are gathered as fp8 codes (3 tensors), bf16 (1)"
                                      : "weights are gathered as fp8 codes (4 tensors), bf16 (1)"));
    }
  }
}

TEST_CASE("a poisoned weight and another scale are seen: the comparison can fail") {
  const Case one{{delayed}, 16};
  for (const Case& other : {Case{{delayed}, 32}, Case{{delayed}, 16, 0.5f}})
    for (const Outcome& outcome : on_ranks(2, other, alone(one))) CHECK(outcome.text != "the same");
}

TEST_CASE("codes take half the bytes of BF16 values, on the wire and in scratch memory") {
  constexpr uint64_t piece = 16384;
  for (const int ranks : {2, 3}) {
    // Of a rank: 8, 4 and 2 pieces divided, each rounded up to whole pieces; then the tables' 3.
    const uint64_t matrices = (ranks == 2 ? 4 + 2 + 1 : 3 + 2) * piece,
                   tables = (ranks == 2 ? 2 * 2 : 0) * piece, peers = static_cast<uint64_t>(ranks - 1);
    const std::vector<Outcome> codes = on_ranks(ranks, {{current}}, {}),
                               values = on_ranks(ranks, {{"precision.recipe=bf16"}}, {});
    for (size_t r = 0; r < codes.size(); ++r) {
      CHECK(values[r].gather == fmt::format("weights are gathered in bf16 ({} tensors)", ranks == 2 ? 5 : 2));
      CHECK(values[r].traffic.sent(TrafficKind::Weights) == 2 * peers * (matrices + tables));
      // And the amaxes: there and back again, 4 bytes each.
      const uint64_t amaxes = 2 * peers * 4 * (ranks == 2 ? 3 : 2);
      const uint64_t sent = codes[r].traffic.sent(TrafficKind::Weights),
                     least = peers * (matrices + 2 * tables);
      CHECK(sent > least);
      CHECK(sent <= least + amaxes);
    }
  }
  const auto scratch = [](const std::string& setting) {
    return Room(small({setting}), "cpu", {0, 3}, nullptr).bytes_of("weight_gather");
  };
  CHECK(scratch("precision.recipe=bf16") == 2 * 2 * 9 * piece);  // two buffers of 9 pieces
  CHECK(scratch(current) == 0);
}
