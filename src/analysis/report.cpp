#include "analysis/report.h"

#include <fmt/format.h>

#include <cmath>

#include "analysis/chart.h"
#include "analysis/page.h"
#include "analysis/report_health.h"
#include "analysis/sharpness_chart.h"
#include "base/files.h"
#include "base/text.h"

namespace octet {
namespace {

const char* tone_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::Equivalent:
      return "good";
    case Verdict::SmallGap:
      return "fair";
    case Verdict::Inconclusive:
      return "open";
    default:
      return "bad";
  }
}

std::vector<const RunHistory*> runs_of(const ReportInput& input) {
  std::vector<const RunHistory*> runs{&input.baseline};
  for (const RunHistory& run : input.variants) runs.push_back(&run);
  return runs;
}

std::vector<double> column(const RunHistory& run, double StepRecord::*field) {
  std::vector<double> values;
  for (const StepRecord& step : run.steps) values.push_back(step.*field);
  return values;
}

std::vector<double> steps_of(const RunHistory& run) {
  std::vector<double> values;
  for (const StepRecord& step : run.steps) values.push_back(static_cast<double>(step.step));
  return values;
}

std::vector<double> averaged(const RunHistory& run, double StepRecord::*field) {
  std::vector<int64_t> steps;
  for (const StepRecord& step : run.steps) steps.push_back(step.step);
  return exponential_average(column(run, field), steps, 0.9);
}

double last_finite(const std::vector<double>& values) {
  for (auto it = values.rbegin(); it != values.rend(); ++it) {
    if (std::isfinite(*it)) return *it;
  }
  return std::nan("");
}

std::string number(double value, const char* format = "{:.4f}") {
  return std::isfinite(value) ? fmt::format(fmt::runtime(format), value) : std::string("–");
}

Chart smoothed_chart(const ReportInput& input, double StepRecord::*field, const char* title,
                     const char* label) {
  Chart chart{title, "step", label, {}, {}, {}, false};
  int color = 0;
  for (const RunHistory* run : runs_of(input)) {
    const std::vector<double> x = steps_of(*run), raw = column(*run, field);
    chart.series.push_back({run->name, x, raw, color, true, false});
    chart.series.push_back({run->name, x, averaged(*run, field), color, false, false});
    ++color;
  }
  return chart;
}

std::string loss_chart(const ReportInput& input) {
  Chart chart = smoothed_chart(input, &StepRecord::loss, "Training loss (averaged; points: validation)",
                               "loss, nats per token");
  int color = 0;
  for (const RunHistory* run : runs_of(input)) {
    Series points{run->name + " validation", {}, {}, color++, false, true};
    for (const ValidationRecord& v : run->validations) {
      points.x.push_back(static_cast<double>(v.step));
      points.y.push_back(v.loss);
    }
    if (!points.x.empty()) chart.series.push_back(std::move(points));
  }
  return render(chart);
}

std::string gap_chart(const ReportInput& input) {
  Chart chart{"Gap to the baseline, moving mean with 95 % confidence (dashed: zero and the band)",
              "step",
              "loss difference, nats",
              {},
              {},
              {0},
              false};
  for (size_t i = 0; i < input.variants.size(); ++i) {
    const Comparison& c = input.comparisons[i];
    if (c.steps.size() < 3) continue;
    const std::vector<double> x(c.steps.begin(), c.steps.end());
    const SmoothedBand band = moving_mean(c.gap, std::max<size_t>(5, c.gap.size() / 40));
    const int color = static_cast<int>(i) + 1;
    chart.bands.push_back({x, band.low, band.high, color});
    chart.series.push_back({input.variants[i].name, x, band.value, color, false, false});
    if (i == 0) chart.rules.push_back(c.band.relative * c.baseline_loss);
  }
  return chart.series.empty() ? std::string{} : render(chart);
}

std::string sharpness_chart(const ReportInput& input) {
  Chart chart = empty_sharpness_chart();
  int color = 0;
  for (const RunHistory* run : runs_of(input)) {
    Series series = sharpness_series(*run, color++);
    if (!series.x.empty()) chart.series.push_back(std::move(series));
  }
  return chart.series.empty() ? std::string{} : render(chart);
}

