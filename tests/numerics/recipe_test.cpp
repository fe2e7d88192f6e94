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
