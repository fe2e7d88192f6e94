// Plans for GPUs that are not here.
#include "analysis/gpu_fit.h"

#include <filesystem>

#include "analysis/planner.h"
#include "base/files.h"
#include "config/document.h"
#include "error_of.h"

using namespace octet;

namespace {

const std::string configs = OCTET_SOURCE_DIR "/configs/";

RunPlan planned(const std::string& name, const char* gpu, const std::vector<std::string>& overrides = {}) {
  PlannedFor target;
  target.gpu = &gpu_model(gpu);
  return plan_run(load_config(configs + name, overrides), target);
}
uint64_t workspace_item(const RunPlan& plan) {
  for (const PlannedItem& item : plan.items)
    if (item.name == "device.workspace") return item.bytes;
  return 0;
}

}  // namespace

TEST_CASE("8B with FP32 masters and FP8 moments fits 141 GB at context 8192, without offload") {
  const RunPlan plan = planned("8b-fp8.json", "h200");
  const RunConfig config = load_config(configs + "8b-fp8.json");
  REQUIRE(config.model.context == 8192);
  REQUIRE(config.precision.moments == Moments{Format::E4M3, Format::E5M2, 128});
  REQUIRE(plan.gpu.has_value());
  CHECK(plan.gpu->gpu->memory_bytes() == 141'000'000'000);
  CHECK(plan.gpu->fits());
  CHECK(plan.gpu->changes.empty());
  CHECK(plan.gpu->planned_bytes == plan.device_bytes);
  // By hand: masters and gradients 4 + 4, moments 2 (1 + 4/128), codes of the blocks' weights in both
  // layouts, BF16 of the token table and the head. 12 GB above these states hold the rest.
  const auto parameters = static_cast<double>(plan.parameters);
  const double table = 128256.0 * 4096;
  const double states = parameters * (8 + 2 * (1 + 4.0 / 128)) + 2 * (parameters - 2 * table) + 2 * 2 * table;
  CHECK(static_cast<double>(plan.device_bytes) > states);
  CHECK(static_cast<double>(plan.device_bytes) < states + 12e9);
  // A deterministic backward pass takes 2 B H S^2 = 4 GiB more, and that fits too.
  const RunPlan deterministic = planned("8b-fp8.json", "h200", {"run.deterministic=true"});
  CHECK(deterministic.gpu->workspace.attention.score_matrix == 2ull * 32 * 8192 * 8192);
  CHECK(deterministic.gpu->fits());
  // Negative controls: neither BF16 with FP32 moments nor a board with 80 GB.
  CHECK_FALSE(planned("8b-bf16.json", "h200").gpu->fits());
  CHECK_FALSE(planned("8b-fp8.json", "h100").gpu->fits());
}

TEST_CASE("3B fits 24 GB with offload and not without") {
  const RunPlan plan = planned("3b-fp8-24gb.json", "rtx4090");
  CHECK(plan.gpu->gpu->memory_bytes() == 24'000'000'000);
  CHECK(plan.gpu->fits());
  // By hand: F32 gradients, codes of the blocks' weights in both layouts, BF16 of the token table, which is
  // the head too. 3 GB above these states hold the rest: two layers' pieces, a block, a chunk of logits.
  const auto parameters = static_cast<double>(plan.parameters);
  const double table = 128256.0 * 3072;
  const double states = parameters * 4 + 2 * (parameters - table) + 2 * table;
  CHECK(static_cast<double>(plan.device_bytes) > states);
  CHECK(static_cast<double>(plan.device_bytes) < states + 3e9);
  // Masters 4, moments 2 (1 + 4/128) wait on the host; gains, 2 a layer and the last, stay on the device.
  const double offloaded = (parameters - (2 * 28 + 1) * 3072.0) * (4 + 2 * (1 + 4.0 / 128));
  CHECK(static_cast<double>(plan.offload_bytes) == Approx(offloaded).epsilon(1e-6));
  // Negative control: the same without it, whose only way to fit is offload.
  const RunPlan resident = planned("3b-fp8-24gb.json", "rtx4090", {"memory.offload=none"});
  CHECK(resident.offload_bytes == 0);
  CHECK_FALSE(resident.gpu->fits());
  REQUIRE(resident.gpu->changes.size() == 1);
  CHECK(resident.gpu->changes[0].key == "memory.offload");
  CHECK(resident.gpu->changes[0].value == "optimizer");
  CHECK(resident.gpu->changes[0].fits);
  // From the file for larger GPUs the proposals end where this one begins.
  std::vector<std::string> keys;
  const RunPlan large = planned("3b-fp8.json", "rtx4090");
  for (const FitChange& change : large.gpu->changes) keys.push_back(change.key + "=" + change.value);
  CHECK(keys ==
        std::vector<std::string>{"batch.micro=1", "batch.recompute=block", "memory.offload=optimizer"});
  CHECK(large.gpu->changes.back().device_bytes - plan.device_bytes < MemoryPlan::alignment);
  // Not proposed where a micro-batch reads the masters.
  const RunPlan channel = planned("3b-fp8.json", "rtx4090", {"precision.smooth_swiglu=channel"});
  for (const FitChange& change : channel.gpu->changes) CHECK(change.key != "memory.offload");
}

TEST_CASE("the planned workspace of a GPU is the largest of its parts") {
  for (const char* gpu : {"l40s", "h200", "b200"}) {
    const RunPlan plan = planned("1b-fp8.json", gpu);
    const GpuWorkspace& w = plan.gpu->workspace;
    INFO(gpu);
    CHECK(w.kernels > 0);
    CHECK(workspace_item(plan) == w.bytes());
    CHECK(w.bytes() == std::max({w.kernels, w.products, w.attention.bytes()}));
  }
  // Outer scales ride in the library on Hopper. Elsewhere the FP32 product is kept beside the library's 32
  // MiB; the down projection's weight gradient [2048, 5632] is one.
  CHECK(planned("1b-fp8.json", "b200").gpu->workspace.products >= (32ull << 20) + 2048 * 5632 * 4);
  CHECK(planned("1b-fp8.json", "h200").gpu->workspace.products < (33ull << 20));
}

TEST_CASE("a run that does not fit is told what to change, and each change is planned like the run") {
  std::vector<std::string> overrides = {"batch.micro=8", "batch.recompute=none"};
  const RunPlan large = planned("1b-bf16.json", "rtx4090", overrides);
  const GpuFit& fit = *large.gpu;
  REQUIRE_FALSE(fit.fits());
  REQUIRE_FALSE(fit.changes.empty());
  uint64_t before = fit.planned_bytes;
  for (const FitChange& change : fit.changes) {
    INFO(change.key << "=" << change.value);
    CHECK(change.device_bytes < before);
    before = change.device_bytes;
    overrides.push_back(change.key + "=" + change.value);
    const RunPlan changed = planned("1b-bf16.json", "rtx4090", overrides);
    // The arena is rounded up to whole alignments, the plan's peak is not.
    CHECK(change.device_bytes - changed.device_bytes < MemoryPlan::alignment);
    CHECK(changed.gpu->fits() == change.fits);
    CHECK(change.fits == (&change == &fit.changes.back()));
  }
  // Nothing of this makes an 8B fit 24 GB.
  const RunPlan hopeless = planned("8b-bf16.json", "rtx4090");
  REQUIRE_FALSE(hopeless.gpu->changes.empty());
  CHECK_FALSE(hopeless.gpu->changes.back().fits);
}

TEST_CASE("what a GPU cannot do is an error, not a plan") {
  const Error float8 = error_of([] { planned("1b-fp8.json", "a100"); });
  CHECK(float8.code() == ExitCode::Hardware);
  CHECK_THAT(float8.what(), contains_text("8.9"));
  CHECK_NOTHROW(planned("1b-bf16.json", "a100"));
  const Error narrow = error_of([] { planned("quickstart.json", "h200", {"model.heads=4"}); });
  CHECK(narrow.code() == ExitCode::Usage);
  CHECK_THAT(narrow.what(), contains_text("heads of 64 to 256 in steps of 8, not 32"));
  const Error wide = error_of([] { planned("1b-bf16.json", "h200", {"precision.recipe=fp32"}); });
  CHECK_THAT(wide.what(), contains_text("attention on the GPU reads and writes BF16"));
}

TEST_CASE("every shipped configuration is one that a GPU can run") {
  for (const auto& entry : std::filesystem::directory_iterator(configs)) {
    const bool run = entry.path().extension() == ".json" &&
                     !read_document(read_text(entry.path(), ExitCode::Usage), "t").root.contains("base");
    if (!run) continue;  // a sweep: of some shipped configuration
    INFO(entry.path());
    const std::string name = entry.path().filename().string();
    // FP8 attention is refused where cuDNN has none, a clipped softmax everywhere, and scales of blocks where
    // cuBLASLt has none, see below; everything else of such a run fits.
    std::vector<std::string> settings;
    const RunConfig config = load_config(entry.path().string());
    const Recipe& recipe = config.precision;
    if (config.model.softmax_clip_low < 0) settings.push_back("model.softmax_clip_low=0");
    if (config.model.softmax_clip_high > 1) settings.push_back("model.softmax_clip_high=1");
    if (recipe.attention == AttentionFormat::FP8) settings.push_back("precision.attention=storage");
    if (recipe.weight.scaling == Scaling::Blockwise) settings.push_back("precision.scaling=rowwise");
    for (const char* gpu : {"rtx4090", "h200", "b200"}) CHECK_NOTHROW(planned(name, gpu, settings));
  }
}

TEST_CASE("a clipped softmax is refused by the plan of a GPU, with the way out") {
  const Error error = error_of([&] { planned("quickstart-nanotron.json", "h200"); });
  CHECK(error.code() == ExitCode::Usage);
  CHECK_THAT(error.what(), contains_text("no clipped softmax"));
  CHECK_THAT(error.hint(), contains_text("--device cpu"));
}

TEST_CASE("scales of blocks are planned on Hopper, and refused elsewhere with the alternatives") {
  CHECK_NOTHROW(planned("quickstart-deepseek.json", "h200"));
  for (const char* gpu : {"rtx4090", "b200"}) {
    const Error error = error_of([&] { planned("quickstart-deepseek.json", gpu); });
    CHECK(error.code() == ExitCode::Hardware);
    CHECK_THAT(error.what(), contains_text("precision.scaling blockwise"));
    CHECK_THAT(error.hint(), contains_text("rowwise, delayed or current"));
  }
}

TEST_CASE("FP8 attention that a GPU does not have is refused by the plan, with the alternatives") {
  const char* config = "quickstart-fp8-attention.json";  // heads of 64
  const Error ada = error_of([&] { planned(config, "rtx4090"); });
  CHECK(ada.code() == ExitCode::Hardware);
  CHECK_THAT(ada.what(), contains_text("no FP8 attention, forward and backward, on compute capability 8.9"));
  CHECK_THAT(ada.hint(), contains_text("precision.attention to storage"));
  const Error hopper = error_of([&] { planned(config, "h200"); });
  CHECK_THAT(hopper.what(), contains_text("heads of 128, not 64"));
  CHECK_THAT(hopper.hint(), contains_text("model.head_width to 128"));
  CHECK_NOTHROW(planned(config, "h200", {"model.heads=1"}));
  const Error ordered = error_of([&] {
    planned(config, "h200", {"model.heads=1", "run.deterministic=true"});
  });
  CHECK_THAT(ordered.what(), contains_text("no backward pass whose sums have one order"));
  CHECK_NOTHROW(planned(config, "b200"));
}