// One share, or that of each precision the run has had, in order: "84.6 % → 0.0 %".
std::string fp8_shares(const RunHistory& run) {
  std::string text, newest;
  for (const StepRecord& step : run.steps) {
    const std::string share = number(100 * step.fp8_flop_share, "{:.1f} %");
    if (share == newest || !std::isfinite(step.fp8_flop_share)) continue;
    text += (text.empty() ? "" : " → ") + share;
    newest = share;
  }
  return text.empty() ? "–" : text;
}

std::string run_table(const ReportInput& input) {
  std::string out =
      "<div class=\"scroll\"><table><tr><th>run</th><th>steps</th><th>tokens</th><th>final "
      "loss</th><th>validation</th><th>tokens/s</th><th>memory</th>"
      "<th>FP8 share of GEMM FLOPs</th><th>skipped</th><th>state</th></tr>";
  for (const RunHistory* run : runs_of(input)) {
    const std::vector<double> average = averaged(*run, &StepRecord::loss);
    int64_t skipped = 0;
    for (const StepRecord& step : run->steps) skipped += step.skipped;
    const double memory = last_finite(column(*run, &StepRecord::memory_bytes));
    out += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</"
        "td><td>{}</td></tr>",
        escape_html(run->name), run->steps.empty() ? 0 : run->steps.back().step,
        human_count(run->steps.empty() ? 0.0 : static_cast<double>(run->steps.back().tokens)),
        number(average.empty() ? std::nan("") : average.back()),
        number(run->validations.empty() ? std::nan("") : run->validations.back().loss),
        number(median_throughput(*run), "{:.0f}"),
        std::isfinite(memory) ? human_bytes(static_cast<uint64_t>(memory)) : "–", fp8_shares(*run), skipped,
        escape_html(describe_state(*run)));
  }
  return out + "</table></div>";
}

// What matmul counted, by GEMM class and operand formats, as logged at the run's start and after each change
// of its precision.
std::string gemm_table(const RunHistory& run) {
  std::string out;
  Json before;
  for (const Json& start : run.starts) {
    const Json table = start.value("gemm_table", Json::array());
    if (table.empty() || table == before) continue;
    before = table;
    double total = 0;
    for (const auto& row : table) total += number_of(row.value("flops", Json(0)));
    const int64_t step = start.value("step", int64_t{0}) + 1;
    out += fmt::format(
        "<h3>{}{}</h3><div "
        "class=\"scroll\"><table><tr><th>GEMM</th><th>a</th><th>b</th><th>result</th><th>share "
        "of FLOPs</th></tr>",
        escape_html(run.name), out.empty() ? "" : fmt::format(", from step {} on", step));
    for (const auto& row : table) {
      const double flops = number_of(row.value("flops", Json(0)));
      out +=
          fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.2f} %</td></tr>",
                      escape_html(row.value("class", std::string{})),
                      escape_html(row.value("a", std::string{})), escape_html(row.value("b", std::string{})),
                      escape_html(row.value("out", std::string{})), total > 0 ? 100 * flops / total : 0);
    }
    out += "</table></div>";
  }
  return out;
}

std::string key_value_table(const Json& object) {
  std::string out = "<div class=\"scroll\"><table>";
  for (const auto& [key, value] : object.items()) {
    if (value.is_object() || value.is_array()) continue;
    out += fmt::format("<tr><td>{}</td><td class=\"text\">{}</td></tr>", escape_html(key),
                       escape_html(value.is_string() ? value.get<std::string>() : value.dump()));
  }
  return out + "</table></div>";
}

std::string environment(const ReportInput& input) {
  std::string out;
  if (!input.baseline.start.is_object()) return out;
  out += key_value_table(input.baseline.start);
  const auto environment = input.baseline.start.find("environment");
  if (environment != input.baseline.start.end() && environment->is_object())
    out += key_value_table(*environment);
  return out;
}

std::string events_table(const ReportInput& input) {
  std::string rows;
  for (const RunHistory* run : runs_of(input)) {
    for (const EventRecord& event : run->events) {
      if (event.event == "checkpoint" || event.event == "warning") continue;  // warnings: the health section
      rows += fmt::format(
          "<tr><td>{}</td><td>{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td></tr>",
          escape_html(run->name), event.step, escape_html(event.event), escape_html(event.message));
    }
  }
  return rows.empty()
             ? rows
             : "<h2>Events</h2><div "
               "class=\"scroll\"><table><tr><th>run</th><th>step</th><th>event</th><th>message</th></tr>" +
                   rows + "</table></div>";
}

