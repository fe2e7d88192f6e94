// The section "precision": what goes together, and what is said against what does not.
#include <fmt/format.h>

#include "catch.h"
#include "config/complaint.h"
#include "config/fields.h"
#include "numerics/recipes.h"

using namespace octet;
using octet::testing::complaint_of;

TEST_CASE("a recipe cannot claim a precision its operands do not have") {
  CHECK(complaint_of(
            R"({"precision": {"recipe": "fp8", "input": {"format": "bf16"}, "weight": {"format": "bf16"},
                         "grad": {"format": "bf16"}}})")
            .has("/precision/recipe: the recipe is called \"fp8\""));
  CHECK(complaint_of(
            R"({"precision": {"recipe": "bf16", "input": {"format": "e4m3"}, "weight": {"format": "e4m3"}}})")
            .has("/precision/recipe: the recipe is called \"bf16\""));
  CHECK(complaint_of(R"({"precision": {"recipe": "fp8", "weight": {"format": "e5m2"}}})")
            .has("at most one E5M2"));
  const auto half = complaint_of(R"({"precision": {"recipe": "fp8", "weight": {"format": "bf16"}}})");
  CHECK(half.has("both or neither"));
  CHECK_FALSE(half.has("leave no FP8"));  // input and grad are FP8 still
  CHECK(complaint_of(
            R"({"model": {"layers": 4}, "precision": {"recipe": "fp8", "first_blocks_bf16": 3,
                                                      "last_blocks_bf16": 1}})")
            .has("leave none of the 4 in FP8"));
  for (const char* good :
       {R"({"precision": {"recipe": "fp8", "grad": {"format": "e4m3"}}})",
        R"({"model": {"layers": 4}, "precision": {"recipe": "fp8", "first_blocks_bf16": 3}})",
        R"({"precision": {"recipe": "fp8", "grad": {"format": "bf16"}}})",
        R"({"precision": {"recipe": "fp8", "grad": {"rounding": "stochastic"}}})",
        R"({"precision": {"recipe": "fp32"}})"})
    CHECK(complaint_of(good).what.empty());
}

TEST_CASE("FP8 attention is chosen by a key, and only where the linear layers around it are FP8") {
  CHECK(parse_config("{}", "t").precision.attention == AttentionFormat::Storage);
  CHECK(parse_config(R"({"precision": {"recipe": "fp8"}})", "t").precision.attention ==
        AttentionFormat::Storage);
  CHECK(parse_config(R"({"precision": {"recipe": "fp8", "attention": "fp8"}})", "t").precision.attention ==
        AttentionFormat::FP8);
  const auto alone = complaint_of(R"({"precision": {"recipe": "bf16", "attention": "fp8"}})");
  CHECK(alone.has("/precision/attention"));
  CHECK(alone.has("the linear layers around attention are not FP8"));
}

TEST_CASE("a clipped softmax is read, kept to its bounds, and not had from FP8 attention") {
  const TransformerSpec model =
      parse_config(R"({"model": {"softmax_clip_low": -0.03, "softmax_clip_high": 1.3}})", "t").model;
  CHECK(model.softmax_clip_low == -0.03);
  CHECK(model.softmax_clip_high == 1.3);
  CHECK(complaint_of(R"({"model": {"softmax_clip_low": 0.1}})").has("/model/softmax_clip_low"));
  CHECK(complaint_of(R"({"model": {"softmax_clip_high": 0.9}})").has("/model/softmax_clip_high"));
  const auto both = complaint_of(
      R"({"model": {"softmax_clip_high": 1.3}, "precision": {"recipe": "fp8", "attention": "fp8"}})");
  CHECK(both.has("/precision/attention: found \"fp8\" with a clipped softmax"));
  CHECK(both.count("/precision/attention") == 1);
}

