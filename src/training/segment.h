// A run whose precision changes is a sequence of segments. Within one, the recipe is what it is; between two,
// the state is saved, memory is planned for the next recipe, and the run goes on from that checkpoint as it
// would after a stop with another recipe (train.cpp). The step knows nothing of it.
//
// Segments end where a stage of the configuration's schedule begins, and where a linear fell back
// (training/fallback.h). Which one a step belongs to is a function of the configuration and of the fallbacks,
// which a checkpoint holds; so a resumed run finds its segment from its step.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "config/run_config.h"

namespace octet {

// A linear that runs in BF16 after step `step`.
struct Fallback {
  int64_t step = 0;
  int block = 0;
  BlockLinear linear = BlockLinear::Qkv;
  std::string name;             // "blocks.3.ffn.down"
  std::string reason;           // a limit of FallbackOptions: "saturated", "nonfinite", "kurtosis"
  double value = 0, limit = 0;  // what passed which limit
  bool operator==(const Fallback&) const = default;
};

// These linears of these blocks run in storage precision.
void fall_back(Recipe& recipe, const BlockRange& blocks, const std::array<bool, block_linears>& linears);

struct Segment {
  int64_t begin = 0, end = 0;  // its steps are begin + 1 .. end, counted from 1
  size_t stage = 0;            // 0: the section "precision", i: the schedule's entry i - 1
  Recipe recipe;               // with what has fallen back before
};
// The segment that a step, counted from 1, belongs to; of step 0 and 1 the first.
Segment segment_of_step(const RunConfig& config, const std::vector<Fallback>& fallbacks, int64_t step);

// Calls `call` with the configuration of each stage, which has no schedule: to measure, plan and refuse all
// before the first begins. An Error names the stage, where there are several.
void for_each_stage(const RunConfig& config, const std::function<void(const RunConfig& stage)>& call);
// "stage 2 of 3, from step 200 on: bf16, operands reduced to E8M3".
std::string describe_stage(const RunConfig& config, size_t stage);
std::string describe(const Recipe& recipe);  // "bf16, operands reduced to E8M3"

}  // namespace octet
