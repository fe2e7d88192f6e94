// The order of samples and the prefetching loader.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "data/dataset.h"

namespace octet {

struct SampleLocation {
  int source;
  int64_t window;
  int64_t epoch;
};

enum class WindowOrder : uint8_t { AsStored, Shuffled };

// A pure function of (seed, global sample index): which window a sample is. Over one epoch of a source every
// window once, in an order keyed by (seed, source, epoch).
//
// Mixtures: a balanced binary tree halves the list of sources. A node whose left half has the share q of its
// weight hands floor(n q + 1/2) of its first n samples to the left and the others to the right. Both counts
// only grow, by one a sample in all, so every sample has exactly one place and nothing is remembered. A node
// adds an error of at most 1/2 to the share of the one above, so that among the first n samples of K sources
// |count - n * share| <= ceil(log2 K) / 2 (+ n * 2^-52, the rounding of q).
class SampleOrder {
 public:
  SampleOrder(const Dataset& dataset, uint64_t seed, WindowOrder windows);
  SampleLocation locate(int64_t sample) const;         // O(log sources)
  std::vector<int64_t> counts(int64_t samples) const;  // of each source among the first `samples`
  std::vector<int64_t> epochs(int64_t samples) const;  // of each source begun by the first `samples`

 private:
  struct Node {           // of the tree, or a leaf: a source
    uint64_t left_share;  // q * 2^64
    int left, right;      // children; a leaf has left < 0
    int source;
  };
  int build(const std::vector<double>& weights, int first, int last);
  std::vector<Node> nodes_;
  int root_ = 0;
  std::vector<int64_t> windows_;
  uint64_t seed_;
  WindowOrder window_order_;
};

// Error(Data) when `samples` need more than `epochs` passes over a source (F13); epochs 0 allows any number.
void check_epochs(const Dataset& dataset, const SampleOrder& order, int64_t samples, int64_t epochs);

struct MicroBatch {
  std::vector<int32_t> tokens, targets;  // [micro * context]
  std::vector<int> sources;              // [micro]
  std::vector<int64_t> samples;          // [micro] global sample indices
  uint64_t hash = 0;                     // XXH3 of tokens: two runs saw the same batch
};

struct LoaderOptions {
  uint64_t seed = 0;
  WindowOrder windows = WindowOrder::Shuffled;
  int64_t micro_batch = 8;   // samples a micro-batch
  int64_t global_batch = 8;  // samples a step, over all ranks
  // Micro-batches are dealt out: rank r reads those numbered a * ranks + r, so that the ranks' a-th ones
  // together, in rank order, are what one rank reads next.
  int64_t rank = 0, ranks = 1;
  int64_t first_sample = 0;  // resume: global index of the next step's first sample
  int prefetch = 4;          // micro-batches read ahead
};

class Loader {
 public:
  Loader(const Dataset& dataset, const LoaderOptions& options);
  ~Loader();
  // The next micro-batch; rethrows what the reading thread met. Valid until the next call.
  const MicroBatch& next();
  double stalled_seconds() const;  // time next() waited, in all

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace octet
