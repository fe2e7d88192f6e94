#include "analysis/sweep_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "analysis/chart.h"
#include "analysis/injection_experiment.h"
#include "analysis/page.h"
#include "analysis/sharpness_chart.h"
#include "base/files.h"
#include "base/text.h"
#include "numerics/recipes.h"
#include "training/state_injection.h"

namespace octet {
namespace {

constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

bool plain_bf16(const RunConfig& config) {
  return config.precision == make_recipe("bf16") && config.precision_schedule.empty();
}

// Equal for runs that differ in their precision alone.
std::string twins_key(RunConfig config) {
  config.precision = make_recipe("bf16");
  config.precision_schedule.clear();
  config.fallback = {};
  config.run.name = "twin";
  config.run.output = default_output("twin");
  return to_json(config);
}
// Equal for runs whose losses can be held against each other: same model, data and length.
std::string task_key(const RunConfig& config) {
  const Json json = Json::parse(to_json(config));
  return json.at("model").dump() + json.at("data").dump() +
         std::to_string(config.run.steps * config.batch.tokens);
}

double finite_low(double a, double b) { return std::isfinite(a) && a < b ? a : b; }

// What injections from step `first` to step `last` added to a run's losses, less `twin`'s unless that is
// null. NaN: too few steps around them.
double added_by(const RunHistory& run, const RunHistory* twin, int64_t first, int64_t last) {
  std::map<int64_t, double> reference;
  if (twin)
    for (const StepRecord& step : twin->steps) reference[step.step] = step.loss;
  double sums[2] = {};  // before, after
  int64_t counts[2] = {};
  for (const StepRecord& step : run.steps) {
    const bool after = step.step >= last;
    if (after ? step.step >= last + injection::window
              : step.step >= first || step.step < first - injection::window)
      continue;
    const auto other = reference.find(step.step);
    if (twin && other == reference.end()) continue;
    sums[after] += step.loss - (twin ? other->second : 0);
    ++counts[after];
  }
  if (counts[0] < injection::fewest || counts[1] < injection::fewest) return unknown;
  return sums[1] / static_cast<double>(counts[1]) - sums[0] / static_cast<double>(counts[0]);
}

using Partners = std::map<std::string, CellRow*>;  // BF16 cells that are done, by twins_key

void judge_injection(SweepReport& report, const Partners& partners) {
  if (report.inject.empty()) return;
  int64_t first = std::numeric_limits<int64_t>::max(), last = 0;
  for (const StateInjection& injection : parse_state_injections(report.inject)) {
    first = std::min(first, injection.step);
    last = std::max(last, injection.step);
  }
  for (const auto& [key, bf16] : partners)
    bf16->reference_broke |= added_by(*bf16->outcome.history, nullptr, first, last) > injection::threw_off;
  for (CellRow& row : report.cells) {
    if (!row.outcome.history || !row.outcome.done) continue;
    const auto twin = partners.find(twins_key(row.cell->config));
    if (twin == partners.end()) continue;
    row.injected = added_by(*row.outcome.history, &*twin->second->outcome.history, first, last);
    row.reference_broke = twin->second->reference_broke;
  }
}

void judge_cells(SweepReport& report) {
  std::map<std::string, double> best;
  Partners partners;
  double lowest = std::numeric_limits<double>::infinity();
  for (CellRow& row : report.cells) {
    if (row.outcome.history) row.alarms = alarms_of(*row.outcome.history);
    if (!row.outcome.history || !row.outcome.done) continue;
    const RunConfig& config = row.cell->config;
    row.run = outcome_of(*row.outcome.history, config.run.steps, unknown);
    if (!plain_bf16(config)) continue;
    partners[twins_key(config)] = &row;
    row.reference_broke = row.run.failed;
    if (row.run.failed) continue;
    const double loss = row.run.final_loss;
    double& least = best.emplace(task_key(config), std::numeric_limits<double>::infinity()).first->second;
    least = finite_low(loss, least);
    if (loss < lowest) report.best = row.cell->name;
    lowest = finite_low(loss, lowest);
  }
  for (CellRow& row : report.cells) {
    if (!row.outcome.history || !row.outcome.done) continue;
    const RunConfig& config = row.cell->config;
    const auto reference = best.find(task_key(config));
    row.run = outcome_of(*row.outcome.history, config.run.steps,
                         reference == best.end() ? unknown : reference->second);
    const auto twin = partners.find(twins_key(config));
    if (twin != partners.end() && !twin->second->reference_broke)
      row.gap = row.run.final_loss - twin->second->run.final_loss;
  }
  judge_injection(report, partners);
}

GroupRow group_row(const SweepReport& report, const std::string& name) {
  GroupRow group;
  group.name = name;
  std::vector<double> losses, gaps, injected, sharpness;
  int64_t spikes = 0, judged = 0;
  for (size_t i = 0; i < report.cells.size(); ++i) {
    const CellRow& row = report.cells[i];
    if (row.cell->group != name) continue;
    group.cells.push_back(i);
    group.errors += row.outcome.error.empty() ? 0 : 1;
    if (!row.outcome.done) continue;
    ++group.done;
    group.failed += row.run.failed ? 1 : 0;
    spikes += static_cast<int64_t>(row.run.spikes.size());
    judged += row.run.judged;
    losses.push_back(row.run.final_loss);
    gaps.push_back(row.gap);
    injected.push_back(row.injected);
    if (const SharpnessRecord* newest = newest_sharpness(*row.outcome.history))
      sharpness.push_back(newest->last);
  }
  group.fail_rate = wilson_interval(group.failed, group.done);
  group.spikes_per_thousand =
      judged > 0 ? 1000.0 * static_cast<double>(spikes) / static_cast<double>(judged) : 0;
  group.final_loss = spread_of(losses);
  group.gap = spread_of(gaps);
  group.injected = spread_of(injected);
  group.sharpness = spread_of(sharpness);
  return group;
}

std::string number(double value, const char* format = "{:.4f}") {
  return std::isfinite(value) ? fmt::format(fmt::runtime(format), value) : std::string("–");
}
std::string with_deviation(const Spread& spread, const char* format) {
  if (spread.count == 0) return "–";
  return spread.count == 1 ? number(spread.mean, format)
                           : number(spread.mean, format) + " ± " + number(spread.deviation, "{:.4f}");
}
std::string percent(const Share& share) {
  return fmt::format("{:.0f} % [{:.0f}, {:.0f}]", 100 * share.value, 100 * share.low, 100 * share.high);
}
std::string state_of(const CellRow& row) {
  if (!row.outcome.error.empty()) return "not trained: " + row.outcome.error;
  if (!row.outcome.history) return "not begun";
  if (!row.outcome.done) return describe_state(*row.outcome.history);
  return row.run.failed ? "FAILED: " + row.run.why : "finished";
}

// (K4)
std::string lead_of(const CellRow& row) { return row.outcome.history ? describe(row.alarms) : "–"; }

// ---- the page

std::string group_table(const SweepReport& report) {
  std::string out =
      "<div class=\"scroll\"><table><tr><th>group</th><th>runs</th><th>failed</th><th>fail rate, 95 %</th>"
      "<th>spikes per 1000 steps</th><th>final loss ± deviation</th><th>lowest … highest</th>"
      "<th>gap to BF16 ± deviation, paired</th><th>sharpness, %</th></tr>";
  for (const GroupRow& group : report.groups)
    out += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1f}</td><td>{}</td><td>{} … {}</td>"
        "<td>{}</td><td>{}</td></tr>",
        escape_html(group.name), group.done, group.failed, group.done > 0 ? percent(group.fail_rate) : "–",
        group.spikes_per_thousand, with_deviation(group.final_loss, "{:.4f}"), number(group.final_loss.low),
        number(group.final_loss.high), with_deviation(group.gap, "{:+.4f}"),
        with_deviation(group.sharpness, "{:.4f}"));
  return out + "</table></div>";
}

