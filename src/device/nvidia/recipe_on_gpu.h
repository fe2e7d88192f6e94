// What a generation of NVIDIA's GPUs can and cannot do for a recipe, said without a GPU: by asking the code
// that asks the libraries.
#pragma once
#include <string>
#include <vector>

#include "device/nvidia/matmul_key.h"
#include "numerics/recipe.h"

namespace octet {

struct RecipeOnGpu {
  std::string obstacle;            // why it cannot train there; empty: it can
  std::vector<std::string> notes;  // one line each; none with an obstacle
};
RecipeOnGpu recipe_on_gpu(const Recipe& recipe, const GemmCapabilities& gpu);

}  // namespace octet
