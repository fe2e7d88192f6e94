#include "training/segment.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "numerics/small_float.h"

namespace octet {

void fall_back(Recipe& recipe, const BlockRange& blocks, const std::array<bool, block_linears>& linears) {
  Override other;
  other.blocks = blocks;
  std::copy(linears.begin(), linears.end(), other.linears);
  other.formats.input.format = other.formats.weight.format = other.formats.grad.format = recipe.storage;
  recipe.overrides.push_back(other);
}

Segment segment_of_step(const RunConfig& config, const std::vector<Fallback>& fallbacks, int64_t step) {
  step = std::max<int64_t>(step, 1);
  Segment segment;
  segment.end = config.run.steps;
  segment.recipe = config.precision;
  const auto border = [&](int64_t at) {
    if (at < step)
      segment.begin = std::max(segment.begin, at);
    else
      segment.end = std::min(segment.end, at);
    return at < step;
  };
  for (size_t i = 0; i < config.precision_schedule.size(); ++i) {
    const PrecisionStage& stage = config.precision_schedule[i];
    if (!border(stage.from)) continue;
    segment.stage = i + 1;
    segment.recipe = stage.precision;
  }
  for (const Fallback& one : fallbacks) {
    if (!border(one.step)) continue;
    std::array<bool, block_linears> linears{};
    linears[static_cast<size_t>(one.linear)] = true;
    fall_back(segment.recipe, {.begin = one.block, .end = one.block + 1}, linears);
  }
  return segment;
}

void for_each_stage(const RunConfig& config, const std::function<void(const RunConfig&)>& call) {
  RunConfig stage = config;
  stage.precision_schedule.clear();
  for (size_t i = 0; i <= config.precision_schedule.size(); ++i) {
    if (i > 0) stage.precision = config.precision_schedule[i - 1].precision;
    try {
      call(stage);
    } catch (const Error& error) {
      if (config.precision_schedule.empty()) throw;
      throw Error(error.code(), fmt::format("{}: {}", describe_stage(config, i), error.what()), error.hint());
    }
  }
}

std::string describe(const Recipe& recipe) {
  return recipe.name +
         (recipe.simulate.reduces() ? fmt::format(", operands reduced to {}", name_of(recipe.simulate)) : "");
}

std::string describe_stage(const RunConfig& config, size_t stage) {
  const bool first = stage == 0;
  return fmt::format("stage {} of {}, from step {} on: {}", stage + 1, config.precision_schedule.size() + 1,
                     first ? 1 : config.precision_schedule[stage - 1].from + 1,
                     describe(first ? config.precision : config.precision_schedule[stage - 1].precision));
}

}  // namespace octet
