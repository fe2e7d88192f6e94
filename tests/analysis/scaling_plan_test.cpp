// From configurations and constants to predictions.
#include "analysis/scaling_plan.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "device/gpu/interpreted/planned_gpu.h"
#include "error_of.h"
#include "training/open_device.h"
#include "training/run_memory.h"

using namespace octet;

namespace {

const std::string configs = OCTET_SOURCE_DIR "/configs/";
const std::string constants_file = OCTET_SOURCE_DIR "/docs/results/scaling_constants.json";

struct Predicted {
  RunConfig config;
  RunPlan plan;
  ScalingPlan scaling;
};
Predicted predict(const std::string& name, const ScalingOptions& options,
                  const std::vector<std::string>& overrides = {}) {
  Predicted p;
  p.config = load_config(configs + name, overrides);
  PlannedFor target;
  target.gpu = &gpu_model("h200");
  p.plan = plan_run(p.config, target);
  p.scaling = plan_scaling(p.config, p.plan, *target.gpu, ScalingConstants::committed(), options);
  return p;
}

std::string changed(const std::string& key, const std::string& part, const nlohmann::json& value) {
  nlohmann::json root = nlohmann::json::parse(read_text(constants_file, ExitCode::Usage));
  if (part.empty())
    root["constants"].erase(key);
  else
    root["constants"][key][part] = value;
  return root.dump();
}

}  // namespace

TEST_CASE("the program carries the committed constants, each with a source and a kind") {
  const ScalingConstants carried = ScalingConstants::committed();
  const ScalingConstants file = ScalingConstants::parse(read_text(constants_file, ExitCode::Usage), "file");
  REQUIRE(carried.all().size() == file.all().size());
  for (const auto& [name, constant] : file.all()) {
    INFO(name);
    CHECK(carried[name] == constant.value);
    CHECK(constant.source.size() > 10);
  }
  // 419 interruptions in 54 days on 2048 nodes.
  CHECK(carried["node_mtbf_hours"] == Approx(54.0 * 24 * 2048 / 419).epsilon(1e-3));
}

TEST_CASE("a constant that is broken, unknown or missing is named") {
  const auto complaint = [](const std::string& text) {
    return std::string(error_of([&] { ScalingConstants::parse(text, "c.json"); }).what());
  };
  CHECK_THAT(complaint(changed("link_efficiency", "value", 0)),
             contains_text("constants/link_efficiency: found 0"));
  CHECK_THAT(complaint(changed("link_efficiency", "value", "x")), contains_text("link_efficiency"));
  CHECK_THAT(complaint(changed("link_efficiency", "kind", "guessed")), contains_text("guessed"));
  CHECK_THAT(complaint(changed("link_efficiency", "source", "")), contains_text("\"source\""));
  CHECK_THAT(complaint(changed("link_efficiency", "", {})), contains_text("link_efficiency: missing"));
  CHECK_THAT(complaint(changed("link_eficiency", "value", 1)), contains_text("link_eficiency"));
  CHECK_THAT(complaint("[1"), contains_text("c.json"));
  ScalingConstants constants = ScalingConstants::committed();
  constants.give("link_efficiency=0.5");
  CHECK(constants["link_efficiency"] == 0.5);
  CHECK(constants.at("link_efficiency").kind == "given");
  CHECK_THAT(error_of([&] { constants.give("link_eficiency=0.5"); }).hint(),
             contains_text("link_efficiency"));
  for (const char* wrong : {"link_efficiency", "link_efficiency=", "link_efficiency=1x", "link_efficiency=-1",
                            "link_efficiency=nan", "=1"})
    CHECK(error_of([&] { constants.give(wrong); }).code() == ExitCode::Usage);
}

TEST_CASE("bandwidths are bits, or bytes with a B") {
  CHECK(bandwidth_of("400G", "--link") == 50e9);
  CHECK(bandwidth_of("400Gbit", "--link") == 50e9);
  CHECK(bandwidth_of("50GB", "--link") == 50e9);
  CHECK(bandwidth_of("1.8TB", "--link") == Approx(1.8e12));
  for (const char* wrong : {"400", "G", "-1G", "400GX", "", "400 G", "infG"}) {
    const Error error = error_of([&] { bandwidth_of(wrong, "--link"); });
    CHECK_THAT(error.what(), contains_text("--link"));
  }
}