std::string cell_table(const SweepReport& report) {
  std::string out =
      "<div class=\"scroll\"><table><tr><th>cell</th><th>steps</th><th>final loss</th><th>gap</th>"
      "<th>spikes</th><th>warning and spike</th><th>state</th></tr>";
  for (const CellRow& row : report.cells) {
    const bool began = row.outcome.history && !row.outcome.history->steps.empty();
    out += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"text\">{}</td>"
        "<td class=\"text\">{}</td></tr>",
        escape_html(row.cell->name), began ? row.outcome.history->steps.back().step : 0,
        number(row.run.final_loss), number(row.gap, "{:+.4f}"), row.run.spikes.size(),
        escape_html(lead_of(row)), escape_html(state_of(row)));
  }
  return out + "</table></div>";
}

Series loss_series(const RunHistory& run, int color) {
  Series series{run.name, {}, {}, color, true, false};
  std::vector<int64_t> steps;
  std::vector<double> losses;
  for (const StepRecord& step : run.steps) {
    steps.push_back(step.step);
    series.x.push_back(static_cast<double>(step.step));
    losses.push_back(step.loss);
  }
  series.y = exponential_average(losses, steps, 0.9);
  return series;
}

// Six groups a chart, as many as there are colours; the seeds of a group faint, the first one in full.
std::string curves(const SweepReport& report, const Chart& empty,
                   const std::function<Series(const RunHistory&, int color)>& curve) {
  constexpr size_t colors = 6;
  std::string out;
  for (size_t first = 0; first < report.groups.size(); first += colors) {
    Chart chart = empty;
    for (size_t g = first; g < std::min(first + colors, report.groups.size()); ++g) {
      bool faint = false;
      for (const size_t i : report.groups[g].cells) {
        const CellRow& row = report.cells[i];
        if (!row.outcome.history) continue;
        Series series = curve(*row.outcome.history, static_cast<int>(g - first));
        if (series.x.empty()) continue;
        series.name = report.groups[g].name;
        series.faint = faint;
        faint = true;
        chart.series.push_back(std::move(series));
      }
    }
    if (!chart.series.empty()) out += render(chart);
  }
  return out;
}

