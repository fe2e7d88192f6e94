#include "analysis/injection_experiment.h"

#include <cmath>
#include <filesystem>
#include <set>

#include "base/files.h"
#include "catch.h"
#include "config/document.h"
#include "error_of.h"

using namespace octet;

namespace {

const char* base = R"("base": {
  "run": {"steps": 200}, "model": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "ffn_width": 48, "context": 32},
  "data": {"train": ["data/train_*.bin"]}, "batch": {"tokens": 128, "micro": 2}})";

Sweep sweep_of(const std::string& rest) {
  return parse_sweep(std::string("{\"name\": \"grid\", ") + base + ", " + rest + "}", "sweep.json");
}
template <class Call>
std::string complaint(Call&& call) {
  return error_of(call).what();
}
std::string problems_of(const std::string& text) {
  return error_of([&] { parse_sweep(text, "sweep.json"); }).what();
}

// Losses that stay at `loss` but for what `bend` says.
CellOutcome cell_with(double loss, double bend = 0) {
  CellOutcome outcome;
  outcome.done = true;
  outcome.history.emplace();
  outcome.history->name = "<cell>";
  for (int64_t step = 1; step <= 200; ++step) {
    StepRecord record;
    record.step = step;
    record.loss = loss + (step > 100 ? bend : 0) + (step % 2 == 0 ? 0.01 : -0.01);
    outcome.history->steps.push_back(record);
  }
  return outcome;
}

}  // namespace

TEST_CASE("a sweep is the grid of its axes, the last fastest, and a group is everything but the seed") {
  const Sweep sweep = sweep_of(R"("variants": {"bf16": ["precision.recipe=bf16"],
      "plain": ["precision.smooth_swiglu=none", "precision.recipe=fp8"]},
      "axes": {"schedule.learning_rate": [1e-3, 4e-3], "run.seed": [1, 2, 3]})");
  REQUIRE(sweep.cells.size() == 12);
  CHECK(sweep.groups().size() == 4);
  CHECK(sweep.folder == "runs/grid");
  const SweepCell& cell = sweep.cells[7];
  CHECK(cell.name == "plain.learning_rate-0.001.seed-2");
  CHECK(cell.group == "plain, learning_rate 0.001");
  CHECK(cell.config.run.seed == 2);
  CHECK(cell.config.schedule.learning_rate == 1e-3);
  CHECK(cell.config.run.output == "runs/grid/cells/plain.learning_rate-0.001.seed-2");
  // A recipe starts its section afresh, so it comes first whatever the order of the list.
  CHECK(cell.config.precision.name == "fp8");
  CHECK(cell.config.precision.smooth_swiglu == SmoothSwiGLU::None);
  CHECK(sweep.cells[0].config.precision.name == "bf16");
  std::set<std::string> folders;
  for (const SweepCell& one : sweep.cells) folders.insert(one.config.run.output);
  CHECK(folders.size() == 12);
}

TEST_CASE("cells whose values look alike in a folder's name have folders of their own") {
  const Sweep sweep = sweep_of(R"("axes": {"data.train": [["a b"], ["a/b"]]})");
  REQUIRE(sweep.cells.size() == 2);
  CHECK(sweep.cells[0].config.run.output != sweep.cells[1].config.run.output);
}

TEST_CASE("everything that is wrong with a sweep is said at once, with its key and what is allowed") {
  const std::string text = problems_of(R"({"name": "a b", "bse": "x", "variants": {"one": ["recipe"]},
    "axes": {"run.seed": [], "schedule.learning_rate": [1, 1], "seed": [1], "run.output": ["x"]}})");
  for (const char* part :
       {"8 problems", "/name", "did you mean \"base\"?", "/base: missing", "/variants/one/0",
        "/axes/run.seed", "/axes/schedule.learning_rate/1: 1 is there twice", "/axes/seed", "section.key",
        "/axes/run.output", "line 2, column"}) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  }
}

TEST_CASE("a run's configuration is no sweep, and one sentence says so") {
  const std::string text = problems_of(R"({"run": {"name": "a"}, "model": {"preset": "llama"}, "data": {}})");
  CHECK(text.find("/model: a run has this, a sweep has a \"base\" instead") != std::string::npos);
  CHECK(text.find("unknown key") == std::string::npos);
}

TEST_CASE("a sweep's cells have folders of their own, and an override cannot give them one") {
  CHECK(problems_of(R"({"base": {}, "set": ["run.output=x"], "axes": {"run.seed": [1, 2]}})")
            .find("/set/0: run.output=x: every cell has a name and a folder of its own") !=
        std::string::npos);
  CHECK(problems_of(R"({"base": {}, "variants": {"a": ["run.name=x"], "b": []}})")
            .find("run.name=x: every cell has a name") != std::string::npos);
  CHECK(complaint([] {
          parse_sweep(R"({"base": {}, "axes": {"run.seed": [1, 2]}})", "t", {"run.output=x"}, "");
        }).find("--set: run.output=x: every cell") != std::string::npos);
}