TEST_CASE("the layers of a job are the model: all parameters, all FLOPs, and its codes") {
  for (const char* name : {"8b-fp8.json", "1b-fp8.json", "qwen2.5-0.5b-fp8.json", "8b-bf16.json"}) {
    const Predicted p = predict(name, {.ranks = 8});
    INFO(name);
    double flops = 0, codes = 0;
    for (const ScalingLayer& layer : p.scaling.job.layers) {
      flops += layer.flops_per_token;
      codes += layer.float8_parameters;
    }
    CHECK(p.scaling.job.parameters() == Approx(static_cast<double>(p.plan.parameters)).epsilon(1e-12));
    CHECK(flops == Approx(p.plan.flops_per_token).epsilon(1e-12));
    // The linears of the blocks: everything in GEMMs but the head.
    const double linears =
        static_cast<double>(p.plan.matmul_parameters - p.config.model.vocabulary * p.config.model.width);
    CHECK(codes == Approx(p.config.precision.float8() ? linears : 0).margin(1));
  }
  const Predicted partly = predict("8b-fp8.json", {.ranks = 8}, {"precision.first_blocks_bf16=2"});
  int with_codes = 0;
  for (const ScalingLayer& layer : partly.scaling.job.layers) with_codes += layer.float8_parameters > 0;
  CHECK(with_codes == 30);
}

TEST_CASE("compute is FLOPs by peak and utilisation, or the speed that was measured") {
  const Predicted p = predict("8b-fp8.json", {.ranks = 8});
  const double rate = 1978.9e12 * 0.31;
  CHECK(p.scaling.job.compute_rate == Approx(rate).epsilon(1e-12));
  // recompute "block": forward a second time.
  CHECK(p.scaling.curve.front().compute_seconds ==
        Approx(p.plan.flops_per_step * 4 / 3 / rate).epsilon(1e-9));
  const Predicted bf16 = predict("8b-bf16.json", {.ranks = 8});
  CHECK(bf16.scaling.job.compute_rate == Approx(989.4e12 * 0.45).epsilon(1e-12));
  const Predicted measured = predict("8b-fp8.json", {.ranks = 8, .tokens_per_second = 10000});
  CHECK(measured.scaling.curve.front().compute_seconds == Approx(4194304 / 10000.0).epsilon(1e-9));
}

TEST_CASE("the memory of a rank is what a run with the asked parallel.* plans for it") {
  const auto planned = [](const RunConfig& config, int ranks) {
    const PlannedGpu gpu = plan_gpu(gpu_model("h200"), device_options(config));
    return static_cast<double>(measure_memory(gpu.device.get(), config, {0, ranks}).device_bytes);
  };
  for (const int zero : {0, 1, 2}) {
    INFO("ZeRO-" << zero);
    const Predicted by_option = predict("8b-fp8.json", {.ranks = 64, .zero = zero, .gradients = "fp8"});
    const Predicted by_file = predict("8b-fp8.json", {.ranks = 64},
                                      {"parallel.zero=" + std::to_string(zero), "parallel.reduce=fp8"});
    // The same whoever asks, at the ranks asked for and at every other number of them. Measured plans are
    // rounded up to whole alignments.
    for (const ScalingPlan* plan : {&by_option.scaling, &by_file.scaling}) {
      CHECK(std::fabs(plan->asked.memory_bytes - planned(by_file.config, 64)) <= 256);
      CHECK(std::fabs(plan->curve.front().memory_bytes - planned(by_file.config, 1)) <= 256);
      for (const ScalingPoint& point : plan->curve)
        if (point.ranks == 64) CHECK(point.memory_bytes == plan->asked.memory_bytes);
    }
  }
  // Sharding saves, and block scratch is counted once: less than all gradients and masters twice.
  const auto bytes = [&](int zero) {
    return predict("8b-fp8.json", {.ranks = 64, .zero = zero}).scaling.asked.memory_bytes;
  };
  const double parameters = 8.03e9;
  CHECK(bytes(1) < bytes(0) - 4 * parameters * 0.9);
  CHECK(bytes(2) < bytes(1) - 2 * parameters * 0.9);
  // More ranks than micro-batches: each has smaller ones.
  const Predicted one_window = predict("8b-fp8.json", {.ranks = 512});
  CHECK(one_window.scaling.asked.micro == 1);
  RunConfig divided = one_window.config;
  divided.batch.micro = 1;
  CHECK(std::fabs(one_window.scaling.asked.memory_bytes - planned(divided, 512)) <= 256);
}

TEST_CASE("what training refuses, the prediction refuses in the same words") {
  const std::vector<std::string> channel = {"precision.smooth_swiglu=channel"};
  const Error error = error_of([&] { predict("8b-fp8.json", {.ranks = 8}, channel); });
  CHECK(error.code() == ExitCode::Usage);
  CHECK_THAT(error.what(), contains_text("smooth_swiglu \"channel\""));
  CHECK(predict("8b-fp8.json", {.ranks = 8, .zero = 0}, channel).scaling.asked.problem.empty());
  const ScalingPlan alone = predict("8b-fp8.json", {.ranks = 1}, channel).scaling;
  CHECK(alone.curve[0].problem.empty());
  CHECK_THAT(alone.curve[1].problem, contains_text("smooth_swiglu \"channel\""));
  const std::vector<std::string> local = {"parallel.zero=0", "parallel.sync_every=100", "run.steps=40000",
                                          "checkpoint.every=1000", "evaluation.every=1000"};
  CHECK_THAT(error_of([&] { predict("8b-fp8.json", {.ranks = 8, .zero = 1}, local); }).what(),
             contains_text("/parallel/zero"));
  CHECK(predict("8b-fp8.json", {.ranks = 8}, local).scaling.job.sync_every == 100);
}