const char* tone_of(InjectionVerdict verdict) {
  switch (verdict) {
    case InjectionVerdict::Holds:
      return "good";
    case InjectionVerdict::Between:
      return "fair";
    case InjectionVerdict::Breaks:
    case InjectionVerdict::SomeBreak:
      return "bad";
    default:
      return "open";
  }
}

// Who breaks, of a sweep with an injection.
std::string injection_verdicts(const SweepReport& report) {
  if (report.inject.empty()) return {};
  std::string out = "<h2>Injection</h2>";
  for (const std::string& fault : report.inject)
    out += fmt::format("<p>Every run: <code>{}</code></p>", escape_html(fault));
  for (const GroupRow& group : report.groups) {
    const InjectionVerdict verdict = injection_verdict(report, group);
    if (verdict == InjectionVerdict::Reference) continue;
    out += fmt::format(
        "<div class=\"verdict {}\"><b>{}</b> — {}: the injection added {} (± deviation) to the gap to BF16 "
        "with the "
        "same seed</div>",
        tone_of(verdict), escape_html(describe(verdict)), escape_html(group.name),
        with_deviation(group.injected, "{:+.4f}"));
  }
  return out +
         fmt::format(
             "<p class=\"soft\">What the injection added: the mean gap over up to {} steps from the last "
             "injection on, less that over as many before the first. A variant breaks when every run has "
             "failed or at least {:.2f} was added; it holds when at most {:.2f} was with every seed, or "
             "{:.2f} where the down projection is in BF16. Where more than {:.2f} was added to BF16's own "
             "loss, or BF16 failed, nothing is said.</p>",
             injection::window, injection::breaks, injection::holds, injection::holds_bf16_down,
             injection::threw_off);
}

std::string definitions(const SweepReport& report) {
  return fmt::format(
      "<p class=\"soft\">A run has <b>failed</b> when a loss is not finite, when its average loss ends more "
      "than {} above that of the best BF16 run ({}), or when the average rises more than {} above its lowest "
      "and is not back within {:.0f} % of the steps. A <b>spike</b> is a step more than {:.0f} average "
      "absolute deviations above the average; beside a warning also what the run's own detector found, or an "
      "update that was not applied. Averages are exponential with decay {}. The fail rate has "
      "Wilson's interval. A gap is to the BF16 cell that differs in the precision alone.</p>",
      failure::above_best, report.best.empty() ? "none here" : escape_html(report.best), failure::rise,
      100 * failure::return_share, failure::spike_deviations, failure::decay);
}

Json finite_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }
Json json_of(const Spread& spread) {
  return {{"mean", finite_or_null(spread.mean)},
          {"deviation", finite_or_null(spread.deviation)},
          {"low", finite_or_null(spread.low)},
          {"high", finite_or_null(spread.high)},
          {"count", spread.count}};
}

}  // namespace

Spread spread_of(const std::vector<double>& values) {
  Spread spread;
  double sum = 0, squares = 0;
  for (const double value : values) {
    if (!std::isfinite(value)) continue;
    spread.low = spread.count == 0 ? value : std::min(spread.low, value);
    spread.high = spread.count == 0 ? value : std::max(spread.high, value);
    sum += value;
    ++spread.count;
  }
  if (spread.count == 0) return spread;
  spread.mean = sum / static_cast<double>(spread.count);
  for (const double value : values)
    if (std::isfinite(value)) squares += (value - spread.mean) * (value - spread.mean);
  if (spread.count > 1) spread.deviation = std::sqrt(squares / static_cast<double>(spread.count - 1));
  return spread;
}

SweepReport report_of(const Sweep& sweep, std::vector<CellOutcome> outcomes) {
  SweepReport report;
  report.name = sweep.name;
  report.inject = sweep.inject;
  for (size_t i = 0; i < sweep.cells.size(); ++i) {
    report.cells.emplace_back();
    report.cells.back().cell = &sweep.cells[i];
    report.cells.back().outcome = std::move(outcomes[i]);
  }
  judge_cells(report);
  for (const std::string& name : sweep.groups()) report.groups.push_back(group_row(report, name));
  return report;
}

