// Data-parallel training: what does and what does not depend on the number of ranks.
#include <cmath>

#include "cli/shared_run.h"

using namespace octet::testing;

TEST_CASE("ranks together read the serial order and learn the serial curve, ZeRO changes no bit") {
  const SharedRun place;
  REQUIRE(place.train("alone", "").code == 0);
  for (const char* ranks : {"2", "3", "4"}) {
    INFO(ranks << " ranks");
    const std::string name = std::string("ranks") + ranks;
    for (const char* zero : {"0", "1"}) {
      const CommandRun run =
          place.train(name + "-" + zero, std::string("--ranks ") + ranks + " --set parallel.zero=" + zero);
      INFO(run.output);
      REQUIRE(run.code == 0);
    }
    CHECK(place.hashes(name + "-0") == place.hashes("alone"));
    for (const char* key : {"train/loss", "train/grad_norm"})
      CHECK(place.numbers(name + "-0", key) == place.numbers(name + "-1", key));
    CHECK(place.same_checkpoint(name + "-0", name + "-1"));
    // The first loss is a sum of the same 384 FP32 losses in FP64: 384 roundings of 2^-53. The first norm is
    // of gradients whose FP32 sums of 12 micro-batches may differ by 12 roundings of 2^-24.
    const std::vector<double> loss = place.numbers(name + "-1", "train/loss"),
                              alone = place.numbers("alone", "train/loss");
    CHECK(std::fabs(loss[0] - alone[0]) <= 384 * 0x1p-53 * alone[0]);
    const double norm = place.numbers(name + "-1", "train/grad_norm")[0],
                 norm_alone = place.numbers("alone", "train/grad_norm")[0];
    CHECK(std::fabs(norm - norm_alone) <= 12 * 0x1p-24 * norm_alone);
    // From then on Adam's first updates, which are the signs of gradients, may turn the smallest of these
    // roundings into 2 learning rates of a weight; what they do to the loss is measured, 1e-7, and held at
    // 1e-5.
    CHECK(largest_difference(alone, loss) < 1e-5);
    CHECK(largest_difference(place.numbers("alone", "validation/loss", "validation"),
                             place.numbers(name + "-1", "validation/loss", "validation")) < 1e-5);
  }
  // Negative control: half the batch, as ranks that do not add up would have it, is another curve.
  REQUIRE(place.train("half", "--set batch.tokens=192").code == 0);
  CHECK(largest_difference(place.numbers("alone", "train/loss"), place.numbers("half", "train/loss")) > 1e-4);
}

TEST_CASE("FP8 with delayed scales: every rank has the scales of all, and repeats have the same bits") {
  const SharedRun place("fp8");
  const std::string settings = "--set precision.scaling=delayed --set parallel.reduce=bf16 ";
  REQUIRE(place.train("alone", settings).code == 0);
  for (const char* name : {"first", "again"}) {
    const CommandRun run = place.train(name, settings + "--ranks 2");
    INFO(run.output);
    REQUIRE(run.code == 0);
  }
  REQUIRE(place.train("whole", settings + "--ranks 2 --set parallel.zero=0").code == 0);
  CHECK(place.same_checkpoint("first", "again"));
  CHECK(place.same_checkpoint("first", "whole"));
  CHECK_FALSE(place.same_checkpoint("first", "alone"));  // BF16 on the wire rounds
  // The amaxes of the first step are those of the same activations: the maximum does not depend on who saw
  // it.
  const auto amaxes = [&](const std::string& name) {
    std::vector<double> values;
    const std::vector<Json> health = place.records(name, "health");
    REQUIRE(!health.empty());
    for (const Json& site : health.front()["sites"]) values.push_back(site["amax"]);
    return values;
  };
  CHECK(largest_difference(amaxes("alone"), amaxes("first")) < 0x1p-6);
}

