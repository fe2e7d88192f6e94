// The scaling model against hand arithmetic and its limits.
#include "analysis/scaling_model.h"

#include <cmath>

#include "catch.h"

using namespace octet;

namespace {

// Two nodes of eight for the numbers below.
Network example() {
  Network n;
  n.ranks_per_node = 8;
  n.intra_bandwidth = 100e9;
  n.inter_bandwidth = 10e9;
  n.call_latency = 1e-3;
  n.intra_latency = 1e-4;
  n.inter_latency = 1e-2;
  return n;
}
Network without_latency(double intra) {
  Network n;
  n.intra_bandwidth = intra;
  n.inter_bandwidth = intra;
  return n;
}

// Two layers of 1e9 parameters; a micro-batch takes 1/6 + 1/6 s forward and 1/3 + 1/3 s backward.
ScalingJob two_layers() {
  ScalingJob job;
  job.layers = {{1e9, 1e9, 6e9}, {1e9, 1e9, 6e9}};
  job.windows = 4;
  job.micro = 1;
  job.context = 1000;
  job.compute_rate = 12e12;
  return job;
}

// The shape of an 8B model on H200s, with a batch that every power of two up to 16384 divides.
ScalingJob eight_billion() {
  ScalingJob job;
  job.layers = {{525e6, 0, 0}};
  for (int i = 0; i < 32; ++i) job.layers.push_back({218e6, 218e6, 1.4e9});
  job.layers.push_back({525e6, 0, 3.2e9});
  job.windows = 16384;
  job.context = 8192;
  job.compute_rate = 600e12;
  job.update_seconds = 0.04;
  job.refresh_seconds = 0.01;
  job.overlap_cost = 0.1;
  return job;
}
Network cluster() {
  Network n;
  n.intra_bandwidth = 360e9;
  n.inter_bandwidth = 42.5e9;
  n.call_latency = 8.4e-6;
  n.intra_latency = 3.4e-6;
  n.inter_latency = 14e-6;
  n.tree_efficiency = 0.92;
  return n;
}

}  // namespace

TEST_CASE("a ring's reduce-scatter and all-gather send (R-1)/R n each, an all-reduce twice that") {
  CHECK(ring_bytes(1, 12e9) == 0);
  CHECK(ring_bytes(2, 12e9) == 6e9);
  CHECK(ring_bytes(4, 12e9) == 9e9);
  // Without latency, time is bytes by bandwidth.
  const Network n = without_latency(1e9);
  CHECK(reduce_scatter_seconds(n, 4, 12e9) == Approx(9));
  CHECK(ring_all_reduce_seconds(n, 4, 12e9) == Approx(2 * 9));
  CHECK(ring_all_reduce_seconds(n, 8, 12e9) == Approx(2 * 7.0 / 8 * 12));
}

TEST_CASE("one rank communicates nothing and waits for nothing") {
  const Network n = example();
  for (const double bytes : {0.0, 1.0, 1e12}) {
    CHECK(reduce_scatter_seconds(n, 1, bytes) == 0);
    CHECK(all_reduce_seconds(n, 1, bytes) == 0);
    CHECK(all_to_all_seconds(n, 1, bytes) == 0);
  }
  for (const int zero : {0, 1, 2}) {
    ScalingJob job = eight_billion();
    job.zero = zero;
    const ScalingPoint one = scaling_point(job, cluster(), 1);
    CHECK(one.reduce_seconds == 0);
    CHECK(one.gather_seconds == 0);
    CHECK(one.control_seconds == 0);
    CHECK(one.sent_bytes == 0);
    CHECK(one.step_seconds == one.compute_seconds + one.update_seconds);
    CHECK(one.efficiency == Approx(1).epsilon(1e-12));
    CHECK(scaling_point(job, cluster(), 2).sent_bytes > 0);  // two do
  }
}

