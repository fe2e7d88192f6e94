// Masters and moments in host memory: the same bits, and on the interpreter, whose copies run as late as
// order() allows, a fetch or a return that nobody waits for would be a wrong bit.
#include <algorithm>

#include "base/random.h"
#include "device/gpu/interpreted/interpreted_backend.h"
#include "numerics/bfloat16.h"
#include "numerics/recipes.h"
#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;

namespace {

// Three parameters, one of them larger than a piece, updated a few times with gradients of their own.
struct Trained {
  std::vector<std::byte> states;             // masters and moments of all
  std::vector<std::vector<int64_t>> pieces;  // (parameter, begin, count) of the last update
  size_t device_bytes = 0, offload_bytes = 0;
};

struct States {
  Moments moments;
  MasterFormat master = MasterFormat::FP32;
  bool update_clipping = false;
  OptimizerName optimizer = OptimizerName::AdamW;
};

Trained train_states(Device& device, const States& options, bool offload) {
  const auto& [moments, master, update_clipping, by] = options;
  const std::vector<std::pair<ParameterKind, Shape>> shapes = {{ParameterKind::Embedding, {130, 400}},
                                                               {ParameterKind::Matrix, {64, 200}},
                                                               {ParameterKind::Vector, {200}},
                                                               {ParameterKind::Matrix, {30, 70}}};
  Trained trained;
  std::vector<void*> memory;
  MemoryPlan plans[2];  // device, offload
  for (const bool placing : {false, true}) {
    if (placing) {
      trained.device_bytes = plans[0].peak_bytes();
      trained.offload_bytes = plans[1].peak_bytes();
      memory = {device.allocate(plans[0].peak_bytes()), device.allocate_host(plans[1].peak_bytes() + 1)};
      for (size_t i = 0; i < 2; ++i)
        plans[i] = MemoryPlan(memory[i], i ? trained.offload_bytes + 1 : trained.device_bytes);
    }
    MemoryPlan& home = offload ? plans[1] : plans[0];
    std::vector<Parameter> parameters;
    for (size_t i = 0; i < shapes.size(); ++i) {
      const auto& [kind, shape] = shapes[i];
      const std::string name = fmt::format("p{}", i);
      MemoryPlan& masters = kind == ParameterKind::Vector ? plans[0] : home;
      Parameter p;
      p.name = name;
      p.kind = kind;
      p.index = i;
      const int64_t n = shape.elements();
      if (kind != ParameterKind::Vector) p.master_code.format = master;
      p.master = masters.add(name, Category::Masters, values_dtype(p.master_code.format), shape);
      if (p.master_code.format == MasterFormat::BF16Kahan)
        p.master_code.rest = masters.add(name + ".rest", Category::Masters, DType::BF16, shape);
      if (p.master_code.format == MasterFormat::BF16Remainder)
        p.master_code.rest = masters.add(name + ".rest", Category::Masters, DType::U16, shape);
      if (p.master_code.format == MasterFormat::FP16Scaled)
        p.master_code.inverse =
            masters.add(name + ".inverse", Category::Masters, DType::F32, {(n + 127) / 128});
      p.gradient = plans[0].add(name + ".gradient", Category::Gradients, DType::BF16, shape);
      parameters.push_back(p);
    }
    const Tensor loss = plans[0].add("loss", Category::Other, DType::F64, {1});
    OptimizerOptions optimizer_options;
    optimizer_options.update_clipping = update_clipping;
    optimizer_options.name = by;
    Optimizer optimizer(&device, optimizer_options,
                        {moments, offload ? &plans[1] : nullptr, [](size_t p) { return p == 0; }, 5},
                        parameters, plans[0]);
    const Tensor initial = plans[0].add("initial", Category::Other, DType::F32, {52000});
    if (!placing) continue;
    for (const Parameter& p : parameters) {
      const Tensor values = initial.slice(0, p.master.elements());
      device.fill_normal(values, 0.5f, 10 + p.index, 0);
      device.write_masters({values, p.master.flat(), p.master_code});
    }
    for (int64_t t = 1; t <= 3; ++t) {
      for (const Parameter& p : parameters) {
        std::vector<BFloat16> values;
        for (int64_t i = 0; i < p.gradient.elements(); ++i)
          values.push_back(to_bfloat16(static_cast<float>(
              random_normal(static_cast<uint64_t>(t) * 100 + p.index, static_cast<uint64_t>(i)))));
        device.upload(p.gradient.data, values.data(), p.gradient.bytes());
      }
      optimizer.measure(parameters);
      optimizer.decide(loss, 1);
      optimizer.measure_updates(parameters, t);
      trained.pieces.clear();
      optimizer.update(parameters, 1e-2, t, [&](const MasterPiece& piece) {
        trained.pieces.push_back(
            {static_cast<int64_t>(piece.parameter), piece.begin, piece.values.elements()});
      });
    }
    device.synchronize();
    const auto take = [&](const Tensor& tensor) {
      const size_t at = trained.states.size();
      trained.states.resize(at + tensor.bytes());
      device.copy_to_host(trained.states.data() + at, tensor.data, tensor.bytes());
    };
    take(optimizer.update_rms());
    for (const Parameter& p : parameters) {
      take(p.master);
      for (const Tensor& tensor : {p.master_code.rest, p.master_code.inverse})
        if (!tensor.empty()) take(tensor);
      for (const MomentTensor* moment :
           {&optimizer.states()[p.index].first, &optimizer.states()[p.index].second}) {
        for (const Tensor& tensor : {moment->values, moment->inverse, moment->exponents})
          if (!tensor.empty()) take(tensor);
      }
    }
  }
  device.free(memory[0]);
  device.free_host(memory[1]);
  return trained;
}

}  // namespace