TEST_CASE("Muon trains on ranks whose products have one order of sums, and is refused where they may not") {
  const SharedRun place;
  const std::string muon = "--set optimizer.name=muon --set parallel.zero=0 ";
  const CommandRun refused = place.train("refused", muon + "--set run.deterministic=false --ranks 2");
  INFO(refused.output);
  CHECK(refused.code == 2);
  CHECK(refused.says("masters drift apart"));
  REQUIRE(place.train("one", muon + "--set run.deterministic=true").code == 0);
  const CommandRun two = place.train("two", muon + "--set run.deterministic=true --ranks 2");
  INFO(two.output);
  REQUIRE(two.code == 0);
  // As AdamW's above: the norm's roundings are the ranks' only difference.
  CHECK(largest_difference(place.numbers("one", "train/loss"), place.numbers("two", "train/loss")) < 1e-5);
}

TEST_CASE("gradients in shards: 1, 2, 3 and 4 ranks compute the same bits, a move between them included") {
  const SharedRun place;
  const std::string shards = "--set parallel.zero=2 ";
  REQUIRE(place.train("alone", shards).code == 0);
  for (const char* ranks : {"on2", "on3", "on4"}) {
    const CommandRun run = place.train(ranks, shards + "--ranks " + std::string(1, ranks[2]));
    INFO(run.output);
    REQUIRE(run.code == 0);
    CHECK(place.same_run(ranks, "alone"));
  }
  REQUIRE(place.train("late", shards + "--ranks 2 --device interpreter").code == 0);
  CHECK(place.same_run("late", "alone"));  // a device whose operations run late
  const std::string stop = " --inject signal:name=TERM,phase=step,step=";
  CHECK(place.train("moved", shards + "--ranks 4" + stop + "2").code == 75);
  CHECK(place.train("moved", shards + "--ranks 2" + stop + "4").code == 75);
  CHECK(place.train("moved", shards + stop + "5").code == 75);
  CHECK(place.train("moved", shards + "--ranks 3").code == 0);
  CHECK(place.same_run("moved", "alone"));

  // Negative control: ranks that first add up their own micro-batches.
  REQUIRE(place.train("own", "--ranks 2 --set parallel.zero=1").code == 0);
  CHECK(place.hashes("own") == place.hashes("alone"));
  CHECK_FALSE(place.same_run("own", "alone"));
}

TEST_CASE("gradients in shards: every recipe has the same bits on 1 and 2 ranks") {
  for (const char* recipe : {"bf16", "fp8"}) {
    const SharedRun place(recipe);
    std::vector<std::string> variants = {
        "--set model.layers=3 --set model.tied_head=true --set model.qkv_bias=true "};
    if (recipe == std::string("bf16")) variants.push_back("--set precision.weight_gradient=bf16 ");
    if (recipe == std::string("fp8"))
      for (const char* scales :
           {"--set precision.scaling=delayed --set precision.grad.rounding=stochastic ",
            "--set precision.scaling=quantile --set precision.weight.scaling=quantile --set "
            "precision.grad.scaling=following --set precision.adaptive.above=0.01 "})
        variants.push_back(scales);
    for (const std::string& variant : variants) {
      INFO(recipe << ", " << variant);
      for (const char* ranks : {"1", "2"})
        REQUIRE(place
                    .train("on" + std::string(ranks),
                           "--overwrite --set parallel.zero=2 " + variant + "--ranks " + ranks)
                    .code == 0);
      CHECK(place.same_run("on1", "on2"));
    }
  }
}

TEST_CASE("masters in every format and clipped updates have the same bits on 1, 2 and 3 ranks") {
  for (const auto& [recipe, states] : {std::pair{"bf16", "bf16_stochastic"},
                                       {"fp8", "bf16_kahan"},
                                       {"fp8", "fp16_scaled"},
                                       {"fp8", "bf16_remainder"}}) {
    INFO(states);
    const SharedRun place(recipe);
    const std::string settings =
        std::string("--set parallel.zero=2 --set optimizer.update_clipping=true --set precision.master=") +
        states + " --set precision.moments.second=" + (states[0] == 'f' ? "fp16 " : "e4m3 ") +
        "--set precision.moments.first=e4m3 " +
        (states[0] == 'f' ? "" : "--set precision.moments.range_expansion=true ");
    for (const char* ranks : {"1", "2", "3"}) {
      const CommandRun run = place.train(std::string("on") + ranks, settings + "--ranks " + ranks);
      INFO(run.output);
      REQUIRE(run.code == 0);
    }
    CHECK(place.same_run("on1", "on2"));
    CHECK(place.same_run("on1", "on3"));
    // Negative control: without clipping it is another run.
    REQUIRE(place.train("plain", settings + "--set optimizer.update_clipping=false").code == 0);
    CHECK_FALSE(place.same_run("on1", "plain"));
  }
}