TEST_CASE("collectives on two nodes of eight, by hand") {
  const Network n = example();
  // 15/16 of 16e9 bytes: 0.15 s within the node, and 0.1875 s through its 8 x 10e9; 14 steps within, 1
  // between.
  CHECK(reduce_scatter_seconds(n, 16, 16e9) == Approx(1e-3 + 14e-4 + 1e-2 + 0.1875).epsilon(1e-12));
  CHECK(ring_all_reduce_seconds(n, 16, 16e9) == Approx(1e-3 + 2 * (14e-4 + 1e-2 + 0.1875)).epsilon(1e-12));
  // A tree: 7 steps within and log2(2) between, twice, and 2 n whatever the ranks.
  CHECK(tree_all_reduce_seconds(n, 16, 16e9) == Approx(1e-3 + 2 * (7e-4 + 1e-2) + 32.0 / 80).epsilon(1e-12));
  CHECK(all_reduce_seconds(n, 16, 16e9) == ring_all_reduce_seconds(n, 16, 16e9));
  // All-to-all: half of a rank's bytes leave the node through its own 10e9.
  CHECK(all_to_all_seconds(n, 16, 16e9) == Approx(1e-3 + 14e-4 + 1e-2 + 0.8).epsilon(1e-12));
  // On one node nothing crosses the network.
  CHECK(reduce_scatter_seconds(n, 8, 16e9) == Approx(1e-3 + 7e-4 + 0.14).epsilon(1e-12));
  Network slower = n;
  slower.inter_bandwidth /= 2;
  CHECK(reduce_scatter_seconds(slower, 8, 16e9) == reduce_scatter_seconds(n, 8, 16e9));
  CHECK(reduce_scatter_seconds(slower, 16, 16e9) > reduce_scatter_seconds(n, 16, 16e9));
}

TEST_CASE("a small all-reduce takes the tree, a large one the ring") {
  const Network n = cluster();
  CHECK(all_reduce_seconds(n, 1024, 4096) == tree_all_reduce_seconds(n, 1024, 4096));
  CHECK(all_reduce_seconds(n, 16, 8e9) == ring_all_reduce_seconds(n, 16, 8e9));
  CHECK(tree_all_reduce_seconds(n, 1024, 4096) < ring_all_reduce_seconds(n, 1024, 4096) / 10);
}

TEST_CASE(
    "FP8 codes halve BF16's time within a node, all-to-all between nodes of eight costs more than a ring") {
  Network n = cluster();
  n.call_latency = n.intra_latency = n.inter_latency = 0;
  const double parameters = 1e9, bf16 = parameters * bytes_of(WireFormat::BF16),
               fp8 = parameters * bytes_of(WireFormat::FP8);
  CHECK(bytes_of(WireFormat::FP8) <= 0.26 * bytes_of(WireFormat::FP32));
  CHECK(all_to_all_seconds(n, 8, fp8) == Approx(reduce_scatter_seconds(n, 8, bf16) / 2));
  // R = 64: 56/64 n through one rank's share, against 63/64 2 n through eight.
  CHECK(all_to_all_seconds(n, 64, fp8) / reduce_scatter_seconds(n, 64, bf16) ==
        Approx((56.0 / 64) / (63.0 / 64 * 2 / 8)));
}

TEST_CASE("communication hides behind the compute that follows it or goes before it") {
  // Gradients: 1 s a layer, then its reduction; they go one after the other.
  CHECK(exposed_after({1, 1, 1}, {0.5, 0.5, 0.5}) == Approx(0.5));  // the last one has nothing to hide behind
  CHECK(exposed_after({1, 1, 1}, {2, 2, 2}) == Approx(4));          // 1 + 3 x 2 - 3
  CHECK(exposed_after({1, 1, 1}, {0, 0, 0}) == 0);
  CHECK(exposed_after({3, 0, 0}, {1, 1, 1}) == Approx(3));
  // Weights: the first one has nothing to hide behind.
  CHECK(exposed_before({0.5, 0.5, 0.5}, {1, 1, 1}) == Approx(0.5));
  CHECK(exposed_before({2, 2, 2}, {1, 1, 1}) == Approx(4));
  CHECK(exposed_before({0, 0, 0}, {1, 1, 1}) == 0);
}

