// Faults in the state of a run: weights that are changed once, before a given step, as the beginning of an
// experiment. Unlike other faults (inject.h) they leave a trace in the checkpoint, and they are exact: a run
// that is resumed from before the step makes the same change, one from after it has made it.
//
//   align:step=K[,neuron=N][,neurons=M][,hidden=X[,contribution=Y] | scale=C]
//       Neurons N .. N+M-1 (17, one) of every block's SwiGLU: the linear branch's weights become the gate's,
//       and both are multiplied by C, or so that h = silu(z) z of the largest z of the step's first
//       micro-batch is X (1e4), one block after the other.  [Fishman et al. 2409.12517, Theorem 1: w1 and w2
//       align, and the neuron becomes quadratic in its input; this is that end of the road at once.] With a
//       contribution the down projection's column of the neuron is multiplied by Y / X: the block's output is
//       that of a neuron which reaches Y, so that the outlier is a matter of number formats and not of the
//       function.
//   row:step=K,parameter=NAME,row=R,scale=C
//       Row R of a matrix is multiplied by C. Of "embedding.weight" that is one token's embedding.
//
// Steps count from 1: K's forward pass is the first to see the change.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/run_config.h"
#include "data/loader.h"
#include "device/observed_device.h"
#include "training/ranks.h"
#include "training/run_memory.h"

namespace octet {

struct StateInjection {
  enum class Kind : uint8_t { Align, Row } kind = Kind::Align;
  std::string text;  // as it was given
  int64_t step = 0;
  int64_t neuron = 17, neurons = 1;  // Align
  double hidden = 1e4;               // Align, when scale is 0
  double scale = 0;
  double contribution = 0;  // Align: 0 leaves the down projection as it is
  std::string parameter;    // Row
  int64_t row = -1;
};

// Empty: some other fault's name. Error(Usage) names what is wrong.
std::optional<StateInjection> parse_state_injection(const std::string& text);
// Of a list that may hold nothing else. Error(Usage) for the first that is wrong, or no fault in the state.
std::vector<StateInjection> parse_state_injections(const std::vector<std::string>& texts);

// Error(Usage) with the first that this configuration cannot have.
void require_possible(const std::vector<StateInjection>& injections, const RunConfig& config);
// The same of parameters' names and rows, once the model is there.
void require_possible(const std::vector<StateInjection>& injections,
                      const std::vector<Parameter>& parameters);

// What it is done to. `step` is the one about to begin; all ranks call apply() together.
struct InjectionSite {
  ObservedDevice& device;
  RunMemory& memory;
  Ranks& ranks;
  int64_t step, attempt;    // attempt: rollbacks so far
  const MicroBatch& first;  // the step's first micro-batch, on rank 0
};
// Changes masters and working weights; returns one sentence for the log.
std::string apply(const StateInjection& injection, const InjectionSite& site);

}  // namespace octet