TEST_CASE("states that visit the device piece by piece get the bits of states that live there") {
  const auto cpu = make_cpu_device({.threads = 1}), late = make_interpreted_device({.threads = 1}),
             early = make_interpreted_device({.threads = 1}, {}, Fetches::Early);
  for (const char* recipe : {"bf16", "fp8"}) {
    const States moments{make_recipe(recipe).moments};
    const Trained resident = train_states(*cpu, moments, false);
    for (Device* device : {cpu.get(), late.get(), early.get()}) {
      const Trained visiting = train_states(*device, moments, true);
      CHECK((visiting.states == resident.states));  // in parentheses: not to be printed
      // The embedding of 52,000 weights comes in pieces of 16,384; the vector stays.
      CHECK(visiting.pieces.size() == 7);
      CHECK(visiting.offload_bytes > 4 * (52000 + 12800 + 2100));
      CHECK(visiting.device_bytes < resident.device_bytes);
    }
  }
  // One scale a tensor: nothing can be split.
  Moments whole = make_recipe("fp8").moments;
  whole.block = 0;
  const Trained resident = train_states(*cpu, {whole}, false), visiting = train_states(*late, {whole}, true);
  CHECK((visiting.states == resident.states));
  CHECK(visiting.pieces.size() == 4);
}

TEST_CASE("masters and moments of any format visit with the bits of residents, and clipped updates do") {
  const auto cpu = make_cpu_device({.threads = 1}), late = make_interpreted_device({.threads = 1}),
             early = make_interpreted_device({.threads = 1}, {}, Fetches::Early);
  Moments expanded{Format::E4M3, Format::E4M3, 128, true}, wide{Format::E4M3, Format::FP16, 128, false};
  std::vector<std::vector<std::byte>> seen;
  for (const States& states :
       {States{make_recipe("fp8").moments, MasterFormat::FP32, true},
        States{expanded, MasterFormat::BF16Stochastic, true}, States{wide, MasterFormat::FP16Scaled, false},
        States{expanded, MasterFormat::BF16Kahan, false}, States{wide, MasterFormat::BF16Remainder, true}}) {
    const Trained resident = train_states(*cpu, states, false);
    for (Device* device : {cpu.get(), late.get(), early.get()}) {
      const Trained visiting = train_states(*device, states, true);
      CHECK((visiting.states == resident.states));
      CHECK(visiting.pieces.size() == 7);
    }
    seen.push_back(resident.states);
  }
  // Negative control: clipping does something here.
  CHECK((train_states(*cpu, {make_recipe("fp8").moments}, false).states != seen[0]));
}