std::string table(const SweepReport& report) {
  size_t width = 5;
  for (const GroupRow& group : report.groups) width = std::max(width, group.name.size());
  std::string out = fmt::format("{:<{}}  {:>5} {:>7} {:>15} {:>8} {:>19} {:>19}\n", "group", width, "runs",
                                "failed", "fail rate 95 %", "spk/1k", "final loss ± sd", "gap to BF16 ± sd");
  for (const GroupRow& group : report.groups)
    out += fmt::format("{:<{}}  {:>5} {:>7} {:>15} {:>8.1f} {:>19} {:>19}\n", group.name, width,
                       fmt::format("{}/{}", group.done, group.cells.size()), group.failed,
                       group.done > 0 ? percent(group.fail_rate) : "–", group.spikes_per_thousand,
                       with_deviation(group.final_loss, "{:.4f}"), with_deviation(group.gap, "{:+.4f}"));
  if (!report.inject.empty())
    for (const GroupRow& group : report.groups)
      out +=
          fmt::format("{:<{}}  {}; the injection added {} (± sd)\n", group.name, width,
                      describe(injection_verdict(report, group)), with_deviation(group.injected, "{:+.4f}"));
  if (!report.inject.empty())
    for (const CellRow& row : report.cells)
      out += fmt::format("{}: {}\n", row.cell->name, escape_control(lead_of(row)));
  for (const CellRow& row : report.cells)
    if (row.run.failed || !row.outcome.error.empty())
      out += fmt::format("{}: {}\n", row.cell->name, escape_control(state_of(row)));
  return out;
}

std::string render_html(const SweepReport& report) {
  const Chart loss{"Training loss (averaged over 10 steps; faint: further seeds)",
                   "step",
                   "loss, nats per token",
                   {},
                   {},
                   {},
                   false};
  return page(report.name, injection_verdicts(report) + "<h2>Groups</h2>" + group_table(report) +
                               definitions(report) + "<h2>Loss</h2>" + curves(report, loss, loss_series) +
                               curves(report, empty_sharpness_chart(), sharpness_series) + "<h2>Cells</h2>" +
                               cell_table(report));
}

Json render_json(const SweepReport& report) {
  Json json = {{"name", report.name},
               {"inject", report.inject},
               {"best_bf16", report.best},
               {"groups", Json::array()},
               {"cells", Json::array()}};
  for (const GroupRow& group : report.groups)
    json["groups"].push_back(
        {{"group", group.name},
         {"runs", group.cells.size()},
         {"done", group.done},
         {"failed", group.failed},
         {"not_trained", group.errors},
         {"fail_rate", group.fail_rate.value},
         {"fail_rate_low_95", group.fail_rate.low},
         {"fail_rate_high_95", group.fail_rate.high},
         {"spikes_per_1000_steps", group.spikes_per_thousand},
         {"final_loss", json_of(group.final_loss)},
         {"gap_to_bf16", json_of(group.gap)},
         {"injection_added", json_of(group.injected)},
         {"sharpness", json_of(group.sharpness)},
         {"injection",
          report.inject.empty() ? Json(nullptr) : Json(describe(injection_verdict(report, group)))}});
  for (const CellRow& row : report.cells) {
    Json coordinates = Json::object();
    for (const auto& [axis, value] : row.cell->coordinates) coordinates[axis] = value;
    const Alarms& alarms = row.alarms;
    json["cells"].push_back(
        {{"cell", row.cell->name},
         {"group", row.cell->group},
         {"coordinates", coordinates},
         {"folder", row.cell->config.run.output},
         {"config_hash", config_hash(row.cell->config)},
         {"done", row.outcome.done},
         {"failed", row.run.failed},
         {"why", row.run.why},
         {"error", row.outcome.error},
         {"final_loss", finite_or_null(row.run.final_loss)},
         {"gap_to_bf16", finite_or_null(row.gap)},
         {"injection_added", finite_or_null(row.injected)},
         {"spikes", row.run.spikes.size()},
         {"health_watched", alarms.watched},
         {"first_spike_step", alarms.spike ? Json(*alarms.spike) : Json(nullptr)},
         {"first_warning_step", alarms.warnings.empty() ? Json(nullptr) : Json(alarms.warnings[0].step)},
         {"judged_steps", row.run.judged}});
  }
  return json;
}

void write_report(const SweepReport& report, const std::filesystem::path& folder) {
  write_atomically(folder / "sweep.json",
                   render_json(report).dump(2, ' ', false, Json::error_handler_t::replace) + "\n",
                   ExitCode::Data);
  write_atomically(folder / "sweep.html", render_html(report), ExitCode::Data);
}

}  // namespace octet
