#include "catch.h"
#include "numerics/recipes.h"

using namespace octet;

TEST_CASE("the named recipes are what they say") {
  const Recipe fp32 = make_recipe("fp32"), bf16 = make_recipe("bf16"), fp8 = make_recipe("fp8");
  CHECK((fp32.storage == Format::FP32 && fp32.input.format == Format::FP32 &&
         fp32.weight.format == Format::FP32 && fp32.grad.format == Format::FP32 &&
         fp32.moments.first == Format::FP32));
  CHECK((bf16.storage == Format::BF16 && bf16.input.format == Format::BF16 &&
         bf16.grad.format == Format::BF16 && bf16.moments.second == Format::FP32));
  CHECK((fp8.storage == Format::BF16 && fp8.input.format == Format::E4M3 &&
         fp8.weight.format == Format::E4M3 && fp8.grad.format == Format::E5M2 &&
         fp8.smooth_swiglu == SmoothSwiGLU::Dual && fp8.moments == Moments{Format::E4M3, Format::E5M2, 128}));
  CHECK((fp8.float8() && !bf16.float8() && !fp32.float8()));
  for (const std::string& name : recipe_names()) CHECK(make_recipe(name).name == name);
}

TEST_CASE("an unknown recipe is refused with the known ones and the nearest") {
  try {
    make_recipe("fp9");
    FAIL("made");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    CHECK(std::string(error.what()).find("fp32, bf16, fp8") != std::string::npos);
    CHECK(error.hint().find("fp8") != std::string::npos);
  }
}

TEST_CASE("recipes named after a source have its formats of states and operands") {
  const Recipe nanotron = make_recipe("nanotron"), fp8_lm = make_recipe("fp8-lm"), coat = make_recipe("coat"),
               fog = make_recipe("fog");
  for (const Recipe& recipe : {nanotron, fp8_lm, coat, fog}) {
    INFO(recipe.name);
    CHECK(recipe.input.format == Format::E4M3);
    CHECK(recipe.weight.format == Format::E4M3);
    CHECK(recipe.grad.format == Format::E5M2);
    CHECK(recipe.moments.first == (recipe == fog ? Format::FP16 : Format::E4M3));
    CHECK((recipe.master == MasterFormat::FP16Scaled) == !(recipe == coat));
    CHECK((recipe.attention == AttentionFormat::FP8) == (recipe == fog));
    CHECK(recipe.moments.range_expansion == (recipe == coat));
    CHECK((recipe.saved_activations == SavedActivations::FP8) == (recipe == coat));
  }
  CHECK(make_recipe("fishman").master == MasterFormat::FP16Scaled);
  CHECK(nanotron.moments.second == Format::E4M3);
  CHECK(fp8_lm.moments.second == Format::FP16);
  CHECK(nanotron.delayed.window == 16);
  CHECK(nanotron.weight.scaling == Scaling::Current);
  CHECK(fog.delayed.window == 1024);
  CHECK(fog.weight.scaling == Scaling::Delayed);
  // Nanotron's first and last decoder layer stay out of FP8.
  CHECK_FALSE(formats_of(nanotron, 4, 0, BlockLinear::Qkv).float8());
  CHECK_FALSE(formats_of(nanotron, 4, 3, BlockLinear::Down).float8());
  CHECK(formats_of(nanotron, 4, 1, BlockLinear::Down).float8());
}

TEST_CASE("a block's linears run as the recipe, its BF16 blocks and its overrides say, in this order") {
  Recipe recipe = make_recipe("fp8");
  const auto of = [&](int block, BlockLinear which) { return formats_of(recipe, 6, block, which); };
  CHECK(of(3, BlockLinear::Down).smooth == SmoothSwiGLU::Dual);
  CHECK(of(3, BlockLinear::Qkv).smooth == SmoothSwiGLU::None);
  recipe.first_blocks_bf16 = 2;
  recipe.last_blocks_bf16 = 1;
  for (const int block : {0, 1, 5}) CHECK(of(block, BlockLinear::Out) == LinearFormats{});
  for (const int block : {2, 4}) CHECK(of(block, BlockLinear::Out).float8());

  Override other;
  other.formats = recipe.formats();
  other.formats.gemms.wgrad = GemmFormat::Storage;
  other.blocks = {BlockRange::From::Last, 0, 2};
  other.linears[static_cast<int>(BlockLinear::Qkv)] = false;
  recipe.overrides = {other};
  CHECK(of(4, BlockLinear::Qkv).wgrad_float8());
  for (const int block : {4, 5}) {
    CHECK_FALSE(of(block, BlockLinear::Out).wgrad_float8());
    CHECK(of(block, BlockLinear::Out).fprop_float8());
  }
  CHECK(of(3, BlockLinear::Out).wgrad_float8());
  other.blocks = {BlockRange::From::First, 4, 5};
  other.formats = {};
  recipe.overrides.push_back(other);
  CHECK_FALSE(of(4, BlockLinear::Out).float8());
  CHECK(of(5, BlockLinear::Out).fprop_float8());

  recipe = make_recipe("fp8");
  recipe.smooth_swiglu = SmoothSwiGLU::BF16;
  CHECK_FALSE(of(3, BlockLinear::Down).float8());
  recipe.smooth_swiglu = SmoothSwiGLU::None;
  recipe.input.scaling = Scaling::Rowwise;
  CHECK(of(3, BlockLinear::Down).smooth == SmoothSwiGLU::Dual);  // a scale a row of both copies
  recipe.input.scaling = Scaling::Current;
  recipe.gemms.fprop = recipe.gemms.wgrad = GemmFormat::Storage;
  CHECK(of(3, BlockLinear::Down).smooth == SmoothSwiGLU::None);
}

TEST_CASE("codes of a weight are gathered where every product reads them with one scale") {
  LinearFormats formats = make_recipe("fp8").formats();
  CHECK(formats.gathers_codes());
  formats.weight.scaling = Scaling::Delayed;
  CHECK(formats.gathers_codes());
  formats.gemms.wgrad = GemmFormat::Storage;
  CHECK(formats.gathers_codes());
  LinearFormats other = formats;
  for (const Scaling finer : {Scaling::Rowwise, Scaling::Blockwise}) {
    other.weight.scaling = finer;
    CHECK_FALSE(other.gathers_codes());
  }
  other = formats;
  other.smooth = SmoothSwiGLU::Channel;
  CHECK_FALSE(other.gathers_codes());
  other = formats;
  other.gemms.dgrad = GemmFormat::Storage;
  CHECK_FALSE(other.gathers_codes());
}

TEST_CASE("the recipe deepseek is that of the report, in what a recipe decides") {
  const Recipe recipe = make_recipe("deepseek");
  for (const Cast& cast : {recipe.input, recipe.weight, recipe.grad})
    CHECK(cast == Cast{Format::E4M3, Scaling::Blockwise, ScaleRule::PowerOfTwo, Rounding::Nearest});
  CHECK(recipe.fast_accumulation == FastAccumulation{false, false, false});
  CHECK(recipe.moments.first == Format::BF16);
  CHECK(recipe.moments.second == Format::BF16);
  CHECK(recipe.master == MasterFormat::FP32);
  CHECK(recipe.weight_gradient == Format::FP32);
  CHECK(recipe.head == HeadFormat::Storage);
  CHECK(recipe.attention == AttentionFormat::Storage);
  for (const BlockLinear which : {BlockLinear::Qkv, BlockLinear::Down})
    CHECK(formats_of(recipe, 4, 0, which).smooth == SmoothSwiGLU::None);
}
