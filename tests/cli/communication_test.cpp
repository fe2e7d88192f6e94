// What ranks send each other, and that codes on the wire change no bit.
#include <filesystem>
#include <optional>

#include "base/files.h"
#include "cli/shared_run.h"
#include "training/checkpoint.h"

using namespace octet;
using namespace octet::testing;

namespace {

// The sites of the health records, which the counters make.
std::vector<Json> health(const SharedRun& place, const std::string& name) {
  std::vector<Json> sites;
  for (const Json& record : place.records(name, "health")) sites.push_back(record["sites"]);
  REQUIRE(!sites.empty());
  return sites;
}

std::filesystem::path checkpoint(const SharedRun& place, const std::string& name, int64_t step) {
  return place.folder.path() / name / "checkpoints" / checkpoint_name(step);
}
GradientReduction::State reduction_state(const SharedRun& place, const std::string& name, int64_t step) {
  return read_manifest(checkpoint(place, name, step)).state.gradient_reduction;
}
void set_reduction_state(const SharedRun& place, const std::string& name, int64_t step,
                         const GradientReduction::State& state) {
  Manifest manifest = read_manifest(checkpoint(place, name, step));
  manifest.state.gradient_reduction = state;
  std::ofstream(checkpoint(place, name, step) / manifest_file) << to_text(manifest);
}
void copy_run(const SharedRun& place, const std::string& from, const std::string& to) {
  std::filesystem::copy(place.folder.path() / from, place.folder.path() / to,
                        std::filesystem::copy_options::recursive);
}

}  // namespace

TEST_CASE("weights gathered as FP8 codes: losses, statistics and checkpoints of whole weights, to the bit") {
  const SharedRun place("fp8");
  for (const char* scaling : {"delayed", "current"})
    for (const char* ranks : {"2", "3"}) {
      CAPTURE(scaling, ranks);
      const std::string settings = std::string("--overwrite --set precision.weight.scaling=") + scaling +
                                   " --ranks " + ranks + " --set parallel.zero=";
      REQUIRE(place.train("whole", settings + "0").code == 0);
      const CommandRun run = place.train("codes", settings + "1");
      INFO(run.output);
      REQUIRE(run.code == 0);
      CHECK(run.says("weights are gathered as fp8 codes ("));
      for (const char* key : {"train/loss", "train/grad_norm"})
        CHECK(place.numbers("codes", key) == place.numbers("whole", key));
      CHECK(place.numbers("codes", "validation/loss", "validation") ==
            place.numbers("whole", "validation/loss", "validation"));
      CHECK(health(place, "codes") == health(place, "whole"));
      CHECK(place.same_checkpoint("codes", "whole"));
      for (const double bytes : place.numbers("whole", "comm/weight_bytes")) CHECK(bytes == 0);
      for (const double bytes : place.numbers("codes", "comm/weight_bytes")) CHECK(bytes > 0);
    }
  // Control: the scaling that went before is another run.
  REQUIRE(place.train("other", "--ranks 3 --set precision.weight.scaling=delayed").code == 0);
  CHECK_FALSE(place.same_checkpoint("codes", "other"));
}

TEST_CASE("bytes and waiting are recorded: fp8 gradients are at most 0.26 of fp32's") {
  const SharedRun place;
  const auto sent = [&](const std::string& wire, const char* key) { return place.numbers(wire, key); };
  for (const char* wire : {"fp32", "bf16", "fp8"}) {
    const CommandRun run = place.train(wire, std::string("--ranks 2 --set parallel.reduce=") + wire);
    INFO(run.output);
    REQUIRE(run.code == 0);
    CHECK(run.says("sent by a rank in a step: "));
    for (const Json& record : place.records(wire, "step")) {
      const double waited = record["comm/waited_seconds"], seconds = record["perf/step_seconds"];
      CHECK(waited >= 0);
      if (record["step"] != 4) CHECK(waited <= seconds);  // step 4: an evaluation comes before it
      CHECK(record["comm/other_bytes"] > 0);              // the norm's partial sums, the loss
    }
  }
  const std::vector<double> wide = sent("fp32", "comm/gradient_bytes");
  REQUIRE(wide.size() == 6);
  for (size_t i = 0; i < wide.size(); ++i) {
    CHECK(sent("fp8", "comm/gradient_bytes")[i] <= 0.26 * wide[i]);
    CHECK(sent("fp8", "comm/gradient_bytes")[i] > 0.25 * wide[i]);
    CHECK(sent("bf16", "comm/gradient_bytes")[i] > 0.5 * wide[i]);  // vectors stay FP32
    CHECK(sent("bf16", "comm/gradient_bytes")[i] < 0.51 * wide[i]);
    CHECK(wide[i] == wide[0]);  // the first step is no other
    CHECK(sent("fp32", "comm/weight_bytes")[i] == sent("fp32", "comm/weight_bytes")[0]);
  }
  CHECK(sent("fp8", "comm/weight_bytes") == sent("fp32", "comm/weight_bytes"));
  REQUIRE(place.train("alone", "").code == 0);
  CHECK_FALSE(place.records("alone", "step")[0].contains("comm/gradient_bytes"));
}

TEST_CASE("the automatic scale of fp8 gradients goes on where a checkpoint left it") {
  const SharedRun place;
  const std::string settings = "--ranks 2 --set parallel.reduce=fp8 ",
                    stop = "--inject signal:name=TERM,phase=step,step=";
  REQUIRE(place.train("whole", settings + stop + "2").code == 75);
  CHECK(reduction_state(place, "whole", 2).values > 0);
  // Of another origin: too large a scale, under which gradients saturate until mu has been halved.
  GradientReduction::State large;
  large.scale.log2_mu = 4;
  set_reduction_state(place, "whole", 2, large);
  copy_run(place, "whole", "parts");
  REQUIRE(place.train("whole", settings).code == 0);
  REQUIRE(place.train("parts", settings + stop + "4").code == 75);
  const GradientReduction::State between = reduction_state(place, "parts", 4);
  CHECK(between.scale.log2_mu == 3);
  CHECK(between.saturated > 0);
  copy_run(place, "parts", "forgetful");
  copy_run(place, "parts", "alone");
  REQUIRE(place.train("parts", settings).code == 0);
  CHECK(place.same_checkpoint("parts", "whole"));
  CHECK(place.numbers("parts", "train/loss") == place.numbers("whole", "train/loss"));
  CHECK(reduction_state(place, "parts", 6) == reduction_state(place, "whole", 6));
  // Control: a checkpoint without it, as older ones are, begins with the initial scale.
  set_reduction_state(place, "forgetful", 4, {});
  CHECK(read_text(checkpoint(place, "forgetful", 4) / manifest_file, ExitCode::Checkpoint)
            .find("gradient_reduction") == std::string::npos);
  REQUIRE(place.train("forgetful", settings).code == 0);
  CHECK_FALSE(place.same_checkpoint("forgetful", "whole"));
  // One process reduces nothing, and keeps it for those that will.
  REQUIRE(place.train("alone", "--set parallel.reduce=fp8").code == 0);
  CHECK(reduction_state(place, "alone", 6) == between);
  // What no automatic scale can be is refused.
  large.scale.log2_mu = 1000;
  set_reduction_state(place, "forgetful", 6, large);
  const CommandRun refused = place.train("forgetful", settings + "--set run.steps=7");
  CHECK(refused.code == static_cast<int>(ExitCode::Checkpoint));
  CHECK(refused.says("automatic scale of gradients: mu 2^1000"));
}
