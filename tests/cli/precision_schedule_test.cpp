// Runs of several ranks whose precision changes.
#include "cli/shared_run.h"

using namespace octet::testing;

namespace {

const std::string bf16 = R"({"recipe": "bf16", "moments": {"first": "e4m3", "second": "e5m2"}})";
const std::string delayed = R"(--set precision.scaling=delayed --set precision.weight.scaling=delayed )";

std::string stage(int from) {
  return R"(--set 'precision_schedule=[{"from": )" + std::to_string(from) + R"(, "precision": )" + bf16 +
         "}]' ";
}

// Stopped after step 4 and gone on with by hand, on the same ranks.
void stop_and_go_on(const SharedRun& place, const std::string& name, const std::string& settings) {
  const CommandRun first =
      place.train(name, delayed + settings + "--inject signal:name=TERM,phase=step,step=4,rank=1");
  INFO(first.output);
  REQUIRE(first.code == 75);
  const CommandRun second = place.train(name, settings + "--set 'precision=" + bf16 + "'");
  INFO(second.output);
  REQUIRE(second.code == 0);
}

}  // namespace

TEST_CASE("two ranks change the precision together, and as after a stop by hand, sharded or not") {
  const SharedRun place("fp8");
  for (const char* zero : {"0", "1", "2"}) {
    INFO("zero " << zero);
    const std::string settings = std::string("--ranks 2 --set parallel.zero=") + zero + " ",
                      scheduled = std::string("scheduled") + zero, by_hand = std::string("by-hand") + zero;
    const CommandRun run = place.train(scheduled, delayed + settings + stage(4));
    INFO(run.output);
    REQUIRE(run.code == 0);
    stop_and_go_on(place, by_hand, settings);
    CHECK(place.same_run(scheduled, by_hand));
    const std::vector<double> shares = place.numbers(scheduled, "perf/fp8_flop_share");
    CHECK(shares[3] > 0.3);
    CHECK(shares[4] == 0);
  }
  // The control: without the change another run.
  REQUIRE(place.train("plain", delayed + "--ranks 2 --set parallel.zero=0").code == 0);
  CHECK_FALSE(place.same_run("plain", "scheduled0"));
}

TEST_CASE("local SGD changes the precision between two rounds") {
  const SharedRun place("fp8");
  const std::string settings =
      "--ranks 2 --set parallel.zero=0 --set parallel.sync_every=2 --set evaluation.every=2 ";
  const CommandRun run = place.train("scheduled", delayed + settings + stage(4));
  INFO(run.output);
  REQUIRE(run.code == 0);
  stop_and_go_on(place, "by-hand", settings);
  CHECK(place.same_run("scheduled", "by-hand"));
  const CommandRun inside = place.train("inside", delayed + settings + stage(3));
  CHECK(inside.code == 2);
  CHECK(inside.says("/precision_schedule/0/from: found 3"));
}

TEST_CASE("all ranks decide the same about a fallback, and one process too") {
  const SharedRun place("fp8");
  const std::string settings =
      delayed + "--set precision.smooth_swiglu=none --set parallel.zero=2 --set health.every=1 " +
      "--set precision.fallback.saturated=0.001 --inject align:step=4,hidden=100000 ";
  std::vector<Json> alone;
  for (const char* ranks : {"1", "2", "3"}) {
    const std::string name = std::string("on") + ranks;
    const CommandRun run =
        place.train(name, settings + (*ranks == '1' ? "" : std::string("--ranks ") + ranks));
    INFO(run.output);
    REQUIRE(run.code == 0);
    std::vector<Json> fallbacks;
    for (const Json& event : place.records(name, "event"))
      if (event["event"] == "fallback") fallbacks.push_back(event);
    if (*ranks == '1') alone = fallbacks;
    CHECK(fallbacks == alone);
    REQUIRE(!fallbacks.empty());
    CHECK(fallbacks.back()["linear"] == "blocks.0.ffn.down");
    CHECK(fallbacks.back()["step"] == 4);
  }
  CHECK(place.same_run("on1", "on2"));
  CHECK(place.same_run("on1", "on3"));
}
