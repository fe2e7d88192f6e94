#include "analysis/injection_experiment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/files.h"
#include "config/document.h"
#include "numerics/recipes.h"

namespace octet {
namespace {

Json variants() {
  const auto fp8 = [](const char* scaling, const char* smooth) {
    return Json::array({"precision.recipe=fp8", std::string("precision.scaling=") + scaling,
                        std::string("precision.smooth_swiglu=") + smooth});
  };
  Json list = Json::object();
  list["bf16"] = Json::array({"precision.recipe=bf16"});
  list["fp8-plain"] = fp8("delayed", "none");
  list["fp8-dual"] = fp8("delayed", "dual");
  list["fp8-channel"] = fp8("delayed", "channel");
  list["fp8-bf16-down"] = fp8("delayed", "bf16");
  return list;
}

}  // namespace

Sweep injection_experiment(const std::string& path, const InjectionOptions& options) {
  const Json file = read_document(read_text(path, ExitCode::Usage, 1u << 20), path).root;
  if (file.is_object() && file.contains("base")) {
    if (!options.fault.empty() || !options.seeds.empty())
      throw Error(ExitCode::Usage, path + ": a sweep has its own faults and seeds",
                  "leave --fault and --seeds away, or change its \"inject\" and \"axes\"");
    Sweep sweep = load_sweep(path, options.overrides, options.output);
    if (sweep.inject.empty())
      throw Error(ExitCode::Usage, path + ": a sweep without \"inject\"",
                  "add \"inject\": [\"align:step=200\"], or give a run's configuration");
    return sweep;
  }
  const RunConfig config = load_config(path, options.overrides);
  std::string fault = options.fault.empty() ? "align" : options.fault;
  if (fault.find("step=") == std::string::npos)
    fault += fmt::format("{}step={}", fault.find(':') == std::string::npos ? ":" : ",",
                         std::max<int64_t>(1, config.run.steps / 3));
  std::vector<int64_t> seeds = options.seeds;
  for (int64_t i = 0; options.seeds.empty() && i < 3; ++i)
    seeds.push_back(static_cast<int64_t>(config.run.seed) + i);
  Json sweep = {{"name", config.run.name.substr(0, 60) + "-injected"},
                {"base", path},
                {"variants", variants()},
                {"axes", {{"run.seed", seeds}}},
                {"inject", {fault}}};
  return parse_sweep(sweep.dump(), path, options.overrides, options.output);
}

InjectionVerdict injection_verdict(const SweepReport& report, const GroupRow& group) {
  if (group.done == 0) return InjectionVerdict::Unknown;
  int64_t broken = 0, held = 0;
  for (const size_t i : group.cells) {
    const CellRow& row = report.cells[i];
    if (!row.outcome.done) continue;
    const Recipe& precision = row.cell->config.precision;
    if (precision == make_recipe("bf16") && row.cell->config.precision_schedule.empty())
      return InjectionVerdict::Reference;
    const double limit =
        precision.smooth_swiglu == SmoothSwiGLU::BF16 ? injection::holds_bf16_down : injection::holds;
    if (row.reference_broke) return InjectionVerdict::ReferenceBroke;
    if (row.run.failed || row.injected >= injection::breaks)
      ++broken;
    else if (row.injected <= limit)
      ++held;
    else if (!std::isfinite(row.injected))
      return InjectionVerdict::Unknown;
  }
  if (broken == group.done) return InjectionVerdict::Breaks;
  if (broken > 0) return InjectionVerdict::SomeBreak;
  return held == group.done ? InjectionVerdict::Holds : InjectionVerdict::Between;
}

std::string describe(InjectionVerdict verdict) {
  switch (verdict) {
    case InjectionVerdict::Reference:
      return "reference";
    case InjectionVerdict::ReferenceBroke:
      return "its BF16 twin broke: says nothing of formats";
    case InjectionVerdict::Breaks:
      return "BREAKS";
    case InjectionVerdict::SomeBreak:
      return "BREAKS for some seeds";
    case InjectionVerdict::Holds:
      return "holds";
    case InjectionVerdict::Between:
      return "worse, not broken";
    default:
      return "–";
  }
}

}  // namespace octet
