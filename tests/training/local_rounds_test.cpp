// A run whose rank trains alone between outer steps, stopped anywhere and resumed.
#include "training/tiny_run.h"

using namespace octet;
using namespace octet::testing;

namespace {

std::vector<std::string> rounds_of_four(std::vector<std::string> more = {}) {
  for (const char* setting : {"parallel.zero=0", "parallel.sync_every=4", "run.steps=12",
                              "checkpoint.every=4", "evaluation.every=4"})
    more.emplace_back(setting);
  return more;
}

}  // namespace

TEST_CASE("local SGD: stopped before any step, the round is given up and the resumed run has the same bits") {
  const TinyData data;
  for (const std::vector<std::string>& recipe :
       {std::vector<std::string>{"precision.recipe=bf16"},
        {"precision.scaling=delayed", "precision.weight.scaling=delayed",
         "precision.grad.rounding=stochastic", "checkpoint.asynchronous=true"},
        {"checkpoint.every=0"}}) {
    std::vector<std::string> settings = rounds_of_four();
    settings.insert(settings.end(), recipe.begin(), recipe.end());
    TinyRun whole(data, settings);
    REQUIRE(whole.go().code == ExitCode::Success);
    for (int stop_before = 1; stop_before <= 12; ++stop_before) {
      INFO(recipe.front() << ", stopped before step " << stop_before);
      TinyRun parts(data, settings);
      const TrainResult first = parts.go({fmt::format("signal:name=TERM,phase=step,step={}", stop_before)});
      CHECK(first.code == ExitCode::Stopped);
      const int64_t round = (stop_before - 1) / 4 * 4;
      // The state of a round is not kept while that of the round before is still being written.
      const bool may_lag = parts.request.config.checkpoint.asynchronous && round >= 8;
      CHECK((first.step == round || (may_lag && first.step == round - 4)));
      CHECK(std::filesystem::exists(parts.checkpoint(first.step)));
      CHECK(parts.go().code == ExitCode::Success);
      CHECK(parts.curve() == whole.curve());
      CHECK(files_in(parts.checkpoint(12)) == files_in(whole.checkpoint(12)));
    }
  }
}

TEST_CASE("local SGD alone: the first round is the synchronous run's, then the outer step shows") {
  const TinyData data;
  TinyRun local(data, rounds_of_four()), synchronous(data, rounds_of_four({"log.every=1"}));
  synchronous.request.config.parallel.sync_every = 1;
  local.go();
  synchronous.go();
  const auto a = local.curve(), b = synchronous.curve();
  REQUIRE(a.size() == 12);
  for (size_t step = 0; step < 12; ++step) CHECK((a[step] == b[step]) == (step < 4));
  CHECK(local.records("validation").size() == 3);
}

TEST_CASE("local SGD: a save that is asked for inside a round is made when it ends") {
  const TinyData data;
  TinyRun run(data, rounds_of_four({"checkpoint.every=0"}));
  run.request.config.checkpoint.every = 0;
  CHECK(run.go({"signal:name=USR1,phase=step,step=6"}).code == ExitCode::Success);
  CHECK(std::filesystem::exists(run.checkpoint(8)));
  for (const int64_t step : {4, 5, 6, 7}) CHECK_FALSE(std::filesystem::exists(run.checkpoint(step)));
}

TEST_CASE("local SGD on a device that runs ahead has the bits of one that does not") {
  const TinyData data;
  TinyRun early(data, rounds_of_four()), late(data, rounds_of_four());
  late.request.device = "interpreter";
  REQUIRE(early.go().code == ExitCode::Success);
  REQUIRE(late.go().code == ExitCode::Success);
  CHECK(early.curve() == late.curve());
  CHECK(files_in(early.checkpoint(12)) == files_in(late.checkpoint(12)));
}

TEST_CASE("local SGD after a synchronous run begins with no velocity, and goes back to one without it") {
  const TinyData data;
  TinyRun run(data, rounds_of_four());
  run.request.config.parallel.sync_every = 1;
  CHECK(run.go({"signal:name=TERM,phase=step,step=6"}).code == ExitCode::Stopped);  // step 5: no round's end
  CHECK_FALSE(std::filesystem::exists(run.checkpoint(5) / "outer.safetensors"));
  run.request.config.parallel.sync_every = 4;
  CHECK(run.go({"signal:name=TERM,phase=step,step=10"}).code == ExitCode::Stopped);
  CHECK(std::filesystem::exists(run.checkpoint(8) / "outer.safetensors"));
  run.request.config.parallel.sync_every = 1;
  CHECK(run.go().code == ExitCode::Success);
  CHECK(run.records("step").size() == 12);
  bool recorded = false;
  for (const std::string& note : run.events("resume"))
    recorded = recorded || note.find("/parallel/sync_every") != std::string::npos;
  CHECK(recorded);
}