TEST_CASE("SmoothQuant is chosen by its exponent, linear by linear, and says what it needs") {
  const auto of = [](const std::string& rest) {
    return R"({"precision": {"recipe": "fp8", "smooth_swiglu": "none", "smooth_quant": 0.5)" + rest + "}}";
  };
  const Recipe recipe = parse_config(of(R"(, "overrides": [{"linears": ["down"], "smooth_quant": 0},
                                         {"linears": ["out"], "recipe": "bf16"}])"),
                                     "t")
                            .precision;
  CHECK(recipe.smooth_quant == 0.5);
  CHECK(formats_of(recipe, 4, 1, BlockLinear::Up).smooth_quant == 0.5);
  CHECK(formats_of(recipe, 4, 1, BlockLinear::Down).smooth_quant == 0);
  CHECK(formats_of(recipe, 4, 1, BlockLinear::Out).smooth_quant == 0);
  CHECK(parse_config(R"({"precision": {"recipe": "fp8"}})", "t").precision.smooth_quant == 0);
  CHECK(parse_config(of(R"(, "weight": {"scaling": "delayed"}, "grad": {"scaling": "delayed"})"), "t")
            .precision.input.scaling == Scaling::Current);

  const auto refused = [&](const std::string& rest) { return complaint_of(of(", " + rest)); };
  CHECK(refused(R"("input": {"scaling": "delayed"})").has("/precision/input/scaling: is not \"current\""));
  CHECK(refused(R"("input": {"rule": "exact"})").has("/precision/input/rule: found \"exact\""));
  CHECK(refused(R"("weight": {"scaling": "rowwise"})").has("/precision/weight/scaling: with smooth_quant"));
  CHECK(refused(R"("grad": {"scaling": "rowwise"})").has("/precision/grad/scaling: with smooth_quant"));
  CHECK(refused(R"("gemms": {"fprop": "storage"})").has("/precision/smooth_quant: smooths the operands of"));
  CHECK(refused(R"("master": "fp16_scaled")").has("smooth_quant multiplies FP32 masters"));
  CHECK(refused(R"("overrides": [{"linears": ["down"], "smooth_swiglu": "dual"}])")
            .has("/precision/overrides/0/smooth_swiglu: is not \"none\" with smooth_quant"));
  CHECK(complaint_of(R"({"precision": {"recipe": "fp8", "smooth_quant": 0.5}})")
            .has("/precision/smooth_swiglu: is not \"none\" with smooth_quant"));
  CHECK(complaint_of(R"({"precision": {"recipe": "bf16", "smooth_quant": 0.5}})")
            .has("/precision/smooth_quant: smooths operands in FP8, and there are none"));
  for (const char* alpha : {"1", "-0.1"})
    CHECK(complaint_of(R"({"precision": {"recipe": "fp8", "smooth_quant": )" + std::string(alpha) + "}}")
              .has("/precision/smooth_quant"));
}

TEST_CASE("scaling sets input and grad, a role beside it overrides") {
  const Recipe r =
      parse_config(
          R"({"precision": {"input": {"scaling": "current"}, "recipe": "fp8", "scaling": "delayed"}})", "t")
          .precision;
  CHECK(r.input.scaling == Scaling::Current);
  CHECK(r.grad.scaling == Scaling::Delayed);
  CHECK(r.weight.scaling == Scaling::Current);
}

TEST_CASE("fast accumulation is chosen for each GEMM, without a word it is fprop's alone") {
  const auto of = [](const std::string& precision) {
    return parse_config(R"({"precision": )" + precision + "}", "t").precision.fast_accumulation;
  };
  CHECK(of(R"({"recipe": "fp8"})") == FastAccumulation{true, false, false});
  CHECK(of(R"({"recipe": "fp8", "fast_accumulation": {"fprop": false, "wgrad": true}})") ==
        FastAccumulation{false, false, true});
  const RunConfig all =
      load_config(OCTET_SOURCE_DIR "/configs/1b-fp8.json", {"precision.fast_accumulation.dgrad=true"});
  CHECK(all.precision.fast_accumulation == FastAccumulation{true, true, false});
  CHECK(parse_config(to_json(all), "resolved") == all);
  CHECK(config_hash(all) != config_hash(load_config(OCTET_SOURCE_DIR "/configs/1b-fp8.json")));
  CHECK(complaint_of(R"({"precision": {"fast_accumulation": {"fprop": "yes"}}})").has("true or false"));
}

