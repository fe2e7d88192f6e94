// The named shapes have exactly the parameters their publications count.
#include "config/presets.h"
#include "base/error.h"
#include "catch.h"
#include "config/run_config.h"

using namespace octet;

TEST_CASE("presets have the published parameter counts") {
  const struct {
    const char* preset;
    int64_t parameters;
  } published[] = {
      {"llama-1b", 1'100'048'384},    // TinyLlama-1.1B
      {"llama-3b", 3'212'749'824},    // Llama-3.2-3B
      {"llama-7b", 6'738'415'616},    // Llama-2-7B
      {"llama3-8b", 8'030'261'248},   // Meta-Llama-3-8B
      {"qwen2.5-0.5b", 494'032'768},  // Qwen2.5-0.5B
      {"qwen2.5-1.5b", 1'543'714'304},
      {"qwen2.5-7b", 7'615'616'512},
      // Not published, counted by hand: V D + L (4 D^2 + 3 D F + 2 D) + D.
      {"llama-124m", 50304 * 768 + 12 * (4 * 768 * 768 + 3 * 768 * 2048 + 2 * 768) + 768},
      {"llama-350m", 50304 * 1024 + 24 * (4 * 1024 * 1024 + 3 * 1024 * 2816 + 2 * 1024) + 1024},
  };
  for (const auto& p : published) {
    INFO(p.preset);
    CHECK(make_model(p.preset).parameters() == p.parameters);
  }
}

TEST_CASE("every preset obeys the rules of a transformer, in BF16 and in FP8") {
  for (const std::string& name : model_names()) {
    INFO(name);
    CHECK(make_model(name).preset == name);
    CHECK(check(make_model(name), true).empty());
  }
}

TEST_CASE("an unknown preset gets the nearest name, a planned one is called planned") {
  const auto said = [](const std::string& name) {
    try {
      make_model(name);
    } catch (const Error& e) {
      return std::string(e.what()) + "|" + e.hint();
    }
    return std::string();
  };
  CHECK(said("llama-8b").find("did you mean") != std::string::npos);
  CHECK(said("fog-max").find("planned") != std::string::npos);
  CHECK(said("llama").empty());
}
