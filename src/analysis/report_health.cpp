#include "analysis/report_health.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "analysis/chart.h"
#include "analysis/failure.h"
#include "base/text.h"

namespace octet {
namespace {

constexpr size_t colors = 6;

HeatMap heat_map(const RunHistory& run, const char* what, double SiteRecord::*field) {
  HeatMap map{
      fmt::format("{}: {} share by site and step (faint 0.0001 %, full 10 %)", run.name, what), {}, {}, {}};
  std::map<std::string, size_t> index;
  for (const HealthRecord& record : run.health) {
    for (const SiteRecord& site : record.sites) {
      if (index.try_emplace(site.name, map.rows.size()).second) map.rows.push_back(site.name);
    }
    map.columns.push_back(record.step);
  }
  map.values.assign(map.rows.size(), std::vector<double>(map.columns.size(), std::nan("")));
  for (size_t c = 0; c < run.health.size(); ++c) {
    for (const SiteRecord& site : run.health[c].sites) map.values[index[site.name]][c] = site.*field;
  }
  return map;
}

// Six blocks at most: the first, the last, and those between with the largest values at the end.
std::vector<size_t> shown_blocks(const std::vector<double>& newest) {
  std::vector<size_t> order;
  for (size_t b = 0; b < newest.size(); ++b) order.push_back(b);
  const auto rank = [&](size_t b) {
    if (b == 0 || b + 1 == newest.size()) return std::numeric_limits<double>::infinity();
    return std::isfinite(newest[b]) ? newest[b] : std::numeric_limits<double>::max();
  };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return rank(a) > rank(b); });
  order.resize(std::min(order.size(), colors));
  std::sort(order.begin(), order.end());
  return order;
}

struct BlockChart {
  const char *field, *title, *label;
  bool log_y;
};
std::string block_chart(const RunHistory& run, const BlockChart& wanted) {
  Chart chart{fmt::format("{}: {}", run.name, wanted.title), "step", wanted.label, {}, {}, {}, wanted.log_y};
  const auto values_at = [&](const HealthRecord& record) -> const std::vector<double>* {
    const auto found = record.blocks.find(wanted.field);
    return found == record.blocks.end() || found->second.empty() ? nullptr : &found->second;
  };
  const std::vector<double>* newest = nullptr;
  for (const HealthRecord& record : run.health)
    if (const std::vector<double>* values = values_at(record)) newest = values;
  if (!newest) return {};
  for (const size_t b : shown_blocks(*newest)) {
    Series series{fmt::format("block {}", b), {}, {}, static_cast<int>(chart.series.size()), false, false};
    for (const HealthRecord& record : run.health) {
      const std::vector<double>* values = values_at(record);
      series.x.push_back(static_cast<double>(record.step));
      series.y.push_back(values && b < values->size() ? (*values)[b] : std::nan(""));
    }
    chart.series.push_back(std::move(series));
  }
  return render(chart);
}

// The worst site of each role.
std::string snr_chart(const RunHistory& run) {
  Chart chart{
      run.name + ": signal to noise of casts, the worst site of each role", "step", "dB", {}, {}, {}, false};
  std::map<std::string, Series> roles;
  for (const HealthRecord& record : run.health) {
    std::map<std::string, double> worst;
    for (const SiteRecord& site : record.sites) {
      if (!std::isfinite(site.snr)) continue;
      const auto [known, added] = worst.try_emplace(site.name.substr(site.name.rfind('.') + 1), site.snr);
      known->second = std::min(known->second, site.snr);
    }
    for (const auto& [role, snr] : worst) {
      roles[role].x.push_back(static_cast<double>(record.step));
      roles[role].y.push_back(snr);
    }
  }
  for (auto& [role, series] : roles) {
    series.name = role;
    series.color = static_cast<int>(chart.series.size() % colors);
    chart.series.push_back(std::move(series));
  }
  return chart.series.empty() ? std::string{} : render(chart);
}