TEST_CASE("simulated precision is any ExMy of BF16 operands, and is refused beside FP8 and FP32") {
  const auto of = [](const std::string& rest) {
    return parse_config(R"({"precision": {"recipe": "bf16", )" + rest + "}}", "t").precision.simulate;
  };
  CHECK(of(R"("simulate": "e8m3")") == SmallFloat{8, 3});
  CHECK(of(R"("simulate": "e4m0", "simulate_rounding": "nearest", "simulate_underflow": "clamp")") ==
        SmallFloat{4, 0, SmallRounding::Nearest, Underflow::Clamp});
  CHECK_FALSE(of(R"("simulate": "e8m7")").reduces());
  CHECK(parse_config("{}", "t", {"precision.simulate=e5m2"}).precision.simulate == SmallFloat{5, 2});
  for (const char* wrong : {R"("e9m3")", R"("e1m3")", R"("e8m8")", R"("fp8")", "83"})
    CHECK(complaint_of(std::string(R"({"precision": {"simulate": )") + wrong + "}}")
              .has("2 to 8 exponent bits x and 0 to 7 mantissa bits y"));
  CHECK(complaint_of(R"({"precision": {"recipe": "fp8", "simulate": "e8m3"}})")
            .has("/precision/simulate: found E8M3 beside operands in FP8"));
  CHECK(complaint_of(R"({"precision": {"recipe": "fp32", "simulate": "e8m3"}})")
            .has("/precision/simulate: found E8M3; it reduces BF16 operands"));
}

TEST_CASE("scales of rows: by role, by shorthand, and what cannot stand beside them") {
  const auto of = [](const std::string& rest) {
    return parse_config(R"({"precision": {"recipe": "fp8", )" + rest + "}}", "t").precision;
  };
  const Recipe all = of(R"("scaling": "rowwise")");
  for (const Cast& cast : {all.input, all.weight, all.grad}) CHECK(cast.scaling == Scaling::Rowwise);
  const Recipe inputs = of(R"("input": {"scaling": "rowwise"}, "gemms": {"wgrad": "storage"})");
  CHECK(inputs.weight.scaling == Scaling::Current);
  CHECK(inputs.gemms == GemmFormats{.wgrad = GemmFormat::Storage});
  CHECK(of(R"("scaling": "delayed")").weight.scaling == Scaling::Current);
  // A recipe whose weights have scales of rows or blocks can be left by the same word.
  for (const char* fine : {"torchao-rowwise", "deepseek"}) {
    const std::string recipe = std::string(R"({"precision": {"recipe": ")") + fine + "\"";
    for (const char* scaling : {"delayed", "current"}) {
      const Recipe left = parse_config(recipe + R"(, "scaling": ")" + scaling + "\"}}", "t").precision;
      CHECK(left.weight.scaling == Scaling::Current);
      CHECK(left.input.scaling == left.grad.scaling);
    }
    CHECK(parse_config(recipe + "}}", "t").precision.weight.scaling != Scaling::Current);
  }
  CHECK(of(R"("weight": {"scaling": "delayed"}, "scaling": "current")").weight.scaling == Scaling::Delayed);
  for (const char* mode : {"token", "channel"})
    CHECK(complaint_of(R"({"precision": {"recipe": "fp8", "scaling": "rowwise", "smooth_swiglu": ")" +
                       std::string(mode) + "\"}}")
              .has("allowed: none, dual, bf16"));
  CHECK(complaint_of(R"({"precision": {"recipe": "fp8", "weight": {"scaling": "rowwise", "rule": "exact"}}})")
            .has("/precision/weight/rule: found \"exact\" with scaling \"rowwise\""));
  CHECK(complaint_of(R"({"precision": {"recipe": "fp8",
                         "gemms": {"fprop": "storage", "dgrad": "storage", "wgrad": "storage"}}})")
            .has("leave no product of any block in FP8"));
}

