#include "device/nvidia/recipe_on_gpu.h"

#include <algorithm>

#include "catch.h"
#include "numerics/recipes.h"

using namespace octet;

namespace {

RecipeOnGpu on(const char* recipe, int capability) {
  return recipe_on_gpu(make_recipe(recipe), {.capability = capability});
}
bool notes(const RecipeOnGpu& found, const std::string& text) {
  return std::any_of(found.notes.begin(), found.notes.end(),
                     [&](const std::string& note) { return note.find(text) != std::string::npos; });
}

}  // namespace

TEST_CASE("which recipes train on which generation: FP8 from Ada on, BF16 from Ampere on, FP32 nowhere") {
  for (const int capability : {80, 86, 89, 90, 100, 120}) {
    INFO(capability);
    CHECK(on("bf16", capability).obstacle.empty());
    CHECK(on("fp8", capability).obstacle.empty() == (capability >= 89));
    CHECK_THAT(on("fp32", capability).obstacle, contains_text("attention on the GPU reads and writes BF16"));
    CHECK(on("fp32", capability).notes.empty());
  }
  CHECK_THAT(on("fp8", 86).obstacle, contains_text("8.9 (Ada), this GPU has 8.6"));
  for (const char* recipe : {"fp32", "bf16", "fp8"})
    CHECK_THAT(on(recipe, 75).obstacle, contains_text("7.5, at least 8.0 (Ampere)"));
}

TEST_CASE("what differs between generations is said for each") {
  CHECK(notes(on("fp8", 90), "heads are 64 to 256 wide"));
  CHECK(notes(on("fp8", 90), "ride in cuBLASLt's products"));
  CHECK(notes(on("fp8", 90), "fast_accumulation has an effect"));
  CHECK(notes(on("fp8", 90), "keeps 2 x batch x heads x context^2 bytes"));
  CHECK(notes(on("fp8", 100), "heads are 64 to 128 wide"));
  CHECK(notes(on("fp8", 100), "applied by a kernel after the product"));
  CHECK(notes(on("fp8", 100), "fast_accumulation has no effect"));
  CHECK(notes(on("fp8", 100), "keeps no scores"));
  CHECK(notes(on("fp8", 89), "fast_accumulation has an effect"));
  CHECK(notes(on("fp8", 89), "keeps 2 x batch"));
  CHECK_FALSE(notes(on("bf16", 90), "Smooth-SwiGLU"));
}

TEST_CASE(
    "a recipe with FP8 attention trains on Hopper and data-centre Blackwell only, and says why elsewhere") {
  Recipe recipe = make_recipe("fp8");
  recipe.attention = AttentionFormat::FP8;
  for (const int capability : {90, 100, 103})
    CHECK(recipe_on_gpu(recipe, {.capability = capability}).obstacle.empty());
  for (const int capability : {89, 120})
    CHECK_THAT(recipe_on_gpu(recipe, {.capability = capability}).obstacle,
               contains_text("precision.attention must be storage"));
  CHECK(notes(on("fp8", 90), "precision.attention fp8: heads 128 wide only"));
  CHECK(notes(on("fp8", 100), "precision.attention fp8: heads 64 to 128 wide"));
  CHECK(notes(on("fp8", 89), "precision.attention fp8 is refused"));
  CHECK_FALSE(notes(on("bf16", 90), "precision.attention"));
}

TEST_CASE("scales of blocks train on Hopper alone, and other GPUs say which scaling they have") {
  CHECK(on("deepseek", 90).obstacle.empty());
  CHECK(notes(on("deepseek", 90), "scales of blocks of 128 values ride in cuBLASLt's products"));
  CHECK_FALSE(notes(on("deepseek", 90), "fast_accumulation"));
  for (const int capability : {89, 100, 103, 120}) {
    INFO(capability);
    CHECK_THAT(on("deepseek", capability).obstacle, contains_text("precision.scaling blockwise"));
    CHECK_THAT(on("deepseek", capability).obstacle, contains_text("9.0 (Hopper)"));
    CHECK(on("deepseek", capability).notes.empty());
  }
  const GemmCapabilities old{.capability = 90, .cublaslt_version = 120805};
  CHECK_THAT(recipe_on_gpu(make_recipe("deepseek"), old).obstacle, contains_text("cuBLASLt 12.8"));
}