TEST_CASE("a step of two ranks, by hand") {
  const Network n = without_latency(4e9);
  ScalingJob job = two_layers();
  // Reduce-scatter and all-gather of a layer: half of 2e9 bytes at 4e9 = 0.25 s.
  ScalingPoint p = scaling_point(job, n, 2);
  CHECK(p.accumulation == 2);
  CHECK(p.compute_seconds == Approx(2));
  CHECK(p.reduce_seconds == Approx(0.5));
  CHECK(p.reduce_exposed == Approx(0.25));
  CHECK(p.gather_seconds == Approx(0.5));
  CHECK(p.gather_exposed ==
        Approx(1.0 / 3));  // 0.25, then 0.25 more than the 1/6 s of the first layer's compute
  CHECK(p.sent_bytes == Approx(4e9));
  // The norm and the amaxes: 4096 bytes twice, half of them out and in again.
  CHECK(p.control_seconds == Approx(2 * 4096 / 4e9));
  CHECK(p.step_seconds == Approx(2 + 0.25 + 1.0 / 3 + p.control_seconds));
  CHECK(p.tokens_per_second == Approx(4000 / p.step_seconds));
  CHECK(p.efficiency == Approx(4 / (2 * p.step_seconds)));

  job.weights = WireFormat::FP8;  // half the bytes to gather: 0.125 s, all but the first hidden
  CHECK(scaling_point(job, n, 2).gather_exposed == Approx(0.125));
  CHECK(scaling_point(job, n, 2).sent_bytes == Approx(3e9));

  job.zero = 0;  // an all-reduce, no gather: 1/3 + 0.5 + 0.5 after a backward of 2/3
  p = scaling_point(job, n, 2);
  CHECK(p.reduce_exposed == Approx(2.0 / 3));
  CHECK(p.gather_seconds == 0);
  CHECK(p.sent_bytes == Approx(4e9));

  job.zero = 2;  // twice, and the first time behind the next micro-batch
  p = scaling_point(job, n, 2);
  CHECK(p.reduce_seconds == Approx(1));
  CHECK(p.reduce_exposed == Approx(0.25));

  job.zero = 1;
  job.overlap_cost = 0.5;  // half of the hidden (0.5 - 0.25) + (0.25 - 0.125)
  CHECK(scaling_point(job, n, 2).overlap_seconds == Approx(0.5 * 0.375));

  job.recompute = 1;  // a third more
  CHECK(scaling_point(job, n, 2).compute_seconds == Approx(2 * 4.0 / 3));
}

TEST_CASE("local SGD sends what ZeRO-0 sends in one of its steps, and waits for all of it") {
  ScalingJob job = two_layers();
  const Network n = without_latency(8e9);
  for (const WireFormat wire : {WireFormat::FP32, WireFormat::BF16, WireFormat::FP8}) {
    job.gradients = wire;
    job.zero = 0;
    job.sync_every = 1;
    const ScalingPoint every_step = scaling_point(job, n, 2);
    job.sync_every = 20;
    const ScalingPoint local = scaling_point(job, n, 2);
    CHECK(local.sent_bytes == Approx(every_step.sent_bytes / 20));
    CHECK(local.reduce_seconds == Approx(every_step.reduce_seconds / 20));
    CHECK(local.reduce_exposed == local.reduce_seconds);
    CHECK(local.gather_seconds == 0);
  }
  CHECK(scaling_point(job, n, 1).sent_bytes == 0);
}

