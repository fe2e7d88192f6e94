// Ranks that train alone between outer steps: as threads, where the masters of each can be looked at.
#include "training/local_sgd.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "catch.h"
#include "comm/cpu_communicator.h"
#include "comm/ranks.h"
#include "training/open_device.h"
#include "training/run_memory.h"

using namespace octet;

namespace {

RunConfig small(const std::vector<std::string>& settings) {
  return parse_config(R"({
    "run": {"name": "small", "seed": 7, "steps": 12, "deterministic": true, "threads": 1},
    "model": {"layers": 1, "width": 64, "heads": 2, "kv_heads": 1, "ffn_width": 128, "context": 16,
              "vocabulary": 272},
    "precision": {"recipe": "fp32"},
    "batch": {"tokens": 384, "micro": 2},
    "parallel": {"reduce": "fp32", "zero": 0, "sync_every": 3},
    "checkpoint": {"every": 0}
  })",
                      "small", settings);
}

using Floats = std::vector<float>;

// Of one rank, after one step.
struct After {
  Floats masters, velocities, scales, history;
  uint64_t gradient_bytes = 0;  // sent so far
};
using Trajectory = std::vector<After>;  // by step, from the start (0)

Floats floats_of(Device& device, const std::vector<Tensor>& tensors) {
  Floats all;
  for (const Tensor& t : tensors) {
    Floats one(static_cast<size_t>(t.elements()));
    device.copy_to_host(one.data(), t.data, t.bytes());
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

struct Job {
  std::vector<std::string> settings = {};
  int ranks = 2, steps = 6;
  int still_from = 1000;  // from this step on the inner learning rate is zero
};

Trajectory train(const Job& job, const Launch& launch, Device& device, CpuCommunicator* communicator) {
  const RunConfig config = small(job.settings);
  const Sharding place{launch.rank, job.ranks};
  const PlannedMemory bytes = measure_memory(&device, config, place);
  void *const arena = device.allocate(bytes.device_bytes), *const host =
                                                               device.allocate_host(bytes.host_bytes);
  MemoryPlan plan(arena, bytes.device_bytes), host_plan(host, bytes.host_bytes), offload;
  Trajectory trajectory;
  {
    RunMemory m(&device, config, {plan, host_plan, offload}, place, communicator);
    DataParallel& parallel = m.data_parallel;
    const auto note = [&] {
      std::vector<Tensor> masters, velocities;
      for (const Parameter& p : m.model.parameters()) masters.push_back(p.master);
      for (const NamedTensor& state : parallel.states()) velocities.push_back(state.tensor);
      device.synchronize();
      After& after = trajectory.emplace_back();
      after.masters = floats_of(device, masters);
      after.velocities = floats_of(device, velocities);
      if (const ScaleTable& table = m.model.scales(); !table.sites.empty()) {
        after.scales = floats_of(device, {table.scale, table.inverse_scale});
        after.history = floats_of(device, {table.amax_history});
      }
      if (communicator) after.gradient_bytes = communicator->traffic().sent(TrafficKind::Gradients);
    };
    m.model.initialize_masters();
    parallel.start(0);
    note();
    const int64_t micros = accumulation(config, job.ranks);
    const size_t tokens = static_cast<size_t>(config.batch.micro * config.model.context);
    for (int64_t step = 1; step <= job.steps; ++step) {
      parallel.begin_step();
      for (int64_t micro = 0; micro < micros; ++micro) {
        const MicroBatchPlace at{micro * job.ranks + launch.rank, micro + 1 == micros};
        std::vector<int32_t> ids(tokens + 1);
        for (size_t i = 0; i < ids.size(); ++i)
          ids[i] = static_cast<int32_t>((static_cast<size_t>(step * 37 + at.over_ranks * 11) + i * i) % 272);
        m.model.forward_backward(ids.data(), ids.data() + 1, static_cast<float>(1 / parallel.step_tokens()),
                                 {step - 1, at.over_ranks}, parallel.reduce_as_ready(step, at),
                                 parallel.ready_work());
      }
      parallel.finish_gradients();
      parallel.decide(step);
      parallel.merge_amaxes();
      m.model.update_scales(step - 1, m.optimizer.control());
      parallel.update(step < job.still_from ? 1e-2 : 0, step);
      note();
    }
  }
  device.free(arena);
  device.free_host(host);
  return trajectory;
}

// By rank.
std::vector<Trajectory> train(const Job& job, const std::string& device_name = "cpu") {
  std::vector<Trajectory> all(static_cast<size_t>(job.ranks));
  if (job.ranks == 1) {
    const std::unique_ptr<Device> device = open_device(device_name, {.deterministic = true, .threads = 1});
    all[0] = train(job, Launch{}, *device, nullptr);
    return all;
  }
  const std::vector<std::string> texts = run_as_threads(job.ranks, [&](const Launch& launch) {
    ControlPlane control(launch, {}, quick_options(launch));
    const std::unique_ptr<Device> device = open_device(device_name, {.deterministic = true, .threads = 1});
    {
      CpuCommunicator communicator(control, *device);
      all[static_cast<size_t>(launch.rank)] = train(job, launch, *device, &communicator);
      communicator.barrier();
    }
    control.finish();
    return std::string("done");
  });
  REQUIRE(texts == std::vector<std::string>(static_cast<size_t>(job.ranks), "done"));
  return all;
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("local SGD: after each outer step all ranks have the same bits, in between each its own") {
  for (const char* wire : {"fp32", "bf16", "fp8"})
    for (const int ranks : {2, 3}) {
      INFO(wire << " on " << ranks << " ranks");
      const auto run =
          train({{fmt::format("parallel.reduce={}", wire), "parallel.outer_learning_rate=0.7"}, ranks});
      for (size_t step = 0; step <= 6; ++step) {
        INFO("step " << step);
        const bool together = step % 3 == 0;
        for (size_t rank = 1; rank < run.size(); ++rank) {
          CHECK(same_bits(run[rank][step].masters, run[0][step].masters) == together);
          CHECK(same_bits(run[rank][step].velocities, run[0][step].velocities));
        }
      }
      CHECK_FALSE(same_bits(run[0][3].velocities, run[0][6].velocities));
    }
}

TEST_CASE("local SGD: without an outer step the ranks go apart") {
  const auto run = train({{"parallel.sync_every=12"}});
  for (size_t step = 1; step <= 6; ++step) CHECK_FALSE(same_bits(run[0][step].masters, run[1][step].masters));
}

// Three local steps, then w - eta ((w - mean) + mu (w - mean)): with eta 1 and mu 0 the mean of what the
// ranks have. That is not the step of a mean gradient: Adam divides by each rank's own second moment.
TEST_CASE("local SGD: with rate 1 and no momentum masters become the ranks' mean, else Nesterov's step") {
  for (const int ranks : {1, 2, 3}) {
    INFO(ranks << " ranks");
    const auto alone = train({{"parallel.sync_every=12"}, ranks, 3});  // the same three steps, nobody asks
    for (const auto& [rate, momentum] : {std::pair{1.0, 0.0}, std::pair{0.7, 0.9}}) {
      const auto run = train({{fmt::format("parallel.outer_learning_rate={}", rate),
                               fmt::format("parallel.outer_momentum={}", momentum)},
                              ranks,
                              3});
      const Floats& start = alone[0][0].masters;
      for (size_t i = 0; i < start.size(); ++i) {
        double mean = 0, size = 0;
        for (const Trajectory& rank : alone) {
          const double d = static_cast<double>(start[i]) - rank[3].masters[i];
          mean += d / ranks;
          size += std::fabs(d);
        }
        const double expected = start[i] - rate * (1 + momentum) * mean;
        // Each rank's difference is rounded once, their sum ranks - 1 times, then seven operations of sizes
        // of at most (1 + 2 momentum) of it, and the last of the master's.
        const double bound = 0x1p-24 * ((ranks + 8) * (1 + 2 * momentum) * size + std::fabs(expected) * 1.01);
        REQUIRE(std::fabs(run[0][3].masters[i] - expected) <= bound);
        REQUIRE(std::fabs(run[0][3].velocities[i] - mean) <= 0x1p-24 * (ranks + 3) * size);
      }
      // The local steps before it are those of ranks that never ask each other.
      for (size_t rank = 0; rank < run.size(); ++rank)
        for (const size_t step : {1u, 2u})
          CHECK(same_bits(run[rank][step].masters, alone[rank][step].masters));
    }
  }
  // Negative control: one synchronous step over both ranks is not the mean of their two steps.
  const auto mean = train(
                 {{"parallel.sync_every=3", "parallel.outer_learning_rate=1", "parallel.outer_momentum=0"},
                  2,
                  3}),
             synchronous = train({{"parallel.sync_every=1"}, 2, 3});
  CHECK(same_bits(synchronous[0][3].masters, synchronous[1][3].masters));
  double apart = 0;
  for (size_t i = 0; i < mean[0][3].masters.size(); ++i)
    apart =
        std::max(apart, std::fabs(static_cast<double>(mean[0][3].masters[i]) - synchronous[0][3].masters[i]));
  CHECK(apart > 1e-3);
}

TEST_CASE("local SGD: a round without steps of its own goes on with the velocity") {
  const double rate = 0.7, momentum = 0.9;
  const auto run = train({.still_from = 4});
  const After &before = run[0][3], &after = run[0][6];
  for (size_t i = 0; i < before.masters.size(); ++i) {  // d = 0
    const double velocity = momentum * before.velocities[i],
                 expected = before.masters[i] - rate * momentum * velocity;
    REQUIRE(std::fabs(after.velocities[i] - velocity) <= 0x1p-24 * 2 * std::fabs(velocity));
    REQUIRE(std::fabs(after.masters[i] - expected) <=
            0x1p-24 * (1.01 * std::fabs(expected) + 6 * std::fabs(velocity)));
  }
  CHECK_FALSE(same_bits(before.masters, after.masters));
}

TEST_CASE("local SGD: gradients travel in one of sync_every steps, in the wire's bytes") {
  const auto sent = [](const std::string& wire, int every) {
    const auto run = train({{"parallel.reduce=" + wire, fmt::format("parallel.sync_every={}", every)}});
    std::vector<uint64_t> bytes;
    for (size_t step = 1; step <= 6; ++step)
      bytes.push_back(run[0][step].gradient_bytes - run[0][step - 1].gradient_bytes);
    return bytes;
  };
  for (const char* wire : {"fp32", "bf16", "fp8"}) {
    INFO(wire);
    const std::vector<uint64_t> local = sent(wire, 3), synchronous = sent(wire, 1);
    const uint64_t one = synchronous[0];
    CHECK(one > 0);
    CHECK(synchronous == std::vector<uint64_t>(6, one));
    CHECK(local == std::vector<uint64_t>{0, 0, one, 0, 0, one});
  }
  CHECK(static_cast<double>(sent("fp8", 3)[2]) < 0.27 * static_cast<double>(sent("fp32", 3)[2]));
}

TEST_CASE("local SGD: delayed scales are each rank's own within a round and one table after it") {
  const auto run =
      train({{"precision.recipe=fp8", "precision.scaling=delayed", "precision.weight.scaling=delayed"}});
  for (size_t step = 1; step <= 6; ++step) {
    INFO("step " << step);
    CHECK(same_bits(run[0][step].history, run[1][step].history) == (step % 3 == 0));
    CHECK((step % 3 != 0 || same_bits(run[0][step].scales, run[1][step].scales)));
  }
  REQUIRE(!run[0][3].history.empty());
  // The table has the larger of both ranks' amaxes: of the steps before the outer one they are known.
  for (size_t i = 0; i < run[0][2].history.size(); ++i)
    REQUIRE(run[0][3].history[i] >= std::max(run[0][2].history[i], run[1][2].history[i]));
}

TEST_CASE("local SGD: scales that follow counters are each rank's own within a round, rank 0's after it") {
  const auto run =
      train({{"precision.recipe=fp8", "precision.scaling=quantile", "precision.weight.scaling=quantile",
              "precision.grad.scaling=following", "precision.adaptive.above=0.01"}});
  for (size_t step = 1; step <= 6; ++step) {
    INFO("step " << step);
    CHECK(same_bits(run[0][step].scales, run[1][step].scales) == (step % 3 == 0));
  }
  CHECK_FALSE(same_bits(run[0][3].scales, run[0][6].scales));
}

TEST_CASE("local SGD: a device that runs late has the same bits") {
  const Job job{{"precision.recipe=fp8", "batch.tokens=64"}, 2, 3};
  const auto early = train(job), late = train(job, "interpreter");
  for (size_t step = 0; step <= 3; ++step) CHECK(same_bits(early[1][step].masters, late[1][step].masters));
}

TEST_CASE(
    "Muon: ranks that share their gradients have the same bits after every step, and one rank's nearly") {
  const std::vector<std::string> together = {"optimizer.name=muon", "parallel.sync_every=1"};
  const Trajectory alone = train({together, 1, 3})[0];
  for (const int ranks : {2, 3}) {
    const auto run = train({together, ranks, 3});
    for (size_t step = 0; step <= 3; ++step)
      for (size_t rank = 1; rank < run.size(); ++rank)
        CHECK(same_bits(run[rank][step].masters, run[0][step].masters));
    CHECK_FALSE(same_bits(run[0][1].masters, run[0][0].masters));
    // Gradients of 12 micro-batches in another order differ by 12 roundings; Newton-Schulz makes at most 485
    // of one, and a step goes 1e-2 * 0.2 * sqrt(272) at most (the embedding is AdamW's: left out).
    const size_t table = 272 * 64;
    double largest = 0;
    for (size_t i = table; i + table < alone[1].masters.size(); ++i)
      largest = std::max(largest, std::fabs(static_cast<double>(run[0][1].masters[i] - alone[1].masters[i])));
    INFO("largest difference on " << ranks << " ranks: " << largest);
    CHECK(largest < 1e-2 * 0.2 * std::sqrt(272.0) * 485 * 12 * 0x1p-24);
  }
  // Negative control: AdamW goes elsewhere.
  CHECK_FALSE(same_bits(train({{"parallel.sync_every=1"}, 1, 3})[0][3].masters, alone[3].masters));
}

TEST_CASE("Muon under local SGD: the same bits after each outer step, in between each its own") {
  const auto run = train({{"optimizer.name=muon"}, 2});
  for (const size_t step : {0u, 3u, 6u}) CHECK(same_bits(run[1][step].masters, run[0][step].masters));
  for (const size_t step : {1u, 2u, 4u}) CHECK_FALSE(same_bits(run[1][step].masters, run[0][step].masters));
}
