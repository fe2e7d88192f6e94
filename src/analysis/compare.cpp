#include "analysis/compare.h"

#include <fmt/format.h>

#include <algorithm>

#include "analysis/planned_run.h"
#include "analysis/report.h"
#include "base/log.h"
#include "base/text.h"
#include "numerics/recipes.h"
#include "training/progress.h"
#include "training/state_injection.h"
#include "training/train.h"

namespace octet {
namespace {

namespace fs = std::filesystem;

PlannedRun plan_run(const CompareRequest& request, const std::string& variant, int seed_index) {
  PlannedRun run{request.config, {}, request.inject};
  run.config.precision = recipe_of_variant(request.config, variant);
  if (variant != request.config.precision.name) {  // these belong to the section
    run.config.precision_schedule.clear();
    run.config.fallback = {};
  }
  run.config.run.seed += static_cast<uint64_t>(seed_index);
  const std::string name =
      seed_index == 0 ? variant : fmt::format("{}-seed-{}", variant, run.config.run.seed);
  run.folder = fs::path(request.config.run.output) / name;
  run.config.run.name = request.config.run.name + "-" + name;
  run.config.run.output = run.folder.string();
  return run;
}

// octet train's hints name options that compare has not.
TrainResult train_or_explain(const PlannedRun& run, const std::string& device) {
  try {
    TrainRequest request;
    request.config = run.config;
    request.device = device;
    request.inject = run.inject;
    return train(request);
  } catch (const Error& error) {
    if (error.hint().find("--overwrite") == std::string::npos &&
        error.hint().find("--accept-changed-data") == std::string::npos)
      throw;
    throw Error(error.code(), error.what(), afresh(run));
  }
}

// 0 when the run is finished; numerics failures count as finished: a diverged variant is a result.
int train_run(const PlannedRun& run, const std::string& device) {
  Progress().note(fmt::format("\n== {} ==", run.folder.filename().string()));
  const TrainResult result = train_or_explain(run, device);
  if (result.code == ExitCode::Success || result.code == ExitCode::Numerics) return 0;
  if (result.code == ExitCode::Stopped)
    Progress().note(
        fmt::format("stopped at step {} ({}), saved; the same command goes on", result.step, result.reason));
  return static_cast<int>(result.code);
}

// The worst of several verdicts, in this order; a script sees the most serious one.
int worst(const std::vector<Comparison>& comparisons) {
  const Verdict order[] = {Verdict::Diverged, Verdict::Diverging, Verdict::Degraded, Verdict::Inconclusive};
  for (Verdict verdict : order) {
    for (const Comparison& c : comparisons) {
      if (c.verdict == verdict) return exit_code_of(verdict);
    }
  }
  return 0;
}

int judge_and_report(ReportInput input, const fs::path& folder) {
  const NoiseBand band = noise_band(input.baseline_seeds);
  Progress().note("");
  for (const RunHistory& variant : input.variants) {
    require_comparable(input.baseline, variant);
    input.comparisons.push_back(compare_runs(input.baseline, variant, band));
    const Comparison& c = input.comparisons.back();
    Progress().note(fmt::format("verdict: {} - {} against {}: {}", name_of(c.verdict), variant.name,
                                input.baseline.name, c.sentence));
  }
  write_report(input, folder);
  Progress().note(fmt::format("report:  {}\n         {}", (folder / "report.html").string(),
                              (folder / "report.json").string()));
  return worst(input.comparisons);
}

// A run that goes on, or was killed, is judged by what it has logged so far.
RunHistory read_and_say(const fs::path& folder) {
  RunHistory run = read_run_history(folder);
  const std::string state = run.status ? run.status->state : "";
  if (state == "running" || state == "killed")
    log_warning("{}: {}; the comparison sees what is logged so far", escape_control(folder.string()),
                state == "running" ? "still running" : describe_state(run));
  return run;
}

}  // namespace

Recipe recipe_of_variant(const RunConfig& config, const std::string& variant) {
  return config.precision.name == variant ? config.precision : make_recipe(variant);
}

int compare(const CompareRequest& request) {
  if (request.variants.size() < 2) {
    throw Error(ExitCode::Usage,
                fmt::format("--variants names {} recipe(s), a comparison needs at least two",
                            request.variants.size()),
                "for example --variants bf16,fp8; the first is the baseline");
  }
  for (size_t i = 0; i < request.variants.size(); ++i) {
    recipe_of_variant(request.config,
                      request.variants[i]);  // an unknown name must fail before anything is trained
    if (std::count(request.variants.begin(), request.variants.end(), request.variants[i]) > 1) {
      throw Error(ExitCode::Usage, fmt::format("--variants names {} twice", request.variants[i]),
                  "name each recipe once");
    }
  }
  parse_state_injections(request.inject);  // refuses
  std::vector<PlannedRun> runs;
  for (const std::string& variant : request.variants) runs.push_back(plan_run(request, variant, 0));
  for (int seed = 1; seed < request.seeds; ++seed)
    runs.push_back(plan_run(request, request.variants.front(), seed));
  for (const PlannedRun& run : runs) require_same_run(run);  // before anything is trained
  for (const PlannedRun& run : runs) {
    if (const int code = train_run(run, request.device); code != 0) return code;
  }
  ReportInput input;
  input.title = fmt::format("{}: {} against {}", request.config.run.name,
                            fmt::join(request.variants.begin() + 1, request.variants.end(), ", "),
                            request.variants.front());
  input.baseline = read_run_history(runs.front().folder);
  for (size_t i = 1; i < request.variants.size(); ++i)
    input.variants.push_back(read_run_history(runs[i].folder));
  if (request.seeds > 1) {
    input.baseline_seeds.push_back(input.baseline);
    for (size_t i = request.variants.size(); i < runs.size(); ++i)
      input.baseline_seeds.push_back(read_run_history(runs[i].folder));
  }
  return judge_and_report(std::move(input), request.config.run.output);
}

int compare_finished(const fs::path& baseline, const fs::path& variant, const fs::path& output) {
  ReportInput input;
  input.baseline = read_and_say(baseline);
  input.variants.push_back(read_and_say(variant));
  RunHistory& other = input.variants.front();
  if (other.name == input.baseline.name)
    for (RunHistory* run : {&input.baseline, &other})
      run->name = fs::weakly_canonical(run->folder).parent_path().filename().string() + "/" + run->name;
  require_comparable(input.baseline, other);  // before a folder is made
  input.title = fmt::format("{} against {}", other.name, input.baseline.name);
  fs::path folder = output;
  if (folder.empty()) {
    std::string name = fmt::format("{}-against-{}", other.name, input.baseline.name);
    std::replace(name.begin(), name.end(), '/', '-');
    folder = fs::proximate(fs::weakly_canonical(variant).parent_path() / name);
  }
  fs::create_directories(folder);
  return judge_and_report(std::move(input), folder);
}

}  // namespace octet