TEST_CASE("efficiency falls with the ranks, and only with what communication costs") {
  for (const int zero : {0, 1, 2}) {
    for (const WireFormat gradients : {WireFormat::FP32, WireFormat::BF16, WireFormat::FP8}) {
      ScalingJob job = eight_billion();
      job.zero = zero;
      job.gradients = gradients;
      double before = 1 + 1e-12, fastest = 0;
      for (int64_t ranks = 1; ranks <= 16384; ranks *= 2) {
        INFO("ZeRO-" << zero << ", " << name_of(gradients) << ", " << ranks << " ranks");
        const ScalingPoint p = scaling_point(job, cluster(), ranks);
        REQUIRE(p.problem.empty());
        CHECK(p.efficiency <= before);
        before = p.efficiency;
        Network slow = cluster();
        slow.inter_bandwidth /= 4;
        slow.intra_bandwidth /= 4;
        if (ranks > 1) CHECK(scaling_point(job, slow, ranks).efficiency < p.efficiency);
        fastest = std::max(fastest, p.tokens_per_second);
      }
      CHECK(before < 0.99);  // it does fall
      CHECK(fastest > 100 * scaling_point(job, cluster(), 1).tokens_per_second);
    }
  }
  // Free communication, and nothing that is done by every rank: efficiency 1.
  Network free;
  free.intra_bandwidth = free.inter_bandwidth = 1e30;
  ScalingJob job = eight_billion();
  job.refresh_seconds = 0;
  for (int64_t ranks = 1; ranks <= 16384; ranks *= 4)
    CHECK(scaling_point(job, free, ranks).efficiency == Approx(1).epsilon(1e-9));
}

TEST_CASE("the batch stays: micro-batches shrink, then ranks are left without a window") {
  ScalingJob job = two_layers();
  job.windows = 24;
  job.micro = 4;
  const auto at = [&](int64_t ranks) { return scaling_point(job, cluster(), ranks); };
  CHECK(at(1).micro == 4);
  CHECK(at(1).accumulation == 6);
  CHECK(at(6).micro == 4);
  CHECK(at(6).accumulation == 1);
  CHECK(at(8).micro == 3);  // three windows each
  CHECK(at(8).accumulation == 1);
  CHECK(at(4).micro == 3);  // six windows each: two micro-batches of three, not of four
  CHECK(at(4).accumulation == 2);
  CHECK(at(24).micro == 1);
  CHECK_THAT(at(16).problem, contains_text("24 windows a step do not divide among 16 ranks"));
  CHECK_THAT(at(32).problem, contains_text("batch.tokens=128000"));  // 32 ranks x 4 windows x 1000 tokens
  CHECK(at(32).step_seconds == 0);
  CHECK(working_ranks(24, 16384) == std::vector<int64_t>{1, 2, 3, 4, 6, 8, 12, 24});
  CHECK(working_ranks(24, 8) == std::vector<int64_t>{1, 2, 3, 4, 6, 8});
}

TEST_CASE("the best interval between checkpoints is sqrt(2 save mtbf), and its neighbours lose more") {
  const FailureModel model{.node_mtbf_seconds = 6400 * 3600.0, .stall_seconds = 50};
  const CheckpointAdvice advice = checkpoint_advice(model, 64);
  CHECK(advice.job_mtbf_seconds == Approx(360000));
  CHECK(advice.interval_seconds == Approx(6000));
  CHECK(advice.lost_share == Approx(50.0 / 6000 + 3000.0 / 360000));
  for (const double factor : {0.5, 0.9, 1.1, 2.0})
    CHECK(lost_share(model, 64, factor * advice.interval_seconds) > advice.lost_share);
  // Four times the nodes: half the interval.
  CHECK(checkpoint_advice(model, 256).interval_seconds == Approx(3000));
  // A write that takes longer than that is waited for; what it delays and the restart are lost as well.
  const FailureModel slow{
      .node_mtbf_seconds = 6400 * 3600.0, .stall_seconds = 1, .write_seconds = 2000, .restart_seconds = 600};
  CHECK(checkpoint_advice(slow, 64).interval_seconds == 2000);
  CHECK(checkpoint_advice(slow, 64).lost_share == Approx(1.0 / 2000 + (1000.0 + 2000 + 600) / 360000));
  CHECK(checkpoint_advice({.node_mtbf_seconds = 1, .stall_seconds = 10}, 1000).lost_share == 1);
}