TEST_CASE("overrides name blocks and linears, what they leave out is as in the section") {
  const auto of = [](const std::string& list) {
    return parse_config(R"({"model": {"layers": 8}, "precision": {"recipe": "fp8", "scaling": "delayed",
                            "overrides": )" +
                            list + "}}",
                        "t")
        .precision;
  };
  const Recipe recipe = of(R"([{"blocks": "last:2", "linears": ["down", "out"], "grad": {"format": "e4m3"}},
                               {"blocks": [3, 4], "recipe": "bf16"}, {"gemms": {"wgrad": "storage"}}])");
  REQUIRE(recipe.overrides.size() == 3);
  const Override& first = recipe.overrides[0];
  CHECK(first.blocks == BlockRange{BlockRange::From::Last, 0, 2});
  CHECK_FALSE(first.linears[static_cast<int>(BlockLinear::Qkv)]);
  CHECK(first.linears[static_cast<int>(BlockLinear::Down)]);
  CHECK(first.formats.grad.format == Format::E4M3);
  CHECK(first.formats.grad.scaling == Scaling::Delayed);  // the section's
  CHECK(first.formats.smooth == SmoothSwiGLU::Dual);
  CHECK(recipe.overrides[1].blocks == BlockRange{BlockRange::From::First, 3, 5});
  CHECK_FALSE(recipe.overrides[1].formats.float8());
  CHECK(recipe.overrides[2].blocks.contains(7, 8));
  CHECK(formats_of(recipe, 8, 3, BlockLinear::Qkv).gemms.wgrad == GemmFormat::Storage);

  // A resolved file says the same, and a change is seen.
  RunConfig config = parse_config("{}", "t", {"precision.recipe=fp8", "model.layers=8"});
  config.precision = recipe;
  CHECK(parse_config(to_json(config), "t") == config);
  CHECK(of("[]").overrides.empty());

  const auto complaint = [](const std::string& list) {
    return complaint_of(R"({"model": {"layers": 8}, "precision": {"recipe": "fp8", "overrides": )" + list +
                        "}}");
  };
  for (const char* blocks :
       {R"("first")", R"("first:0")", R"("middle:2")", "[2, 1]", "[1]", "[-1, 2]", "3", R"("last:x")"})
    CHECK(complaint(std::string(R"([{"blocks": )") + blocks + "}]")
              .has("/precision/overrides/0/blocks: found"));
  CHECK(complaint(R"([{"blocks": [7, 8]}])").has("reaches to block 8 of 8"));
  CHECK(complaint(R"([{"linears": ["upper"]}])").has("allowed: a list of \"qkv\""));
  CHECK(complaint(R"([{"linears": []}])").has("allowed: a list of"));
  CHECK(complaint(R"([{"moments": {"block": 0}}])").has("is the whole run's"));
  CHECK(complaint(R"([{"storage": "fp32"}])").has("is the whole run's"));
  CHECK(complaint(R"([{"grad": {"formt": "e4m3"}}])").has("unknown key"));
  CHECK(complaint(R"([{}, {"grad": {"format": "e4m2"}}])").has("/precision/overrides/1/grad/format: found"));
  CHECK(complaint(R"([{"grad": {"format": "fp32"}}])").has("/precision/overrides/0/grad/format: found"));
  CHECK(complaint(R"([{"recipe": "bf15"}])").has("did you mean \"bf16\"?"));
  CHECK(complaint(R"([{"recipe": "bf16"}])").has("leave no product of any block in FP8"));
  CHECK(complaint("{}").has("/precision/overrides: found"));
  CHECK(complaint("[3]").has("/precision/overrides/0: found 3"));
  CHECK(complaint_of(R"({"precision": {"overrides": [{"recipe": "fp8"}]}})").has("puts linears into FP8"));
}