TEST_CASE("FP8 attention: 1, 2 and 4 ranks have the same scales and the same bits") {
  const SharedRun place("fp8");
  const std::string settings =
      "--set precision.attention=fp8 --set precision.scaling=delayed --set parallel.zero=2 ";
  for (const char* ranks : {"1", "2", "4"})
    REQUIRE(place.train(std::string("on") + ranks, settings + "--ranks " + ranks).code == 0);
  CHECK(place.same_run("on1", "on2"));
  CHECK(place.same_run("on1", "on4"));
  const std::vector<Json> health = place.records("on1", "health");
  REQUIRE(!health.empty());
  size_t cores = 0;
  for (const Json& site : health.back()["sites"])
    if (site["name"].get<std::string>().find(".core.") != std::string::npos) {
      ++cores;
      CHECK(site["amax"].get<double>() > 0);
    }
  CHECK(cores == 5);
}

TEST_CASE("with one micro-batch a rank, gradients in shards or whole are the same sums") {
  const SharedRun place;
  for (const char* zero : {"0", "1", "2"})
    REQUIRE(place
                .train(std::string("zero") + zero,
                       std::string("--ranks 4 --set batch.micro=6 --set parallel.zero=") + zero)
                .code == 0);
  CHECK(place.same_run("zero0", "zero2"));
  CHECK(place.same_run("zero1", "zero2"));
}

TEST_CASE("gradients in shards travel in BF16 and FP8, rounded, and a repeat has the same bits") {
  const SharedRun place;
  REQUIRE(place.train("fp32", "--ranks 2 --set parallel.zero=2").code == 0);
  for (const char* wire : {"bf16", "fp8"}) {
    for (const char* name : {"first", "again"})
      REQUIRE(
          place
              .train(name,
                     std::string("--overwrite --ranks 2 --set parallel.zero=2 --set parallel.reduce=") + wire)
              .code == 0);
    CHECK(place.same_run("first", "again"));
    CHECK_FALSE(place.same_run("first", "fp32"));
    CHECK(place.numbers("first", "train/loss")[0] == place.numbers("fp32", "train/loss")[0]);
  }
}

TEST_CASE("4 ranks then 2 then 1 then 3 go on with the same run") {
  const SharedRun place;
  REQUIRE(place.train("alone", "").code == 0);
  const std::string stop = " --inject signal:name=TERM,phase=step,step=";
  CHECK(place.train("moved", "--ranks 4" + stop + "2").code == 75);
  CHECK(place.train("moved", "--ranks 2" + stop + "4").code == 75);
  CHECK(place.train("moved", stop + "5").code == 75);
  const CommandRun last = place.train("moved", "--ranks 3");
  INFO(last.output);
  CHECK(last.code == 0);
  CHECK(place.hashes("moved") == place.hashes("alone"));
  CHECK(largest_difference(place.numbers("alone", "train/loss"), place.numbers("moved", "train/loss")) <
        1e-5);
  const CommandRun five = place.train("moved", "--overwrite --ranks 5");
  CHECK(five.code == 2);
  CHECK(five.says("5 ranks do not divide the 12 micro-batches of a step"));
  CHECK(five.says("ranks that work: 1, 2, 3, 4, 6, 12"));
}

TEST_CASE("a signal to one rank stops all after the same step, with a whole checkpoint") {
  const SharedRun place;
  REQUIRE(place.train("whole", "--ranks 2").code == 0);
  const CommandRun stopped =
      place.train("run", "--ranks 2 --inject signal:name=TERM,phase=step,step=3,rank=1");
  INFO(stopped.output);
  CHECK(stopped.code == 75);
  CHECK(stopped.says("SIGTERM"));
  const auto steps = place.numbers("run", "step");
  REQUIRE(!steps.empty());
  CHECK(steps.back() == 3);
  REQUIRE(place.train("run", "--ranks 2").code == 0);
  CHECK(place.same_checkpoint("run", "whole"));
}