TEST_CASE("Muon's matrices visit whole, with the bits of residents") {
  const auto cpu = make_cpu_device({.threads = 1}), late = make_interpreted_device({.threads = 1}),
             early = make_interpreted_device({.threads = 1}, {}, Fetches::Early);
  for (const char* recipe : {"bf16", "fp8"}) {
    const States muon{make_recipe(recipe).moments, MasterFormat::BF16Stochastic, true, OptimizerName::Muon};
    States adamw = muon;
    adamw.optimizer = OptimizerName::AdamW;
    const Trained resident = train_states(*cpu, muon, false);
    for (Device* device : {cpu.get(), late.get(), early.get()}) {
      const Trained visiting = train_states(*device, muon, true);
      CHECK((visiting.states == resident.states));
      CHECK(visiting.pieces.size() == 7);
      CHECK(visiting.offload_bytes < train_states(*device, adamw, true).offload_bytes);
    }
    CHECK((train_states(*cpu, adamw, false).states != resident.states));  // negative control
  }
}

TEST_CASE("lanes run beside each other until they are ordered") {
  const auto device = make_interpreted_device({.threads = 1});
  auto* host = static_cast<float*>(device->allocate_host(3 * sizeof(float)));
  auto* slot = static_cast<float*>(device->allocate(2 * sizeof(float)));
  const Tensor first{slot, DType::F32, {1}}, second{slot + 1, DType::F32, {1}};
  host[0] = 5;
  using Lane = Device::Lane;
  device->copy_on_lane(Lane::In, slot, host, sizeof(float));
  device->copy(second, first);  // does not wait for the fetch: reads what was there
  device->order(Lane::Out, Lane::Compute);
  device->copy_on_lane(Lane::Out, host + 1, slot + 1, sizeof(float));
  device->order(Lane::Compute, Lane::Out);
  device->synchronize();
  CHECK(host[1] == 0.0f);
  device->order(Lane::Compute, Lane::In);
  device->copy(second, first);
  device->order(Lane::Out, Lane::Compute);
  device->copy_on_lane(Lane::Out, host + 1, slot + 1, sizeof(float));
  device->synchronize();
  CHECK(host[1] == 0.0f);  // nobody waits for the way out yet
  device->order(Lane::Compute, Lane::Out);
  device->synchronize();
  CHECK(host[1] == 5.0f);
  device->free(slot);
  device->free_host(host);
}

TEST_CASE(
    "early fetches run when they are enqueued, after what they were told to wait for and nothing else") {
  const auto device = make_interpreted_device({.threads = 1}, {}, Fetches::Early);
  auto* host = static_cast<float*>(device->allocate_host(2 * sizeof(float)));
  auto* slot = static_cast<float*>(device->allocate(2 * sizeof(float)));
  using Lane = Device::Lane;
  host[0] = 5;
  device->fill({slot, DType::F32, {1}}, 3.0f);
  device->copy_on_lane(Lane::Out, host + 1, slot, sizeof(float));
  device->copy_on_lane(Lane::In, slot + 1, host, sizeof(float));
  CHECK(slot[1] == 5.0f);
  CHECK(slot[0] == 0.0f);  // late still
  CHECK(host[1] == 0.0f);
  device->order(Lane::In, Lane::Out);
  device->copy_on_lane(Lane::In, slot + 1, host + 1, sizeof(float));
  CHECK(slot[1] == 0.0f);  // the way out was waited for, but it does not wait for fill()
  device->order(Lane::Out, Lane::Compute);
  device->copy_on_lane(Lane::Out, host + 1, slot, sizeof(float));
  device->order(Lane::In, Lane::Out);
  device->copy_on_lane(Lane::In, slot + 1, host + 1, sizeof(float));
  CHECK(slot[1] == 3.0f);
  device->free(slot);
  device->free_host(host);
}

TEST_CASE("an offloaded run writes the checkpoints of a resident one, resumed, rolled back and stopped") {
  const TinyData data;
  TinyRun resident(data);
  resident.go();
  for (const char* device : {"cpu", "interpreter"}) {
    INFO(device);
    TinyRun run(data, {"memory.offload=optimizer"});
    run.request.device = device;
    CHECK(run.go({"signal:name=TERM,phase=step,step=6"}).step == 5);
    CHECK(run.go().code == ExitCode::Success);
    for (const int step : {2, 4, 8}) {
      auto ours = files_in(run.checkpoint(step)), theirs = files_in(resident.checkpoint(step));
      ours.erase("manifest.json");  // holds the configuration
      theirs.erase("manifest.json");
      CHECK((ours == theirs));
    }
  }
}