TEST_CASE("each cell's configuration is checked, and what is wrong with many is said once") {
  const std::string text =
      complaint([] { sweep_of(R"("axes": {"precision.recipe": ["bf16", "fp9"], "run.seed": [1, 2, 3]})"); });
  CHECK(text.find("cell recipe-fp9.seed-1 and 2 more") != std::string::npos);
  CHECK(text.find("/precision/recipe") != std::string::npos);
  CHECK(text.find("2 problems") == std::string::npos);
  const std::string twice =
      complaint([] { sweep_of(R"("variants": {"a": ["run.seed=1"], "b": []}, "axes": {"run.seed": [1]})"); });
  CHECK(twice.find("which is an axis too") != std::string::npos);
  CHECK(complaint([] { sweep_of("\"axes\": {}"); }).find("nothing to vary") != std::string::npos);
}

TEST_CASE(
    "a report groups seeds, counts failures with their interval and pairs cells with their BF16 twins") {
  const Sweep sweep =
      sweep_of(R"("variants": {"bf16": ["precision.recipe=bf16"], "fp8": ["precision.recipe=fp8"]},
      "axes": {"run.seed": [1, 2]})");
  std::vector<CellOutcome> outcomes;
  outcomes.push_back(cell_with(2.0));
  outcomes.push_back(cell_with(2.1));
  outcomes.push_back(cell_with(2.05));
  outcomes.push_back(cell_with(2.1, 1.0));
  const SweepReport report = report_of(sweep, outcomes);
  REQUIRE(report.groups.size() == 2);
  CHECK(report.best == "bf16.seed-1");
  const GroupRow &bf16 = report.groups[0], &fp8 = report.groups[1];
  CHECK(bf16.failed == 0);
  CHECK(bf16.gap.mean == 0);
  CHECK(bf16.final_loss.mean == Approx(2.05).margin(0.005));
  CHECK(bf16.final_loss.deviation == Approx(0.1 / std::sqrt(2.0)).margin(0.001));
  CHECK(fp8.done == 2);
  CHECK(fp8.failed == 1);
  CHECK(fp8.fail_rate.low == Approx(0.0945).margin(0.0005));  // Wilson, 1 of 2
  CHECK(fp8.fail_rate.high == Approx(0.9055).margin(0.0005));
  CHECK(report.cells[2].gap == Approx(0.05).margin(1e-9));  // to its own seed, not to the best
  CHECK(report.cells[3].run.why.find("above") != std::string::npos);

  const std::string html = render_html(report);
  CHECK(html.find("<svg") != std::string::npos);
  CHECK(html.find("http") == std::string::npos);
  CHECK(html.find("<script") == std::string::npos);
  CHECK(html.find("fp8.seed-2") != std::string::npos);
  CHECK(render_json(report)["groups"][1]["failed"] == 1);
  CHECK(table(report).find("50 % [9, 91]") != std::string::npos);
}

// (K4)
TEST_CASE("a report says of each injected cell when it was warned and when it spiked") {
  const Sweep sweep = sweep_of(R"("axes": {"run.seed": [1, 2]}, "inject": ["align:step=50"])");
  std::vector<CellOutcome> outcomes;
  outcomes.push_back(cell_with(2.0));
  outcomes.push_back(cell_with(2.0));
  RunHistory& run = *outcomes[0].history;
  run.health.push_back({60, {}, {}});
  run.events.push_back({40, "warning", "of something else"});
  run.events.push_back({50, "inject", "align"});
  run.events.push_back({60, "warning", "aligned (cosine 1); a remedy"});
  run.events.push_back({75, "spike", "loss 9"});
  const SweepReport report = report_of(sweep, outcomes);
  const std::string lead = "warned at step 60, 15 steps before the first spike (step 75): aligned";
  CHECK(table(report).find(report.cells[0].cell->name + ": " + lead + "\n") != std::string::npos);
  CHECK(table(report).find(report.cells[1].cell->name + ": no spike\n") != std::string::npos);
  CHECK(render_html(report).find("<td class=\"text\">" + lead + "</td><td class=\"text\">finished</td>") !=
        std::string::npos);
  const Json cells = render_json(report)["cells"];
  CHECK(cells[0]["first_warning_step"] == 60);
  CHECK(cells[0]["first_spike_step"] == 75);
  CHECK(cells[0]["health_watched"] == true);
  CHECK(cells[1]["first_spike_step"].is_null());
  CHECK(cells[1]["health_watched"] == false);
}