std::string timeline(const Alarms& alarms) {
  std::string out =
      fmt::format("<p>{}: {}.</p>", plural(static_cast<int64_t>(alarms.warnings.size()), "warning"),
                  escape_html(describe(alarms)));
  if (alarms.warnings.empty()) return out;
  std::string rows;
  for (const LeadTime& w : alarms.warnings) {
    const std::string lead = !w.before_spike        ? std::string("–")
                             : *w.before_spike > 0  ? fmt::format("{} before", *w.before_spike)
                             : *w.before_spike == 0 ? std::string("at the spike")
                                                    : fmt::format("{} after", -*w.before_spike);
    rows += fmt::format("<tr><td>{}</td><td>{}</td><td class=\"text\">{}</td></tr>", w.step, lead,
                        escape_html(w.message));
  }
  return out + fmt::format(
                   "<div class=\"scroll\"><table><tr><th>step</th><th>steps to the first "
                   "spike</th><th>warning</th></tr>{}</table></div>",
                   rows);
}

}  // namespace

Alarms alarms_of(const RunHistory& run) {
  int64_t injected = 0;
  for (const EventRecord& e : run.events)
    if (e.event == "inject" && (injected == 0 || e.step < injected)) injected = e.step;
  std::vector<int64_t> spikes =
      outcome_of(run, run.steps.empty() ? 0 : run.steps.back().step, std::numeric_limits<double>::quiet_NaN())
          .spikes;
  Alarms alarms;
  alarms.watched = !run.health.empty();
  for (const EventRecord& e : run.events) {
    if (e.event == "spike" || e.event == "skipped" || e.event == "rollback") spikes.push_back(e.step);
    if (e.event == "warning" && e.step >= injected) alarms.warnings.push_back({e.step, e.message, {}});
  }
  for (const int64_t step : spikes)
    if (step >= injected && (!alarms.spike || step < *alarms.spike)) alarms.spike = step;
  for (LeadTime& warning : alarms.warnings)
    if (alarms.spike) warning.before_spike = *alarms.spike - warning.step;
  std::stable_sort(alarms.warnings.begin(), alarms.warnings.end(),
                   [](const LeadTime& a, const LeadTime& b) { return a.step < b.step; });
  return alarms;
}

std::string describe(const Alarms& alarms) {
  const auto& [watched, spike, warnings] = alarms;
  if (warnings.empty()) {
    if (!spike) return "no spike";
    return fmt::format("spike at step {}{}", *spike, watched ? " without a warning" : ", health not watched");
  }
  const int64_t first = warnings.front().step;
  const std::string& message = warnings.front().message;
  const std::string what =
      message.substr(0, std::min({message.size(), message.find(" ("), message.find(';')}));
  if (!spike) return fmt::format("warned at step {}, no spike: {}", first, what);
  if (first < *spike)
    return fmt::format("warned at step {}, {} before the first spike (step {}): {}", first,
                       plural(*spike - first, "step"), *spike, what);
  return fmt::format("spike at step {}, warned at step {}, too late: {}", *spike, first, what);
}

std::string health_section(const RunHistory& run) {
  if (run.health.empty()) return {};
  std::string out = fmt::format("<h2>Health of {}</h2>", escape_html(run.name)) + timeline(alarms_of(run));
  const BlockChart charts[] = {
      {"kurtosis/qkv", "kurtosis of queries, keys and values (Gaussian: 3)", "kurtosis", true},
      {"kurtosis/ffn_hidden", "kurtosis of what enters the down projection", "kurtosis", true},
      {"kurtosis/block_output", "kurtosis of the residual stream after a block", "kurtosis", true},
      {"rms/block_output", "RMS of the residual stream after a block", "RMS", true},
      {"log_sum_exp", "largest log-sum-exp of attention (the largest logit is at most ln context below)",
       "nats", false}};
  for (const BlockChart& chart : charts) out += block_chart(run, chart);
  const bool casts = std::any_of(run.health.begin(), run.health.end(),
                                 [](const HealthRecord& record) { return !record.sites.empty(); });
  if (casts)
    out += snr_chart(run) + render(heat_map(run, "saturated", &SiteRecord::saturated)) +
           render(heat_map(run, "flushed to zero", &SiteRecord::flushed));
  return out;
}

}  // namespace octet