Json finite_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

}  // namespace

std::string render_html(const ReportInput& input) {
  std::string body;
  for (size_t i = 0; i < input.variants.size(); ++i) {
    const Comparison& c = input.comparisons[i];
    body += fmt::format(
        "<div class=\"verdict {}\"><b>{}</b> — {} against {}<p>{}.</p><p class=\"soft\">{}tokens for the "
        "same "
        "loss ×{}{}</p></div>",
        tone_of(c.verdict), name_of(c.verdict), escape_html(input.variants[i].name),
        escape_html(input.baseline.name), escape_html(c.sentence),
        std::isfinite(c.validation_gap) ? fmt::format("validation gap {:+.4f} · ", c.validation_gap) : "",
        number(c.token_penalty, "{:.3f}"),
        std::isfinite(c.speed_up)
            ? fmt::format(" · speed ×{:.2f} · net benefit ×{}", c.speed_up, number(c.net_benefit, "{:.2f}"))
            : "");
  }
  body += "<h2>Runs</h2>" + run_table(input) + "<h2>Loss</h2>" + loss_chart(input) + gap_chart(input) +
          sharpness_chart(input);
  body += "<h2>Gradient norm and throughput</h2>" +
          render(smoothed_chart(input, &StepRecord::gradient_norm, "Gradient norm before clipping (averaged)",
                                "L2 norm"));
  body += render(
      smoothed_chart(input, &StepRecord::tokens_per_second, "Throughput (averaged)", "tokens per second"));
  body +=
      "<p class=\"soft\">On a CPU, FP8 is emulated exactly and costs time; its speed belongs to a GPU. "
      "Speeds above say nothing about that.</p>";
  body +=
      "<h2>Proof of precision</h2><p>Counted by the matrix products themselves, from the operands they were "
      "given.</p>";
  for (const RunHistory* run : runs_of(input)) body += gemm_table(*run);
  for (const RunHistory* run : runs_of(input)) body += health_section(*run);
  body += events_table(input) + "<h2>Environment</h2>" + environment(input);
  return page(input.title, body);
}

Json render_json(const ReportInput& input) {
  Json report;
  report["title"] = input.title;
  report["baseline"] = input.baseline.name;
  report["verdict"] = input.comparisons.empty() ? "" : name_of(input.comparisons.front().verdict);
  report["comparisons"] = Json::array();
  for (size_t i = 0; i < input.variants.size(); ++i) {
    const Comparison& c = input.comparisons[i];
    Json entry;
    entry["variant"] = input.variants[i].name;
    entry["verdict"] = name_of(c.verdict);
    entry["sentence"] = c.sentence;
    entry["band_relative"] = c.band.relative;
    entry["band_source"] = c.band.source;
    entry["window_steps"] = c.window;
    entry["baseline_loss"] = finite_or_null(c.baseline_loss);
    entry["gap"] = finite_or_null(c.final_gap.value);
    entry["gap_half_width_95"] = finite_or_null(c.final_gap.half_width);
    entry["slope_per_1000_steps"] = finite_or_null(c.slope.value);
    entry["also_differ"] = Json::array();
    for (const Difference& d : c.also_differ)
      entry["also_differ"].push_back({{"key", d.key}, {"baseline", d.baseline}, {"variant", d.variant}});
    entry["validation_gap"] = finite_or_null(c.validation_gap);
    entry["token_penalty"] = finite_or_null(c.token_penalty);
    entry["speed_up"] = finite_or_null(c.speed_up);
    entry["net_benefit"] = finite_or_null(c.net_benefit);
    entry["more_steps_needed"] = c.more_steps_needed;
    report["comparisons"].push_back(std::move(entry));
  }
  return report;
}

void write_report(const ReportInput& input, const std::filesystem::path& folder) {
  write_atomically(folder / "report.json",
                   render_json(input).dump(2, ' ', false, Json::error_handler_t::replace) + "\n",
                   ExitCode::Data);
  write_atomically(folder / "report.html", render_html(input), ExitCode::Data);
}

}  // namespace octet