TEST_CASE("ZeRO level and gradient format are the configuration's, options go before it") {
  const std::vector<std::string> sharded = {"parallel.zero=0", "parallel.reduce=fp8"};
  const ScalingJob as_configured = predict("8b-fp8.json", {.ranks = 64}, sharded).scaling.job;
  CHECK(as_configured.zero == 0);
  CHECK(as_configured.gradients == WireFormat::FP8);
  const ScalingJob by_option =
      predict("8b-fp8.json", {.ranks = 64, .zero = 2, .gradients = "fp32"}, sharded).scaling.job;
  CHECK(by_option.zero == 2);
  CHECK(by_option.gradients == WireFormat::FP32);
  const ScalingJob by_default = predict("8b-fp8.json", {.ranks = 64}).scaling.job;
  CHECK(by_default.zero == 1);
  CHECK(by_default.gradients == WireFormat::BF16);
}

TEST_CASE("between nodes BF16 gradients are faster than FP8 codes all-to-all, within a node they are not") {
  const auto saved = [](int64_t ranks, const std::string& gradients) {
    return predict("8b-fp8.json", {.ranks = ranks, .gradients = gradients}).scaling;
  };
  const ScalingPlan across = saved(64, "fp8");
  CHECK(across.bfloat16_saves_seconds > 0);
  CHECK(across.bfloat16_saves_seconds ==
        Approx(across.asked.step_seconds - saved(64, "bf16").asked.step_seconds));
  CHECK(saved(8, "fp8").bfloat16_saves_seconds == 0);
  CHECK(saved(64, "bf16").bfloat16_saves_seconds == 0);
}

TEST_CASE("on paper to 16,384 ranks: a batch with a window for each, and failures every few hours") {
  const ScalingOptions options{.ranks = 16384};
  CHECK_FALSE(predict("8b-fp8.json", options).scaling.asked.problem.empty());  // 512 windows
  const Predicted p = predict("8b-fp8.json", options, {"batch.tokens=134217728"});
  REQUIRE(p.scaling.asked.problem.empty());
  CHECK(p.scaling.asked.nodes == 2048);
  CHECK(p.scaling.curve.size() == 15);
  // The published cluster: one failure in about three hours.
  CHECK(p.scaling.advice.job_mtbf_seconds / 3600 == Approx(54.0 * 24 / 419).epsilon(1e-3));
  CHECK(p.scaling.working_ranks.back() == 16384);
  // A save that is not asynchronous stops training for the write as well.
  const Predicted waits = predict("8b-fp8.json", options, {"checkpoint.asynchronous=false"});
  CHECK(waits.scaling.failures.write_seconds == 0);
  CHECK(waits.scaling.failures.stall_seconds ==
        Approx(p.scaling.failures.stall_seconds + p.scaling.failures.write_seconds));
}

TEST_CASE("codes are gathered where that is lossless, and refused where it is not") {
  CHECK(predict("8b-fp8.json", {.ranks = 8}).scaling.job.weights == WireFormat::FP8);
  CHECK(predict("8b-bf16.json", {.ranks = 8}).scaling.job.weights == WireFormat::BF16);
  CHECK(predict("8b-fp8.json", {.ranks = 8, .weights = "bf16"}).scaling.job.weights == WireFormat::BF16);
  const ScalingOptions codes{.ranks = 8, .weights = "fp8"};
  CHECK(error_of([&] { predict("8b-bf16.json", codes); }).code() == ExitCode::Usage);
  // A down projection in BF16 is gathered so, the others as codes.
  const auto as_codes = [&](const char* smooth) {
    const Predicted p = predict("8b-fp8.json", codes, {std::string("precision.smooth_swiglu=") + smooth});
    return std::pair{p.scaling.job.layers[1].float8_parameters,
                     static_cast<double>(p.config.model.width * p.config.model.ffn_width)};
  };
  const auto [all, down] = as_codes("token");
  CHECK(as_codes("bf16").first == all - down);
  CHECK(error_of([&] { predict("8b-fp8.json", {.ranks = 8, .gradients = "fp7"}); }).code() ==
        ExitCode::Usage);
}
