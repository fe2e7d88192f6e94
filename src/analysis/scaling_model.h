// What data parallelism on many GPUs will cost: pure functions of a job, a network and a number of ranks.
//
// Every formula is stated here with its source. The model leaves out stragglers, congestion between jobs, the
// loader and the lower utilisation of a smaller micro-batch; its constants are in
// docs/results/scaling_constants.json.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace octet {

// ---- collectives

// Ranks 0 .. R-1 fill node after node; every rank has an equal share of its node's network.
struct Network {
  int64_t ranks_per_node = 8;
  double intra_bandwidth =
      1;  // byte/s of a rank to the others of its node, one direction, as large messages reach
  double inter_bandwidth = 1;  // byte/s of a rank's share of its node's network, the same
  double call_latency = 0;     // s of a collective whatever its size
  double intra_latency = 0;    // s of a step between ranks of one node
  double inter_latency = 0;    // s of a step between nodes
  double tree_efficiency = 1;  // share of the bandwidth that a tree reaches

  int64_t nodes(int64_t ranks) const { return (ranks + ranks_per_node - 1) / ranks_per_node; }
};

// Bytes a rank sends in a ring's reduce-scatter or all-gather of n bytes: (R-1)/R n; an all-reduce is both.
// [Thakur, Rabenseifner, Gropp 2005, "Optimization of collective communication operations in MPICH", 4.1
// and 4.5]
double ring_bytes(int64_t ranks, double bytes);

// R ranks on N nodes of g, n bytes, in seconds:
//   ring   call + (R-N) intra + (N-1) inter latencies; the slower of (R-1)/R n at the bandwidth within a node
//   and, when
//          N > 1, (R-1)/R n at that of a whole node's network: as many rings as ranks, each leaving the node
//          at another one. All-reduce: twice all but the call.
//   tree   call + 2 ((g-1) intra + log2(N) inter latencies); 2 n at the tree's bandwidth.
// [NCCL 2.28, src/graph/tuning.cc; double binary trees: Sanders, Speck, Traeff 2009]
double reduce_scatter_seconds(const Network& network, int64_t ranks, double bytes);  // and all-gather
double ring_all_reduce_seconds(const Network& network, int64_t ranks, double bytes);
double tree_all_reduce_seconds(const Network& network, int64_t ranks, double bytes);
double all_reduce_seconds(const Network& network, int64_t ranks, double bytes);  // the faster of the two
// Each rank sends n/R to every other one, and (R-g)/R n of it through its own share of the network: unlike a
// ring's, these bytes are not added up within the node first.
double all_to_all_seconds(const Network& network, int64_t ranks, double bytes);

// ---- overlap

// Compute i must end before communication i begins (gradients of a layer); each kind runs in its own order,
// one after the other. Seconds beyond the compute's sum.
double exposed_after(const std::vector<double>& compute, const std::vector<double>& communication);
// Communication i must end before compute i begins (gathered weights).
double exposed_before(const std::vector<double>& communication, const std::vector<double>& compute);

// ---- a step

enum class WireFormat : uint8_t { FP32, BF16, FP8 };
const char* name_of(WireFormat format);
double bytes_of(WireFormat format);

// One bucket of gradients and weights: a block, or the head, or the token table.
struct ScalingLayer {
  double parameters = 0;
  double float8_parameters = 0;  // those whose working weight is FP8 codes
  double flops_per_token = 0;    // forward and backward
};

struct ScalingJob {
  std::vector<ScalingLayer> layers;  // in the order of forward
  int64_t windows = 1;               // of a step, over all ranks
  int64_t micro = 1;                 // windows of a micro-batch
  int64_t context = 1;
  double recompute = 0;        // of forward, once more in backward: 0 to 1
  double compute_rate = 1;     // FLOP/s of a rank, as reached
  double update_seconds = 0;   // of all masters and moments on one rank: what ZeRO-1 shards
  double refresh_seconds = 0;  // of all working weights: what every rank does
  int zero = 1;                // 0: nothing is sharded; 1: masters and moments; 2: gradients too
  WireFormat gradients = WireFormat::BF16;
  WireFormat weights = WireFormat::BF16;  // FP8: where there are codes, BF16 elsewhere
  // Above 1 (local SGD, ZeRO-0): ranks exchange once in so many steps, and nothing hides it.
  int64_t sync_every = 1;
  double overlap_cost = 0;  // hidden communication slows compute down by this share of its time

  double parameters() const;
};

struct ScalingPoint {
  int64_t ranks = 1, nodes = 1;
  // Windows are the configuration's: fewer ranks than windows get several micro-batches, more get none.
  int64_t micro = 0, accumulation = 0;
  std::string problem;  // why this number of ranks does not work; the numbers below are then zero

  double compute_seconds = 0, update_seconds = 0;
  double overlap_seconds = 0;                     // by which hidden communication slows compute down
  double reduce_seconds = 0, reduce_exposed = 0;  // of gradients: in all, and what a step waits for
  double gather_seconds = 0, gather_exposed = 0;  // of weights
  double control_seconds = 0;                     // the norm and the amaxes: two small all-reduces
  double sent_bytes = 0;                          // by a rank in a step
  double step_seconds = 0, tokens_per_second = 0;
  double efficiency = 0;    // tokens a second and rank, against one rank
  double memory_bytes = 0;  // of rank 0, as its memory is planned; the model does not know
};

// ZeRO-0 all-reduces gradients; ZeRO-1 reduce-scatters them on the last micro-batch and gathers weights,
// which overlaps the next forward; ZeRO-2 reduce-scatters on every micro-batch.  [Rajbhandari et al.
// 1910.02054, 5 and 7] FP8 gradients are codes exchanged all-to-all and summed in FP32; ZeRO-0 gathers codes
// of the sums.
// Local SGD all-reduces differences of the masters instead of gradients, in one of sync_every steps.
ScalingPoint scaling_point(const ScalingJob& job, const Network& network, int64_t ranks);
std::vector<ScalingPoint> scaling_curve(const ScalingJob& job, const Network& network,
                                        const std::vector<int64_t>& ranks);
// Numbers of ranks up to `most` among which the windows divide evenly.
std::vector<int64_t> working_ranks(int64_t windows, int64_t most);

// ---- failures

struct FailureModel {
  double node_mtbf_seconds = 1;  // mean time between failures of one node
  double stall_seconds = 0;      // a save stops training for so long
  double write_seconds = 0;      // and is whole after so long
  double restart_seconds = 0;    // from a failure to the first new step
};

struct CheckpointAdvice {
  double job_mtbf_seconds = 0;  // of one node, divided by their number
  double interval_seconds =
      0;  // sqrt(2 stall mtbf), at least the time of a write  [Young 1974; Daly 2006, eq. 13]
  // stall/interval + (interval/2 + write + restart)/mtbf, at most 1: to first order, good where it is small.
  double lost_share = 0;
};
CheckpointAdvice checkpoint_advice(const FailureModel& model, int64_t nodes);
double lost_share(const FailureModel& model, int64_t nodes, double interval_seconds);

}  // namespace octet
