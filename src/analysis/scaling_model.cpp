#include "analysis/scaling_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace octet {
namespace {

double log2_ceiling(int64_t n) {
  double steps = 0;
  for (int64_t reached = 1; reached < n; reached *= 2) ++steps;
  return steps;
}

// (R-1)/R n through the slower of a rank's links within the node and the node's network.
double ring_transfer(const Network& network, int64_t ranks, double bytes) {
  const double sent = ring_bytes(ranks, bytes);
  const auto on_node = static_cast<double>(std::min(ranks, network.ranks_per_node));
  const double within = on_node > 1 ? sent / network.intra_bandwidth : 0;
  const double between = network.nodes(ranks) > 1 ? sent / (on_node * network.inter_bandwidth) : 0;
  return std::max(within, between);
}

double ring_latency(const Network& network, int64_t ranks) {
  const int64_t nodes = network.nodes(ranks);
  return static_cast<double>(ranks - nodes) * network.intra_latency +
         static_cast<double>(nodes - 1) * network.inter_latency;
}

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

// Seconds of a bucket's gradients and of its weights.
double reduce_seconds(const ScalingJob& job, const Network& network, int64_t ranks, double parameters) {
  const double bytes = parameters * bytes_of(job.gradients);
  // Codes, and ZeRO-2's pieces, are exchanged and added up by their owner.
  if (job.gradients == WireFormat::FP8 || job.zero > 1) {
    const double exchange = all_to_all_seconds(network, ranks, bytes);
    return job.zero > 0 ? exchange : exchange + reduce_scatter_seconds(network, ranks, bytes);
  }
  return job.zero > 0 ? reduce_scatter_seconds(network, ranks, bytes)
                      : all_reduce_seconds(network, ranks, bytes);
}

double weight_bytes(const ScalingJob& job, const ScalingLayer& layer) {
  if (job.weights != WireFormat::FP8) return layer.parameters * bytes_of(job.weights);
  return layer.float8_parameters * bytes_of(WireFormat::FP8) +
         (layer.parameters - layer.float8_parameters) * bytes_of(WireFormat::BF16);
}

// Windows of a rank, or why there are none.
bool divide(const ScalingJob& job, int64_t ranks, ScalingPoint& point) {
  if (ranks > job.windows) {
    point.problem =
        fmt::format("{} windows a step leave ranks without one; batch.tokens={} gives each a micro-batch",
                    job.windows, ranks * job.micro * job.context);
    return false;
  }
  if (job.windows % ranks != 0) {
    point.problem = fmt::format("{} windows a step do not divide among {} ranks", job.windows, ranks);
    return false;
  }
  const int64_t each = job.windows / ranks;
  point.micro = std::gcd(each, job.micro);
  for (int64_t micro = std::min(each, job.micro); micro > point.micro; --micro)
    if (each % micro == 0) point.micro = micro;
  point.accumulation = each / point.micro;
  return true;
}

void add_communication(const ScalingJob& job, const Network& network, ScalingPoint& point) {
  if (point.ranks == 1) return;
  if (job.sync_every > 1) {
    const auto steps = static_cast<double>(job.sync_every);
    point.reduce_seconds = reduce_seconds(job, network, point.ranks, job.parameters()) / steps;
    point.reduce_exposed = point.reduce_seconds;
    point.sent_bytes = 2 * ring_bytes(point.ranks, job.parameters() * bytes_of(job.gradients)) / steps;
    return;
  }
  // Of one micro-batch, by layer, in the order of forward.
  std::vector<double> forward, backward, gather, reduce;
  const double tokens = static_cast<double>(point.micro * job.context);
  double gathered = 0;
  for (const ScalingLayer& layer : job.layers) {
    const double third = tokens * layer.flops_per_token / 3 / job.compute_rate;
    forward.push_back(third);
    backward.push_back(third * (2 + job.recompute));
    const double bytes = weight_bytes(job, layer);
    gathered += bytes;
    gather.push_back(reduce_scatter_seconds(network, point.ranks, bytes));
    reduce.push_back(reduce_seconds(job, network, point.ranks, layer.parameters));
  }
  std::reverse(backward.begin(), backward.end());
  std::reverse(reduce.begin(), reduce.end());
  const double once = sum(reduce), behind = exposed_after(backward, reduce);
  // ZeRO-2: what one micro-batch leaves over overlaps the next one, except the last one's.
  const auto before_last = static_cast<double>(job.zero > 1 ? point.accumulation - 1 : 0);
  point.reduce_seconds = once * (1 + before_last);
  point.reduce_exposed = behind + before_last * std::max(0.0, once - sum(forward) - sum(backward));
  if (job.zero > 0) {
    point.gather_seconds = sum(gather);
    point.gather_exposed = exposed_before(gather, forward);
  }
  const double hidden =
      point.reduce_seconds - point.reduce_exposed + point.gather_seconds - point.gather_exposed;
  point.overlap_seconds = job.overlap_cost * std::max(0.0, hidden);
  constexpr double scalars = 4096;  // bytes of the norm, and of the amaxes of a large model
  point.control_seconds = 2 * all_reduce_seconds(network, point.ranks, scalars);

  const double gradients = ring_bytes(point.ranks, job.parameters() * bytes_of(job.gradients));
  point.sent_bytes =
      job.zero > 0 ? gradients * (1 + before_last) + ring_bytes(point.ranks, gathered) : 2 * gradients;
}

double compute_seconds(const ScalingJob& job, const ScalingPoint& point) {
  double flops = 0;
  for (const ScalingLayer& layer : job.layers) flops += layer.flops_per_token;
  const double tokens = static_cast<double>(point.micro * point.accumulation * job.context);
  return tokens * flops * (1 + job.recompute / 3) / job.compute_rate;
}

}  // namespace

