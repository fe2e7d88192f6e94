// Steps that must not count: NaN, spikes, and the proof of what precision ran.
#include <cmath>

#include "device/measured_device.h"
#include "model/transformer.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"
#include "numerics/recipes.h"
#include "training/precision_proof.h"
#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;

TEST_CASE("a step with a NaN gradient changes nothing and is counted") {
  const TinyData data;
  const std::vector<std::string> every_step = {"checkpoint.every=1", "run.steps=5"};
  TinyRun run(data, every_step), control(data, every_step);
  CHECK(run.go({"nan:step=3"}).code == ExitCode::Success);
  control.go();
  for (const char* file : {"masters.safetensors", "moments.safetensors", "scale_table.safetensors"}) {
    CHECK(bytes_of(run.checkpoint(3) / file) == bytes_of(run.checkpoint(2) / file));
    if (std::string(file) != "scale_table.safetensors")  // all sites have current scaling here: no state
      CHECK(bytes_of(control.checkpoint(3) / file) != bytes_of(control.checkpoint(2) / file));
  }
  const auto steps = run.records("step");
  CHECK(steps[2]["train/skipped"] == 1);
  CHECK(steps[2]["train/grad_norm"] == "NaN");
  CHECK(steps[3]["train/skipped"] == 0);
  CHECK(verify_checkpoint(run.checkpoint(5)).state.skipped_steps == 1);
  REQUIRE(run.events("skipped").size() == 1);
  CHECK(run.events("skipped")[0].find("first non-finite gradient: ") != std::string::npos);
  CHECK(run.events("skipped")[0].find("samples 8..11") != std::string::npos);
}

TEST_CASE("a skipped step with delayed scaling keeps the scale state finite") {
  const TinyData data;
  TinyRun run(data, {"checkpoint.every=1", "run.steps=4", "precision.scaling=delayed",
                     "precision.weight.scaling=delayed"});
  CHECK(run.go({"nan:step=2"}).code == ExitCode::Success);
  CHECK(bytes_of(run.checkpoint(2) / "scale_table.safetensors") ==
        bytes_of(run.checkpoint(1) / "scale_table.safetensors"));
  CHECK(bytes_of(run.checkpoint(3) / "scale_table.safetensors") !=
        bytes_of(run.checkpoint(2) / "scale_table.safetensors"));
  CHECK(std::isfinite(number_of(run.records("step")[3]["train/loss"])));
}

TEST_CASE("a recipe changed on resume does not inherit scales of another format") {
  const TinyData data;
  const std::vector<std::string> overrides = {"precision.scaling=delayed", "precision.grad.format=e5m2",
                                              "health.every=5"};
  TinyRun run(data, overrides);
  REQUIRE(run.go({"signal:name=TERM,phase=step,step=5"}).step == 4);
  run.request.config.precision.grad.format = Format::E4M3;  // a scale for 57344 would saturate at 448
  REQUIRE(run.go().step == 8);
  const auto health = run.records("health");
  REQUIRE(health.size() == 1);
  int sites = 0;
  for (const Json& site : health[0]["sites"]) {
    const std::string name = site["name"];
    if (name.find(".grad") == std::string::npos) continue;
    INFO(name);
    ++sites;
    CHECK(site["saturated"] == 0.0);
  }
  CHECK(sites >= 4);
}

TEST_CASE("several non-finite steps in a row stop the run with a diagnosis, a pause starts the count again") {
  const TinyData data;
  TinyRun run(data, {"health.stop_after_nonfinite=3"});
  const TrainResult result = run.go({"nan:step=3,count=3"});
  CHECK(result.code == ExitCode::Numerics);
  CHECK(result.step == 5);
  CHECK(result.reason.find("3 steps in a row") != std::string::npos);
  CHECK(result.reason.find("first non-finite gradient") != std::string::npos);
  CHECK(run.status()["exit_code"] == 20);
  TinyRun paused(data, {"health.stop_after_nonfinite=3"});
  CHECK(paused.go({"nan:step=2,count=2", "nan:step=5,count=2"}).code == ExitCode::Success);
}