TEST_CASE("the first linear of the feed-forward layer is gate_up, and up where there is no gate") {
  const auto linears = [](const std::string& names) {
    return parse_config(
        R"({"precision": {"recipe": "fp8", "overrides": [{"linears": )" + names + R"(, "recipe": "bf16"}]}})",
        "t");
  };
  CHECK(linears(R"(["up", "out"])") == linears(R"(["out", "gate_up"])"));
  CHECK_FALSE(linears(R"(["up"])") == linears(R"(["down"])"));
  CHECK(parse_config(to_json(linears(R"(["up"])")), "t") == linears(R"(["gate_up"])"));
}

TEST_CASE("a stage of the schedule is read as the section precision is") {
  const RunConfig c = parse_config(R"({
    "precision": {"recipe": "fp8"},
    "precision_schedule": [
      {"from": 10, "precision": {"recipe": "fp8", "scaling": "delayed", "delayed": {"window": 4},
        "overrides": [{"blocks": "first:1", "linears": ["down"], "input": {"rounding": "nearest"}}]}},
      {"from": 20, "precision": {"recipe": "bf16", "simulate": "e8m3",
                                 "moments": {"first": "e4m3", "second": "e5m2"}}}]})",
                                   "t");
  REQUIRE(c.precision_schedule.size() == 2);
  const Recipe same =
      parse_config(R"({"precision": {"recipe": "fp8", "scaling": "delayed", "delayed": {"window": 4},
        "overrides": [{"blocks": "first:1", "linears": ["down"], "input": {"rounding": "nearest"}}]}})",
                   "t")
          .precision;
  CHECK(c.precision_schedule[0].from == 10);
  CHECK(c.precision_schedule[0].precision == same);
  CHECK(c.precision_schedule[1].precision.simulate.mantissa_bits == 3);
  CHECK(c.precision == make_recipe("fp8"));
  CHECK(parse_config(to_json(c), "t") == c);
  // On the command line, whole and in parts.
  const RunConfig other =
      parse_config("{}", "t",
                   {R"(precision_schedule=[{"from": 10, "precision": {"recipe": "bf16"}}])",
                    "precision_schedule.0.from=30"});
  REQUIRE(other.precision_schedule.size() == 1);
  CHECK(other.precision_schedule[0].from == 30);
  CHECK(config_hash(other) != config_hash(parse_config("{}", "t")));
}