TEST_CASE("a cell that could not be trained is named and is no failure of its numbers") {
  const Sweep sweep = sweep_of(R"("axes": {"run.seed": [1, 2]})");
  std::vector<CellOutcome> outcomes(2);
  outcomes[0] = cell_with(2.0);
  outcomes[1].error = "exit code 3: <no shards>";
  const SweepReport report = report_of(sweep, outcomes);
  CHECK(report.groups[0].done == 1);
  CHECK(report.groups[0].failed == 0);
  CHECK(report.groups[0].errors == 1);
  CHECK(render_html(report).find("&lt;no shards&gt;") != std::string::npos);
  CHECK(table(report).find("not trained: exit code 3") != std::string::npos);
}

TEST_CASE("every sweep that ships can be read, and its cells are valid") {
  namespace fs = std::filesystem;
  struct InSource {
    fs::path before = fs::current_path();
    InSource() { fs::current_path(OCTET_SOURCE_DIR); }
    ~InSource() { fs::current_path(before); }
  } const in_source;  // paths in sweeps are relative to where one runs them
  int sweeps = 0;
  for (const auto& entry : fs::directory_iterator("configs")) {
    if (entry.path().extension() != ".json" ||
        !read_document(read_text(entry.path(), ExitCode::Usage), "t").root.contains("base"))
      continue;
    INFO(entry.path());
    CHECK(load_sweep(entry.path().string()).cells.size() > 1);
    ++sweeps;
  }
  CHECK(sweeps >= 2);
}

TEST_CASE("an injected sweep says of each group whether it breaks, by the gap to its twins") {
  const std::string fp8 = R"(["precision.recipe=fp8", "precision.smooth_swiglu=)";
  Sweep sweep = sweep_of(R"("variants": {"bf16": ["precision.recipe=bf16"], "plain": )" + fp8 +
                         R"(none"], "dual": )" + fp8 + R"(dual"], "down": )" + fp8 + R"(bf16"]},
      "axes": {"run.seed": [1, 2]}, "inject": ["align:step=91", "align:step=101"])");
  double reference = 0;
  const auto verdicts = [&](double plain, double plain_2, double dual, double down) {
    std::vector<CellOutcome> outcomes;
    for (const double gap : {0.0, 0.0, plain, plain_2, dual, dual, down, down})
      outcomes.push_back(cell_with(2.0 + 0.01 * gap, reference + gap));  // a hundredth was there before
    const SweepReport report = report_of(sweep, outcomes);
    for (size_t i = 2; i < report.cells.size(); ++i) {
      const double added = std::vector<double>{plain, plain_2, dual, dual, down, down}[i - 2];
      CHECK(report.cells[i].injected == Approx(added).margin(1e-12));
    }
    std::string text;
    for (const GroupRow& group : report.groups) text += describe(injection_verdict(report, group)) + "|";
    return text;
  };
  CHECK(verdicts(0.11, 0.3, 0.02, 0.01) == "reference|BREAKS|holds|holds|");
  CHECK(verdicts(0.11, 0.09, 0.04, 0.03) ==
        "reference|BREAKS for some seeds|worse, not broken|worse, not broken|");
  CHECK(verdicts(0.02, 0.029, -0.2, 0.019) == "reference|holds|holds|holds|");
  reference = 0.26;  // BF16's own loss
  CHECK(verdicts(0.3, 0.3, 0.02, 0.01) ==
        "reference|its BF16 twin broke: says nothing of formats|its BF16 twin broke: says nothing of formats|"
        "its BF16 twin broke: says nothing of formats|");
  // A twin that failed says nothing either, least of all that FP8 breaks.
  reference = std::numeric_limits<double>::quiet_NaN();
  std::vector<CellOutcome> all_failed;
  for (int i = 0; i < 8; ++i) all_failed.push_back(cell_with(2.0, reference));
  const SweepReport none_left = report_of(sweep, all_failed);
  for (size_t g = 1; g < 4; ++g)
    CHECK(injection_verdict(none_left, none_left.groups[g]) == InjectionVerdict::ReferenceBroke);
  reference = 0.24;
  CHECK(verdicts(0.02, 0.029, -0.2, 0.019) == "reference|holds|holds|holds|");
  const std::string text = complaint([] {
    sweep_of(
        R"("axes": {"run.seed": [1]}, "inject": ["align:step=0", "nan:step=3", "align:step=5,neuron=48"])");
  });
  CHECK(text.find("/inject/0") != std::string::npos);
  CHECK(text.find("/inject/1") != std::string::npos);
}
