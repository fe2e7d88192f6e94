// The named shapes have exactly the parameters their publications count.
#include "config/presets.h"

#include <cmath>

#include "base/error.h"
#include "catch.h"
#include "config/document.h"
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
      // The FOG paper's sizes, 0.39B, 1.54B and 8.05B: V D (twice where the head is not tied) + L (qkv + out
      // + 3 D F) with F the gated width, + vectors.
      {"llama-390m", 134'217'728 + 16 * (15'728'640 + 2 * 1024) + 1024},
      {"llama-smooth-390m", 134'217'728 + 16 * (15'728'640 + 2 * 1024) + 1024},
      {"qwen3-390m", 134'217'728 + 16 * (15'728'640 + 2 * 1024 + 2 * 128) + 1024},
      {"olmo2-390m", 134'217'728 + 16 * (15'728'640 + 2 * 1024 + 2 * 128) + 1024},
      {"op-390m", 134'217'728 + 16 * (15'728'640 + 2 * 1024 + 2 * 128)},
      {"fog-max-390m", 134'217'728 + 16 * (15'728'640 + 2 * 1024 + 2)},
      {"fog-opt-390m", 134'217'728 + 16 * (15'728'640 + 2 * 1024)},
      {"fog-flash-390m", 134'217'728 + 16 * (15'728'640 + 2 * 1024 + 2)},
      {"fog-max-1.5b", 2 * 268'435'456ll + 16 * (62'914'560ll + 2 * 2048 + 2)},
      {"llama-1.5b", 2 * 268'435'456ll + 16 * (62'914'560ll + 2 * 2048) + 2048},
      {"fog-max-8b", 2 * 536'870'912ll + 32 * (218'103'808ll + 2 * 4096 + 2)},
      {"llama-8b", 2 * 536'870'912ll + 32 * (218'103'808ll + 2 * 4096) + 4096},
      // Not published, counted by hand: V D + L (4 D^2 + 3 D F + 2 D) + D.
      {"llama-124m", 50304 * 768 + 12 * (4 * 768 * 768 + 3 * 768 * 2048 + 2 * 768) + 768},
      {"llama-350m", 50304 * 1024 + 24 * (4 * 1024 * 1024 + 3 * 1024 * 2816 + 2 * 1024) + 1024},
  };
  for (const auto& p : published) {
    INFO(p.preset);
    CHECK(make_model(p.preset).parameters() == p.parameters);
  }
  for (const std::string family :
       {"llama", "llama-smooth", "qwen3", "olmo2", "op", "fog-max", "fog-opt", "fog-flash"}) {
    INFO(family);
    const auto billions = [&](const char* size) {
      return std::round(static_cast<double>(make_model(family + size).parameters()) / 1e7) / 100;
    };
    CHECK(billions("-390m") == 0.39);
    CHECK(billions("-1.5b") == 1.54);
    CHECK(billions("-8b") == 8.05);
  }
}

TEST_CASE("families are the documented sets of options") {
  const auto is = [](const char* preset, bool pre, PostNorm post, QkNorm qk, Activation activation,
                     bool final) {
    const TransformerSpec s = make_model(preset);
    INFO(preset);
    CHECK(s.pre_norm == pre);
    CHECK(s.post_norm == post);
    CHECK(s.qk_norm == qk);
    CHECK(s.activation == activation);
    CHECK(s.final_norm == final);
    CHECK(s.input_multiplier == (final ? 1 : 50));
    CHECK(s.ffn_width == (activation == Activation::SwiGLU ? 4096 : 6144));
    CHECK(s.softmax_scale_() == (qk == QkNorm::RMSFrozen ? std::sqrt(2.0) : 1) / std::sqrt(128.0));
    const double gain = std::string(preset) == "olmo2-390m" ? 1 : 1 / std::sqrt(16.0);
    if (post != PostNorm::None) CHECK(s.post_norm_initial_gain_() == gain);
  };
  is("llama-390m", true, PostNorm::None, QkNorm::None, Activation::SwiGLU, true);
  is("llama-smooth-390m", true, PostNorm::None, QkNorm::None, Activation::SwiGLU, true);
  is("qwen3-390m", true, PostNorm::None, QkNorm::RMS, Activation::SwiGLU, true);
  is("olmo2-390m", false, PostNorm::RMS, QkNorm::RMS, Activation::SwiGLU, true);
  is("op-390m", false, PostNorm::LayerScale, QkNorm::RMS, Activation::GELU, false);
  is("fog-max-390m", false, PostNorm::RMS, QkNorm::RMSFrozen, Activation::XIELU, false);
  is("fog-opt-390m", false, PostNorm::RMS, QkNorm::RMSFrozen, Activation::GELU, false);
  is("fog-flash-390m", false, PostNorm::RMS, QkNorm::Tanh, Activation::GELU, false);
}

TEST_CASE("a resolved configuration shows the options a preset stands for") {
  const Json model = Json::parse(to_json(parse_config(R"({"model": {"preset": "fog-max"}})", "t")))["model"];
  CHECK(model["pre_norm"] == false);
  CHECK(model["post_norm"] == "rms");
  CHECK(model["qk_norm"] == "rms_frozen");
  CHECK(model["activation"] == "xielu");
  CHECK(model["final_norm"] == false);
  CHECK(model["input_multiplier"] == 50.0);
}

TEST_CASE("FP8 without Smooth-SwiGLU is not llama-smooth") {
  const char* plain =
      R"({"model": {"preset": "llama-smooth"}, "precision": {"recipe": "fp8", "smooth_swiglu": "none"}})";
  CHECK_THROWS_AS(parse_config(plain, "t"), Error);
  CHECK_NOTHROW(
      parse_config(R"({"model": {"preset": "llama-smooth"}, "precision": {"recipe": "fp8"}})", "t"));
  CHECK_NOTHROW(
      parse_config(R"({"model": {"preset": "llama-smooth"}, "precision": {"recipe": "bf16"}})", "t"));
}

TEST_CASE("every preset obeys the rules of a transformer, in BF16 and in FP8") {
  for (const std::string& name : model_names()) {
    INFO(name);
    CHECK(make_model(name).preset == name);
    CHECK(check(make_model(name), true).empty());
  }
}

TEST_CASE("an unknown preset gets the nearest name") {
  const auto said = [](const std::string& name) {
    try {
      make_model(name);
    } catch (const Error& e) {
      return std::string(e.what()) + "|" + e.hint();
    }
    return std::string();
  };
  CHECK(said("llama-9b").find("did you mean") != std::string::npos);
  CHECK(said("fog-max").empty());
}