TEST_CASE("a stage that a run cannot have is refused with its place") {
  const auto of = [](const std::string& stages,
                     const std::string& more = R"("precision": {"recipe": "fp8"})") {
    return complaint_of("{" + more + R"(, "run": {"steps": 100}, "precision_schedule": )" + stages + "}");
  };
  const std::string bf16 =
      R"("precision": {"recipe": "bf16", "moments": {"first": "e4m3", "second": "e5m2"}})";
  CHECK(of(R"([{"from": 10, )" + bf16 + "}]").what.empty());
  CHECK(of(R"([{"from": 10, )" + bf16 + R"(}, {"from": 10, )" + bf16 + "}]")
            .has("/precision_schedule/1/from: found 10; allowed: above 10"));
  CHECK(of(R"([{"from": 100, )" + bf16 + "}]").has("below /run/steps = 100"));
  CHECK(of(R"([{"from": 0, )" + bf16 + "}]").has("/precision_schedule/0/from: found 0; allowed: an integer"));
  CHECK(of(R"([{)" + bf16 + "}]").has("\"from\" is missing"));
  CHECK(of(R"([{"from": 10}])").has("\"precision\" is missing"));
  CHECK(of(R"([{"from": 10, "until": 20, )" + bf16 + "}]").has("/precision_schedule/0/until: unknown key"));
  CHECK(of(R"({"from": 10})").has("allowed: a list of"));
  // What the optimizer stores is converted nowhere; all keys that differ are named.
  const auto states = of(R"([{"from": 10, "precision": {"recipe": "bf16", "master": "bf16_kahan"}}])");
  CHECK(states.has(
      "/precision_schedule/0/precision/moments/first: found \"fp32\", /precision/moments/first is \"e4m3\""));
  CHECK(states.has("/precision_schedule/0/precision/moments/second"));
  CHECK(states.has(
      "/precision_schedule/0/precision/master: found \"bf16_kahan\", /precision/master is \"fp32\""));
  CHECK(of(R"([{"from": 10, "precision": {"recipe": "fp8", "weight_gradient": "bf16"}}])").what.empty());
  // The rules of the section hold in a stage, and the reader's messages name it.
  CHECK(of(R"([{"from": 10, "precision": {"recipe": "fp8", "grad": {"format": "e5m3"}}}])")
            .has("/precision_schedule/0/precision/grad/format: found \"e5m3\""));
  CHECK(of(R"([{"from": 10, "precision": {"recipe": "fp8", "weight": {"format": "e5m2"}}}])")
            .has("/precision_schedule/0/precision/weight/format: found \"e5m2\" for two operands"));
  CHECK(of(R"([{"from": 10, "precision": {"recipe": "fp8", "smooth_swigluu": "none"}}])")
            .has("did you mean \"smooth_swiglu\"?"));
  CHECK(of(R"([{"from": 10, "precision": {"recipe": "fp8", "fallback": {"saturated": 0.1}}}])")
            .has("/precision_schedule/0/precision/fallback/saturated: is the whole run's"));
  CHECK(of(R"([{"from": 10, "precision": {"recipe": "fp8"}}])",
           R"("precision": {"recipe": "bf16", "moments": {"first": "e4m3", "second": "e5m2"}},
              "model": {"context": 8}, "batch": {"micro": 1, "tokens": 8})")
            .has("/batch/micro: found 1"));
  // Ranks that train alone have one model only after whole rounds.
  const std::string local = R"("precision": {"recipe": "fp8"}, "parallel": {"zero": 0, "sync_every": 4},
      "checkpoint": {"every": 4}, "evaluation": {"every": 4})";
  CHECK(of(R"([{"from": 12, )" + bf16 + "}]", local).what.empty());
  CHECK(of(R"([{"from": 10, )" + bf16 + "}]", local).has("/precision_schedule/0/from: found 10"));
  CHECK(of(R"([{"from": 10, )" + bf16 + "}]", local).has("nearest: 8 or 12"));
}

TEST_CASE("limits of a fallback need what they look at") {
  const auto of = [](const std::string& fallback, const std::string& more = "") {
    return complaint_of(R"({"precision": {"recipe": "fp8", "fallback": )" + fallback + "}" + more + "}");
  };
  CHECK_FALSE(parse_config("{}", "t").fallback.on());
  CHECK(of(R"({"saturated": 0.01, "nonfinite": true, "kurtosis": 100, "at_most": 2})").what.empty());
  CHECK(of(R"({"saturated": 0.01})", R"(, "health": {"every": 0})").has("/health/every 0 has none"));
  CHECK(of(R"({"nonfinite": true})", R"(, "health": {"every": 0})").what.empty());
  CHECK(of(R"({"kurtosis": 100})", R"(, "health": {"activations": false})")
            .has("/precision/fallback/kurtosis: found 100 with /health/activations false"));
  CHECK(of(R"({"saturated": 0.01})", R"(, "parallel": {"zero": 0, "sync_every": 50})")
            .has("allowed: /parallel/sync_every 1"));
  CHECK(of(R"({"saturated": 1})").has("below 1"));
  CHECK(of(R"({"at_most": 0})").has("/precision/fallback/at_most"));
  CHECK(complaint_of(R"({"precision": {"fallback": {"nonfinite": true}}})").has("no linear runs in FP8"));
}

