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

// A pure function of (seed, global sample index): which window a sample is. Over one epoch of a source every
// window once.
class SampleOrder {
 public:
  SampleOrder(const Dataset& dataset, uint64_t seed, bool shuffle);
  SampleLocation locate(int64_t sample) const;

 private:
  struct Part {
    int64_t windows;
    double weight;
  };
  std::vector<Part> parts_;
  uint64_t seed_;
  bool shuffle_;
};

struct MicroBatch {
  std::vector<int32_t> tokens, targets;  // [micro * context]
  std::vector<int> sources;              // [micro]
  std::vector<int64_t> samples;          // [micro] global sample indices
  uint64_t hash = 0;                     // XXH3 of tokens: two runs saw the same batch
};

struct LoaderOptions {
  uint64_t seed = 0;
  bool shuffle = true;
  int64_t micro_batch = 8;      // samples a micro-batch
  int64_t global_batch = 8;     // samples a step, over all ranks
  int64_t rank = 0, ranks = 1;  // this rank reads its slice of every global batch
  int64_t first_sample = 0;     // resume: global index of the next step's first sample
  int prefetch = 4;             // micro-batches read ahead
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