// ---- collectives

double ring_bytes(int64_t ranks, double bytes) {
  return bytes * static_cast<double>(ranks - 1) / static_cast<double>(ranks);
}

double reduce_scatter_seconds(const Network& network, int64_t ranks, double bytes) {
  if (ranks == 1) return 0;
  return network.call_latency + ring_latency(network, ranks) + ring_transfer(network, ranks, bytes);
}

double ring_all_reduce_seconds(const Network& network, int64_t ranks, double bytes) {
  if (ranks == 1) return 0;
  return network.call_latency + 2 * (ring_latency(network, ranks) + ring_transfer(network, ranks, bytes));
}

double tree_all_reduce_seconds(const Network& network, int64_t ranks, double bytes) {
  if (ranks == 1) return 0;
  const int64_t nodes = network.nodes(ranks);
  const auto on_node = static_cast<double>(std::min(ranks, network.ranks_per_node));
  const double within = on_node > 1 ? 1 / network.intra_bandwidth : 0;
  const double between = nodes > 1 ? 1 / (on_node * network.inter_bandwidth) : 0;
  return network.call_latency +
         2 * ((on_node - 1) * network.intra_latency + log2_ceiling(nodes) * network.inter_latency) +
         2 * bytes * std::max(within, between) / network.tree_efficiency;
}

double all_reduce_seconds(const Network& network, int64_t ranks, double bytes) {
  return std::min(ring_all_reduce_seconds(network, ranks, bytes),
                  tree_all_reduce_seconds(network, ranks, bytes));
}

double all_to_all_seconds(const Network& network, int64_t ranks, double bytes) {
  if (ranks == 1) return 0;
  const auto r = static_cast<double>(ranks);
  const auto on_node = static_cast<double>(std::min(ranks, network.ranks_per_node));
  const double within = (on_node - 1) / r * bytes / network.intra_bandwidth;
  const double between = (r - on_node) / r * bytes / network.inter_bandwidth;
  return network.call_latency + ring_latency(network, ranks) + std::max(within, between);
}

// ---- overlap

double exposed_after(const std::vector<double>& compute, const std::vector<double>& communication) {
  double computed = 0, communicated = 0;
  for (size_t i = 0; i < compute.size(); ++i) {
    computed += compute[i];
    communicated = std::max(communicated, computed) + communication[i];
  }
  return std::max(0.0, communicated - computed);
}

double exposed_before(const std::vector<double>& communication, const std::vector<double>& compute) {
  double communicated = 0, computed = 0;
  for (size_t i = 0; i < compute.size(); ++i) {
    communicated += communication[i];
    computed = std::max(computed, communicated) + compute[i];
  }
  return computed - sum(compute);
}

// ---- a step

const char* name_of(WireFormat format) {
  constexpr const char* names[] = {"fp32", "bf16", "fp8"};
  return names[static_cast<int>(format)];
}
double bytes_of(WireFormat format) {
  constexpr double bytes[] = {4, 2, 1};
  return bytes[static_cast<int>(format)];
}

double ScalingJob::parameters() const {
  double all = 0;
  for (const ScalingLayer& layer : layers) all += layer.parameters;
  return all;
}

ScalingPoint scaling_point(const ScalingJob& job, const Network& network, int64_t ranks) {
  ScalingPoint point;
  point.ranks = ranks;
  point.nodes = network.nodes(ranks);
  if (!divide(job, ranks, point)) return point;
  point.compute_seconds = compute_seconds(job, point);
  point.update_seconds =
      job.update_seconds / static_cast<double>(job.zero > 0 ? ranks : 1) + job.refresh_seconds;
  add_communication(job, network, point);
  point.step_seconds = point.compute_seconds + point.update_seconds + point.reduce_exposed +
                       point.gather_exposed + point.overlap_seconds + point.control_seconds;
  const double tokens = static_cast<double>(job.windows * job.context);
  point.tokens_per_second = tokens / point.step_seconds;

  ScalingPoint alone;
  divide(job, 1, alone);
  const double one = compute_seconds(job, alone) + job.update_seconds + job.refresh_seconds;
  point.efficiency = one / (static_cast<double>(ranks) * point.step_seconds);
  return point;
}

std::vector<ScalingPoint> scaling_curve(const ScalingJob& job, const Network& network,
                                        const std::vector<int64_t>& ranks) {
  std::vector<ScalingPoint> curve;
  for (const int64_t count : ranks) curve.push_back(scaling_point(job, network, count));
  return curve;
}

std::vector<int64_t> working_ranks(int64_t windows, int64_t most) {
  std::vector<int64_t> ranks;
  for (int64_t count = 1; count <= std::min(windows, most); ++count)
    if (windows % count == 0) ranks.push_back(count);
  return ranks;
}

// ---- failures

double lost_share(const FailureModel& model, int64_t nodes, double interval) {
  const double mtbf = model.node_mtbf_seconds / static_cast<double>(nodes);
  return std::min(1.0, model.stall_seconds / interval +
                           (interval / 2 + model.write_seconds + model.restart_seconds) / mtbf);
}

CheckpointAdvice checkpoint_advice(const FailureModel& model, int64_t nodes) {
  CheckpointAdvice advice;
  advice.job_mtbf_seconds = model.node_mtbf_seconds / static_cast<double>(nodes);
  advice.interval_seconds =
      std::max(std::sqrt(2 * model.stall_seconds * advice.job_mtbf_seconds), model.write_seconds);
  advice.lost_share = lost_share(model, nodes, advice.interval_seconds);
  return advice;
}

}  // namespace octet
