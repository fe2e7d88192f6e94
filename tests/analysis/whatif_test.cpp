#include "analysis/whatif.h"

#include <cmath>

#include "catch.h"
#include "device/observed_device.h"
#include "error_of.h"

using namespace octet;

TEST_CASE("every operation that ends in a cast shows its target, and no other does") {
  CHECK(cast_target_of(RmsNormForward{}) != nullptr);
  CHECK(cast_target_of(RmsNormBackward{}) != nullptr);
  CHECK(cast_target_of(AttentionForward{}) != nullptr);
  CHECK(cast_target_of(RopeBackward{}) != nullptr);
  CHECK(cast_target_of(SwiGluForward{}) != nullptr);
  CHECK(cast_target_of(SwiGluBackward{}) != nullptr);
  CHECK(cast_target_of(CastOperation{}) != nullptr);
  CHECK(cast_target_of(Matmul{}) == nullptr);
  CHECK(cast_target_of(CrossEntropy{}) == nullptr);
}

TEST_CASE("an observed device passes on what it is given, and shows it only while somebody looks") {
  const auto cpu = make_cpu_device({.deterministic = true, .threads = 1});
  ObservedDevice observed(*cpu);
  const float weights[] = {1, -2, 0.001f, 500};
  uint8_t codes[4] = {};
  float numbers[3] = {};
  CastOperation op;
  op.source = {const_cast<float*>(weights), DType::F32, {2, 2}};
  op.out.row = {codes, DType::E4M3, {2, 2}};
  op.out.cast.format = Format::E4M3;
  op.out.site = {numbers, numbers + 1, numbers + 2, nullptr};
  int seen = 0;
  observed.cast(op);
  CHECK(seen == 0);
  observed.observe({.cast =
                        [&](const CastTarget& target, const Tensor& source) {
                          ++seen;
                          CHECK(target.row.data == codes);
                          CHECK(source.data == weights);
                        },
                    .swiglu = {},
                    .head = {}});
  observed.cast(op);
  CHECK(seen == 1);
  observed.observe({});
  observed.cast(op);
  CHECK(seen == 1);
  uint8_t by_itself[4] = {};
  op.out.row.data = by_itself;
  cpu->cast(op);
  for (int i = 0; i < 4; ++i) CHECK(codes[i] == by_itself[i]);
  CHECK(codes[3] != 0);
}

TEST_CASE("a recipe with changes is a list of overrides") {
  CHECK(overrides_of_recipe("fp8") == std::vector<std::string>{"precision.recipe=fp8"});
  CHECK(overrides_of_recipe("fp8:scaling=delayed:smooth_swiglu=none") ==
        std::vector<std::string>{"precision.recipe=fp8", "precision.scaling=delayed",
                                 "precision.smooth_swiglu=none"});
  for (const char* wrong : {"", "fp8:", ":x=1", "fp8:delayed"})
    CHECK(std::string(error_of([&] { overrides_of_recipe(wrong); }).what()).find("--recipes") == 0);
}

TEST_CASE("a table has a line a role over the blocks, with the median and the worst, or a line a site") {
  WhatIf result;
  result.step = 7;
  result.tokens = 64;
  WhatIfRecipe recipe{"fp8", 2.5, {}};
  for (int block = 0; block < 3; ++block) {
    CastQuality quality;
    quality.signal = 1000;
    quality.noise = std::pow(10.0, block);  // 30, 20 and 10 dB
    quality.elements = 200;
    quality.saturated = block;
    recipe.sites.push_back({"blocks." + std::to_string(block) + ".ffn.down.input", block, quality});
  }
  result.recipes = {{"bf16", 2.4, {}}, recipe};
  CHECK(recipe.sites[1].quality.snr() == Approx(20));
  CHECK(std::isinf(CastQuality{.signal = 1}.snr()));
  const std::string roles = table(result, Detail::Roles), sites = table(result, Detail::Sites);
  INFO(roles << sites);
  CHECK(roles.find("20.0 / 10.0") != std::string::npos);
  CHECK(roles.find("1.00") != std::string::npos);  // the worst share
  CHECK(roles.find("blocks.") == std::string::npos);
  CHECK(sites.find("blocks.2.ffn.down.input") != std::string::npos);
  CHECK(to_json(result)["recipes"][1]["sites"][2]["snr_db"].get<double>() == Approx(10));
}
