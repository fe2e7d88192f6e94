// The named recipes.
#pragma once
#include <string>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "numerics/recipe.h"

namespace octet {

inline std::vector<std::string> recipe_names() {
  return {"fp32",
          "bf16",
          "fp8",
          "fishman",
          "torchao-rowwise",
          "torchao-rowwise-gw-hp",
          "switchback",
          "nanotron",
          "fp8-lm",
          "coat",
          "fog",
          "deepseek",
          "munit"};
}

inline void set_formats(Recipe& recipe, Format grad) {
  recipe.input.format = recipe.weight.format = Format::E4M3;
  recipe.grad.format = grad;
}

// `fp32` stores everything in FP32; `bf16` has BF16 linears and FP32 moments; `fp8` is the default of the
// house: E4M3 input and weight, E5M2 grad, current power-of-two scales, Smooth-SwiGLU dual, FP8 moments. The
// others are named after their source; docs/numerics.md, "Recipes by name", says what is exact and what
// differs.
// Throws Error(Usage) naming the known ones.
inline Recipe make_recipe(const std::string& name) {
  Recipe recipe;
  recipe.name = name;
  if (name == "fp32") {
    recipe.storage = Format::FP32;
    recipe.input.format = recipe.weight.format = recipe.grad.format = Format::FP32;
    recipe.moments.first = recipe.moments.second = Format::FP32;
  } else if (name == "bf16") {
    recipe.moments.first = recipe.moments.second = Format::FP32;
  } else if (name == "fp8") {
    recipe.input.format = recipe.weight.format = Format::E4M3;
    recipe.grad.format = Format::E5M2;
    recipe.smooth_swiglu = SmoothSwiGLU::Dual;
  } else if (name == "fishman") {
    set_formats(recipe, Format::E5M2);
    recipe.input.scaling = recipe.weight.scaling = recipe.grad.scaling = Scaling::Delayed;
    recipe.grad.rounding = Rounding::Stochastic;
    recipe.delayed = {.window = 1};  // one global batch: we refresh once a step
    recipe.smooth_swiglu = SmoothSwiGLU::Token;
    recipe.moments.block = 0;
    recipe.master = MasterFormat::FP16Scaled;
  } else if (name == "torchao-rowwise" || name == "torchao-rowwise-gw-hp") {
    set_formats(recipe, Format::E4M3);
    recipe.input.scaling = recipe.weight.scaling = recipe.grad.scaling = Scaling::Rowwise;
    recipe.fast_accumulation = {true, true, true};
    recipe.moments.first = recipe.moments.second = Format::FP32;
    if (name == "torchao-rowwise-gw-hp") recipe.gemms.wgrad = GemmFormat::Storage;
  } else if (name == "switchback") {
    set_formats(recipe, Format::E4M3);
    recipe.input.scaling = recipe.grad.scaling = Scaling::Rowwise;
    recipe.gemms.wgrad = GemmFormat::Storage;
    recipe.moments.first = recipe.moments.second = Format::FP32;
  } else if (name == "nanotron") {
    set_formats(recipe, Format::E5M2);
    recipe.input.scaling = recipe.grad.scaling = Scaling::Delayed;
    recipe.delayed = {.window = 16};
    recipe.fast_accumulation = {false, false, false};
    recipe.first_blocks_bf16 = recipe.last_blocks_bf16 = 1;
    recipe.moments = {.first = Format::E4M3, .second = Format::E4M3, .block = 0};
    recipe.master = MasterFormat::FP16Scaled;
  } else if (name == "fp8-lm") {
    set_formats(recipe, Format::E5M2);
    recipe.moments = {.first = Format::E4M3, .second = Format::FP16, .block = 0};
    recipe.master = MasterFormat::FP16Scaled;
  } else if (name == "coat") {
    set_formats(recipe, Format::E5M2);
    recipe.saved_activations = SavedActivations::FP8;
    recipe.moments = {.first = Format::E4M3, .second = Format::E4M3, .block = 128, .range_expansion = true};
  } else if (name == "fog") {
    set_formats(recipe, Format::E5M2);
    recipe.input.scaling = recipe.weight.scaling = recipe.grad.scaling = Scaling::Delayed;
    recipe.delayed = {.window = 1024};
    recipe.attention = AttentionFormat::FP8;
    recipe.weight_gradient = Format::BF16;
    recipe.moments.first = recipe.moments.second = Format::FP16;
    recipe.master = MasterFormat::FP16Scaled;
  } else if (name == "deepseek") {
    set_formats(recipe, Format::E4M3);
    recipe.input.scaling = recipe.weight.scaling = recipe.grad.scaling = Scaling::Blockwise;
    recipe.fast_accumulation = {false, false, false};
    recipe.moments.first = recipe.moments.second = Format::BF16;
  } else if (name == "munit") {
    set_formats(recipe, Format::E5M2);
    recipe.input.scaling = recipe.weight.scaling = recipe.grad.scaling = Scaling::Static;
    recipe.moments.first = recipe.moments.second = Format::FP32;
  } else {
    std::string known;
    for (const std::string& candidate : recipe_names()) known += (known.empty() ? "" : ", ") + candidate;
    const std::vector<std::string> names = recipe_names();
    const std::string near = nearest(name, names);
    throw Error(ExitCode::Usage, "unknown recipe \"" + escape_control(name) + "\"; known recipes: " + known,
                near.empty() ? "set precision.recipe to one of them" : "did you mean \"" + near + "\"?");
  }
  return recipe;
}

}  // namespace octet
