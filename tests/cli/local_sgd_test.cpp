// Local SGD over real processes: what a round exchanges, what a stop or a death in it costs.
#include <map>

#include "cli/shared_run.h"

using namespace octet::testing;

namespace {

const std::string rounds =
    "--set parallel.zero=0 --set parallel.sync_every=3 --set checkpoint.every=3 --set evaluation.every=3 ";

std::map<std::string, std::string> files_of(const SharedRun& place, const std::string& name,
                                            const std::string& step = "00000006") {
  std::map<std::string, std::string> files;
  for (const auto& entry :
       std::filesystem::directory_iterator(place.folder.path() / name / "checkpoints" / ("step-" + step))) {
    std::ifstream in(entry.path(), std::ios::binary);
    files[entry.path().filename().string()] = std::string(std::istreambuf_iterator<char>(in), {});
  }
  return files;
}

void check_same(const SharedRun& place, const std::string& a, const std::string& b) {
  INFO(a << " and " << b);
  for (const char* key : {"train/loss", "train/grad_norm"})
    CHECK(place.numbers(a, key) == place.numbers(b, key));
  CHECK(place.numbers(a, "validation/loss", "validation") ==
        place.numbers(b, "validation/loss", "validation"));
  CHECK(place.hashes(a) == place.hashes(b));
  CHECK(files_of(place, a) == files_of(place, b));
}

}  // namespace

TEST_CASE("local SGD: repeats have the same bits, and a death or a stop inside a round costs the round") {
  for (const char* recipe : {"fp32", "fp8"}) {
    const SharedRun place(recipe);
    const std::string settings = rounds + "--set parallel.reduce=fp8 --set precision.scaling=" +
                                 (recipe == std::string("fp8") ? "delayed " : "current ") + "--ranks 2 ";
    for (const char* name : {"whole", "again"}) {
      const CommandRun run = place.train(name, settings);
      INFO(run.output);
      REQUIRE(run.code == 0);
    }
    check_same(place, "again", "whole");
    const auto files = files_of(place, "whole");
    for (const char* file :
         {"masters.safetensors", "moments.safetensors", "moments-rank-1.safetensors", "outer.safetensors"})
      CHECK(files.count(file) == 1);
    // Each rank has moments of its own.
    CHECK(files.at("moments.safetensors") != files.at("moments-rank-1.safetensors"));

    const CommandRun killed = place.train("killed", settings + "--inject kill:step=5,rank=1");
    CHECK(killed.code != 0);
    CHECK_FALSE(std::filesystem::exists(place.folder.path() / "killed/checkpoints/step-00000004"));
    REQUIRE(place.train("killed", settings).code == 0);
    check_same(place, "killed", "whole");

    for (const char* step : {"2", "5"}) {
      const std::string name = std::string("stopped") + step;
      const CommandRun stopped = place.train(
          name, settings + "--inject signal:name=TERM,phase=step,rank=1,step=" + std::string(step));
      INFO(stopped.output);
      CHECK(stopped.code == 75);
      CHECK(stopped.says("were each rank's own: they are given up"));
      const CommandRun resumed = place.train(name, settings);
      INFO(resumed.output);
      REQUIRE(resumed.code == 0);
      check_same(place, name, "whole");
    }
  }
}

TEST_CASE(
    "local SGD: every rank's share of the batch is the synchronous run's, a round's bytes are a step's") {
  const SharedRun place;
  REQUIRE(place.train("local", rounds + "--ranks 2").code == 0);
  REQUIRE(place.train("synchronous", rounds + "--ranks 2 --set parallel.sync_every=1").code == 0);
  CHECK(place.hashes("local") == place.hashes("synchronous"));
  // The first loss is of the same weights: the mean of two means of 192 tokens against one of 384.
  CHECK(std::fabs(place.numbers("local", "train/loss")[0] - place.numbers("synchronous", "train/loss")[0]) <=
        384 * 0x1p-53 * place.numbers("local", "train/loss")[0]);
  CHECK(place.numbers("local", "train/loss")[5] != place.numbers("synchronous", "train/loss")[5]);
  const auto local = place.numbers("local", "comm/gradient_bytes"),
             synchronous = place.numbers("synchronous", "comm/gradient_bytes");
  CHECK(local == std::vector<double>{0, 0, synchronous[2], 0, 0, synchronous[5]});
  CHECK(place.numbers("local", "comm/weight_bytes") == std::vector<double>(6, 0.0));
}

TEST_CASE("local SGD: another number of ranks goes on from the checkpoint, and says what it starts with") {
  const SharedRun place;
  CHECK(place.train("run", rounds + "--ranks 3 --inject signal:name=TERM,phase=step,step=5").code == 75);
  const CommandRun fewer = place.train("run", rounds + "--ranks 2");
  INFO(fewer.output);
  CHECK(fewer.code == 0);
  CHECK(fewer.says("the checkpoint holds the moments of 3 ranks, this run has 2"));
  CHECK(place.train("more", rounds + "--inject signal:name=TERM,phase=step,step=5").code == 75);
  const CommandRun more = place.train("more", rounds + "--ranks 4");
  CHECK(more.code == 0);
  CHECK(more.says("rank r goes on with those of rank r mod 1"));
  // And a synchronous run takes rank 0's, sharded or not.
  CHECK(place.train("back", rounds + "--ranks 2 --inject signal:name=TERM,phase=step,step=5").code == 75);
  CHECK(place.train("back", "--ranks 2 --set parallel.zero=1").code == 0);
  CHECK(files_of(place, "back").count("moments-rank-1.safetensors") == 0);
}

TEST_CASE("a step of one rank that is not finite is skipped by that rank, and counted by all") {
  const SharedRun place;
  const CommandRun run = place.train("run", rounds + "--ranks 2 --inject nan:step=2,rank=1");
  INFO(run.output);
  CHECK(run.code == 0);
  CHECK(place.numbers("run", "train/skipped") == std::vector<double>{0, 1, 0, 0, 0, 0});
  REQUIRE(place.train("fine", rounds + "--ranks 2").code == 0);
  // Rank 0 went on as it would have; the mean of the losses after it is another.
  CHECK(place.numbers("run", "train/loss")[1] == place.numbers("fine", "train/loss")[1]);
  CHECK(place.numbers("run", "train/loss")[2] != place.numbers("fine", "train/loss")[2]);
}