TEST_CASE("an FP8 head needs FP8 operands and a vocabulary of whole rows of 16") {
  const auto complaint = [](int64_t vocabulary, const std::string& rest) {
    return complaint_of(fmt::format(R"({{"model": {{"vocabulary": {}}}, "precision": {{"head": "fp8"{}}}}})",
                                    vocabulary, rest));
  };
  CHECK(complaint(272, R"(, "recipe": "fp8")").what.empty());
  CHECK(complaint(257, R"(, "recipe": "fp8")").has("set /model/vocabulary to 272"));
  CHECK(complaint(272, "").has("whose operands are not FP8"));
  CHECK(complaint_of(R"({"model": {"vocabulary": 272}, "precision": {"recipe": "fp8", "head": "fp8"},
                         "batch": {"head_chunk": 40}})")
            .has("/batch/head_chunk: found 40"));
}

TEST_CASE("static scales are those of a unit model, and of nothing else") {
  const auto said = [](const std::string& model, const std::string& precision) {
    return complaint_of(R"({"model": {)" + model + R"(}, "precision": {"recipe": "munit")" + precision +
                        "}}");
  };
  const std::string unit = R"("preset": "munit")";
  CHECK(said(unit, "").what.empty());
  CHECK(parse_config(R"({"model": {"preset": "munit"}, "precision": {"recipe": "munit"}})", "t").precision ==
        make_recipe("munit"));
  CHECK(said("", "").has("\"static\" with /model/parametrization \"standard\""));
  CHECK(said(unit, R"(, "attention": "fp8")").has("/precision/attention: found \"fp8\" beside"));
  CHECK(said(unit + R"(, "vocabulary": 272)", R"(, "head": "fp8")").has("/precision/head: found \"fp8\""));
  CHECK(said(unit, R"(, "smooth_swiglu": "channel")").has("measures scales"));
  CHECK(said(unit + R"(, "residual": "sum")", "").has("/model/residual: found \"sum\" beside"));
  CHECK(complaint_of(
            R"({"model": {"preset": "munit"}, "optimizer": {"name": "muon"}, "parallel": {"zero": 0}})")
            .has("/optimizer/name: found \"muon\" with /model/parametrization \"unit\""));
  // The shorthand sets all three roles; others may be beside it.
  const Recipe shorthand = parse_config(R"({"model": {"preset": "munit"},
                       "precision": {"recipe": "fp8", "smooth_swiglu": "none", "scaling": "static"}})",
                                        "t")
                               .precision;
  CHECK(shorthand.weight.scaling == Scaling::Static);
  CHECK(said(unit, R"(, "grad": {"scaling": "current"})").what.empty());
}

TEST_CASE("scales of blocks: for all roles or none, without Smooth-SwiGLU and fast accumulation") {
  const Recipe deepseek = parse_config(R"({"precision": {"recipe": "deepseek"}})", "t").precision;
  CHECK(deepseek == make_recipe("deepseek"));
  const std::string rest =
      R"("recipe": "fp8", "smooth_swiglu": "none", "fast_accumulation": {"fprop": false})";
  const auto said = [&](const std::string& more) {
    return complaint_of(R"({"precision": {)" + rest + more + "}}");
  };
  CHECK(said(R"(, "scaling": "blockwise")").what.empty());
  CHECK(said(R"(, "scaling": "blockwise", "weight": {"rule": "exact"}, "attention": "fp8")").what.empty());
  const auto half = said(R"(, "scaling": "blockwise", "weight": {"scaling": "current"})");
  CHECK(half.has("/precision/weight/scaling: is not \"blockwise\" and that of another role is"));
  CHECK(said(R"(, "input": {"scaling": "blockwise"})").has("/precision/grad/scaling: is not \"blockwise\""));
  CHECK(complaint_of(R"({"precision": {"recipe": "deepseek", "smooth_swiglu": "dual"}})")
            .has("/precision/smooth_swiglu: is not \"none\" with scaling \"blockwise\""));
  for (const char* gemm : {"fprop", "dgrad", "wgrad"})
    CHECK(complaint_of(
              fmt::format(R"({{"precision": {{"recipe": "deepseek", "fast_accumulation": {{"{}": true}}}}}})",
                          gemm))
              .has(fmt::format("/precision/fast_accumulation/{}: found true with scaling \"blockwise\"",
                               gemm)));
  // What does not run in FP8 accumulates in FP32 anyway.
  CHECK(complaint_of(R"({"precision": {"recipe": "deepseek", "gemms": {"wgrad": "storage"},
                                       "fast_accumulation": {"wgrad": true}}})")
            .what.empty());
}