TEST_CASE("a spike is logged, skipped or rolled back, as the policy says") {
  const TinyData data;
  const std::vector<std::string> base = {"run.steps=16", "checkpoint.every=1", "evaluation.every=0",
                                         "health.spike_window=8"};
  const auto with = [&](std::initializer_list<std::string> more) {
    std::vector<std::string> all = base;
    all.insert(all.end(), more);
    return all;
  };
  SECTION("log") {
    TinyRun run(data, with({"health.on_spike=log"}));
    CHECK(run.go({"spike:step=12"}).step == 16);
    REQUIRE(run.events("spike").size() == 1);
    CHECK(masters_of(run, 12) != masters_of(run, 11));
    TinyRun calm(data, with({"health.on_spike=log"}));
    calm.go();
    CHECK(calm.events("spike").empty());
  }
  SECTION("skip") {
    TinyRun run(data, with({"health.on_spike=skip"}));
    CHECK(run.go({"spike:step=12"}).step == 16);
    CHECK(masters_of(run, 12) == masters_of(run, 11));
    CHECK(run.records("step")[11]["train/skipped"] == 1);
    CHECK(run.records("step")[11]["train/grad_norm"].is_number());
    CHECK(masters_of(run, 13) != masters_of(run, 12));
  }
  SECTION("rollback") {
    TinyRun run(data, with({"health.on_spike=rollback", "checkpoint.every=5"}));
    TinyRun calm(data, with({"health.on_spike=rollback", "checkpoint.every=5"}));
    CHECK(run.go({"spike:step=12"}).step == 16);
    calm.go();
    REQUIRE(run.events("rollback").size() == 1);
    CHECK(run.events("rollback")[0].find("back to step 10, 8 windows of data passed over") !=
          std::string::npos);
    const auto steps = run.records("step");
    REQUIRE(steps.size() == 16);  // what came after step 10 was forgotten, then trained again on later data
    CHECK(steps[9]["data/batch_hash"] == calm.records("step")[9]["data/batch_hash"]);
    CHECK(steps[10]["data/batch_hash"] == calm.records("step")[12]["data/batch_hash"]);
    CHECK(verify_checkpoint(run.checkpoint(16)).state.next_sample == 16 * 4 + 8);
    CHECK(verify_checkpoint(run.checkpoint(16)).state.rollbacks == 1);
  }
  SECTION("without a checkpoint to go back to, because the saves failed, the run goes on") {
    TinyRun run(data, with({"health.on_spike=rollback", "checkpoint.every=5"}));
    const TrainResult result = run.go({"spike:step=12", "enospc:write=1,count=2"});
    CHECK(run.events("rollback").empty());
    CHECK(run.events("checkpoint").size() >= 3);  // two that failed
    CHECK(result.code == ExitCode::Success);
    CHECK(result.step == 16);
  }
  SECTION("rollbacks are bounded") {
    TinyRun run(data, with({"health.on_spike=rollback", "health.max_rollbacks=0"}));
    const TrainResult result = run.go({"spike:step=12"});
    CHECK(result.code == ExitCode::Numerics);
    CHECK(result.reason.find("after 0 rollbacks") != std::string::npos);
  }
}

TEST_CASE("the log proves the precision from what ran") {
  const TinyData data;
  TinyRun fp8(data), bf16(data, {"precision.recipe=bf16"});
  fp8.go();
  bf16.go();
  // Six FLOPs a weight and token. Weights of the block: 32 * 64 qkv, 32 * 32 out, 3 * 32 * 48 ffn = 7680; the
  // head (32 * 64) and the attention core run in BF16.
  double all = 0, head = 0;
  const Json start = fp8.records("start").at(0);
  for (const Json& row : start["gemm_table"]) {
    all += row["flops"].get<double>();
    if (row["class"].get<std::string>().rfind("head", 0) == 0) head += row["flops"].get<double>();
  }
  const double tokens = 64;
  CHECK(head == 6 * tokens * 2048);
  for (const Json& r : fp8.records("step"))
    CHECK(r["perf/fp8_flop_share"].get<double>() == Approx(6 * tokens * 7680 / all).epsilon(1e-12));
  for (const Json& r : bf16.records("step")) CHECK(r["perf/fp8_flop_share"] == 0.0);
  CHECK(start["gemm_table"].size() >= 6);
  CHECK(start["memory_bytes"].get<int64_t>() > 0);
  bool found = false;
  for (const Json& row : start["gemm_table"])
    found = found || (row["a"] == "F8_E4M3" && row["b"] == "F8_E4M3");
  CHECK(found);
  const auto health = fp8.records("health");
  REQUIRE(health.size() == 4);  // steps 2, 4, 6, 8
  CHECK(health[0]["step"] == 2);
  CHECK_FALSE(health[0]["sites"].empty());
  double amax = 0;
  for (const Json& site : health[1]["sites"]) amax = std::max(amax, number_of(site["amax"]));
  CHECK(amax > 0);
}