TEST_CASE("scales of blocks: overrides keep linears in BF16, and mix no other FP8 scaling in") {
  const auto said = [&](const std::string& recipe, const std::string& entry) {
    return complaint_of(
        fmt::format(R"({{"precision": {{"recipe": "{}", "overrides": [{}]}}}})", recipe, entry));
  };
  CHECK(said("deepseek", R"({"blocks": "first:1", "recipe": "bf16"})").what.empty());
  CHECK(said("deepseek", R"({"blocks": "first:1", "grad": {"format": "e5m2"}})").what.empty());
  CHECK(said("deepseek", R"({"blocks": "first:1", "recipe": "torchao-rowwise"})")
            .has("/precision/overrides/0/scaling: \"blockwise\" for some FP8 linears and not for others"));
  CHECK(said("fp8", R"({"blocks": "first:1", "recipe": "deepseek"})")
            .has("/precision/overrides/0/scaling: \"blockwise\" for some FP8 linears and not for others"));
}

TEST_CASE("scales that follow the distribution: by role, by shorthand, and what cannot stand beside them") {
  const auto said = [](const std::string& more) {
    return complaint_of(R"({"precision": {"recipe": "fp8", )" + more + "}}");
  };
  const RunConfig c = parse_config(
      R"({"precision": {"recipe": "fp8", "scaling": "quantile", "grad": {"scaling": "following"},
                        "adaptive": {"above": 0.01, "saturated": 0, "flushed": 0.5}}})",
      "t");
  CHECK(c.precision.input.scaling == Scaling::Quantile);
  CHECK(c.precision.weight.scaling == Scaling::Current);
  CHECK(c.precision.grad.scaling == Scaling::Following);
  CHECK(c.precision.adaptive == AdaptiveScaling{.above = 0.01, .saturated = 0, .flushed = 0.5});
  CHECK(parse_config(to_json(c), "resolved") == c);
  CHECK(said(R"("adaptive": {"above": 1e-7})").has("/precision/adaptive/above"));
  CHECK(said(R"("adaptive": {"above": 0.2})").has("/precision/adaptive/above"));
  CHECK(said(R"("adaptive": {"saturated": 0.2})").has("/precision/adaptive/saturated"));
  CHECK(said(R"("adaptive": {"flushed": 0.6})").has("/precision/adaptive/flushed"));
  for (const char* scaling : {R"("scaling": "quantile")", R"("grad": {"scaling": "following"})"})
    CHECK(said(std::string(R"("attention": "fp8", )") + scaling)
              .has("/precision/attention: found \"fp8\" beside a scaling \"quantile\" or \"following\""));
  CHECK(said(R"("attention": "fp8", "weight": {"scaling": "quantile"})").what.empty());
  // What saturates on purpose is no reason to leave FP8.
  const std::string few = R"("fallback": {"saturated": 0.0004})";
  CHECK(said(few + R"(, "scaling": "quantile")")
            .has("/precision/fallback/saturated: found 0.0004 with scaling \"quantile\""));
  CHECK(said(few + R"(, "overrides": [{"linears": ["down"], "scaling": "quantile"}])")
            .has("allowed: above 0.0004 (4 x /precision/adaptive/above)"));
  CHECK(said(few + R"(, "scaling": "quantile", "adaptive": {"above": 1e-5})").what.empty());
  CHECK(said(few + R"(, "scaling": "delayed")").what.empty());
}