TEST_CASE("a recipe that claims FP8 while matmul counted BF16 is a bug, and named") {
  TransformerSpec spec;
  const Recipe fp8 = make_recipe("fp8"), bf16 = make_recipe("bf16");
  MatmulCounts wide, codes;
  for (const GemmClass c : {GemmClass::Fprop, GemmClass::Dgrad, GemmClass::Wgrad}) {
    wide[{c, DType::BF16, DType::BF16, DType::BF16}] = {1, 1000, "test"};
    codes[{c, DType::E4M3, DType::E4M3, DType::BF16}] = {1, 1000, "test"};
  }
  CHECK(error_of([&] { require_promised_precision(wide, spec, fp8); }).find("promises 100.00%") !=
        std::string::npos);
  CHECK_NOTHROW(require_promised_precision(wide, spec, bf16));
  CHECK_NOTHROW(require_promised_precision(codes, spec, fp8));
  CHECK_FALSE(error_of([&] { require_promised_precision(codes, spec, bf16); }).empty());
  wide[{GemmClass::Fprop, DType::E4M3, DType::E4M3, DType::BF16}] = {1, 3000, "test"};
  CHECK(fp8_flop_share(wide) == 0.5);
  CHECK_FALSE(
      error_of([&] { require_promised_precision(wide, spec, fp8); }).empty());  // a part is not enough
}

namespace {

// Runs attention in BF16 although it was given codes; what it leaves looks right.
enum class Attention : uint8_t { Honest, Lying };
struct LyingDevice : MeasuredDevice {
  LyingDevice(Device& honest, Attention attention)
      : MeasuredDevice(honest), honest_(honest), attention_(attention) {}
  void attention_forward(const AttentionForward& op) override {
    if (attention_ == Attention::Honest) return honest_.attention_forward(op);
    const Tensor wide = in_bfloat16(op.qkv, *op.qkv_inverse_scale);
    AttentionForward storage = op;
    storage.qkv = wide;
    storage.qkv_inverse_scale = nullptr;
    storage.out_codes = {};
    honest_.attention_forward(storage);
    CastOperation encode;
    encode.source = op.out.high;
    encode.out.row = op.out_codes.codes;
    encode.out.cast = op.out_codes.cast;
    encode.out.site = op.out_codes.site;
    honest_.cast(encode);
    honest_.free(wide.data);
  }

 private:
  Tensor in_bfloat16(const Tensor& codes, float inverse_scale) const {
    Tensor wide{nullptr, DType::BF16, codes.shape};
    wide.data = honest_.allocate(wide.bytes());
    for (int64_t i = 0; i < codes.elements(); ++i)
      wide.as<BFloat16>()[i] = to_bfloat16(decode_e4m3(codes.as<uint8_t>()[i]) * inverse_scale);
    return wide;
  }
  Device& honest_;
  Attention attention_;
};

}  // namespace

TEST_CASE("a recipe that claims FP8 attention stops a run whose device runs it in BF16") {
  TransformerOptions options;
  options.spec.layers = 2;
  options.spec.width = 32;
  options.spec.heads = 2;
  options.spec.kv_heads = 1;
  options.spec.ffn_width = 48;
  options.spec.context = 16;
  options.spec.vocabulary = 64;
  options.micro_batch = 1;
  options.recipe = make_recipe("fp8");
  options.recipe.attention = AttentionFormat::FP8;
  const std::vector<int32_t> ids(16, 3);
  const auto found = [&](Attention attention) {
    const auto honest = make_cpu_device({.deterministic = true, .threads = 1});
    LyingDevice device(*honest, attention);
    MemoryPlan measured;
    { const Transformer sizes(&device, options, measured); }
    void* const arena = device.allocate(measured.peak_bytes());
    MemoryPlan placed(arena, measured.peak_bytes());
    std::string error;
    {
      Transformer model(&device, options, placed);
      model.initialize();
      model.zero_gradients();
      model.forward_backward(ids.data(), ids.data(), 1.0f / 16, {});
      // What Trainer::record() asks after every step.
      error =
          error_of([&] { require_promised_precision(device.matmul_counts(), options.spec, options.recipe); });
    }
    device.free(arena);
    return error;
  };
  CHECK(found(Attention::Honest).empty());
  const std::string error = found(Attention::Lying);
  CHECK_THAT(error, contains_text("promises 100.00% of attention FLOPs in FP8, the device counted 71.43%"));
  // And the other way round: FP8 that nobody asked for.
  Recipe plain = options.recipe;
  plain.attention = AttentionFormat::Storage;
  CHECK(promised_fp8_share(options.spec, plain, GemmClass::Attention) == 0);
  MatmulCounts counts;
  counts[{GemmClass::Attention, DType::E4M3, DType::E4M3, DType::E4M3}] = {1, 1000, "test"};
  for (const GemmClass c : {GemmClass::Fprop, GemmClass::Dgrad, GemmClass::Wgrad})
    counts[{c, DType::E4M3, DType::E4M3, DType::BF16}] = {1, 1000, "test"};
  CHECK_FALSE(error_of([&] { require_promised_precision(counts, options.spec, plain); }).empty());
  CHECK_NOTHROW(require_promised_precision(counts, options.spec, options.recipe));
  options.recipe.first_blocks_bf16 = 1;
  CHECK(promised_fp8_share(options.spec, options.recipe, GemmClass::Attention) == 0.5);
}
