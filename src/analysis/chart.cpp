#include "analysis/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/text.h"

namespace octet {
namespace {

constexpr double width = 860, height = 300, left = 74, right = 14, top = 10, bottom = 42;
constexpr size_t most_points = 900;

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void include(double v) {
    if (!std::isfinite(v)) return;
    low = std::min(low, v);
    high = std::max(high, v);
  }
  bool valid() const { return low <= high; }
  // Values that differ by roundings only are one value: ticks closer than an ulp would never end.
  void open_up() {
    const double magnitude = std::max(std::abs(low), std::abs(high));
    if (high - low > 1e-9 * magnitude) return;
    const double span = std::max(1e-9, 0.1 * magnitude);
    low -= span / 2;
    high += span / 2;
  }
};

// Steps of 1, 2 or 5 times a power of ten.
double nice_step(double span, int target) {
  const double raw = span / target, power = std::pow(10, std::floor(std::log10(raw))), fraction = raw / power;
  return power * (fraction <= 1 ? 1 : fraction <= 2 ? 2 : fraction <= 5 ? 5 : 10);
}

std::string tick_label(double value, double step) {
  const double magnitude = std::abs(value);
  if (magnitude >= 1e4) return human_count(value);
  if (magnitude != 0 && magnitude < 1e-3) return fmt::format("{:.0e}", value);
  const int digits = step >= 1 ? 0 : std::min(6, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
  return fmt::format("{:.{}f}", value, digits);
}

struct Axes {
  Range x, y;
  bool log_y;
  double map_y(double v) const {
    const double low = log_y ? std::log10(y.low) : y.low, high = log_y ? std::log10(y.high) : y.high;
    const double value = log_y ? std::log10(std::max(v, y.low)) : v;
    return top + (height - top - bottom) * (1 - (value - low) / (high - low));
  }
  double map_x(double v) const { return left + (width - left - right) * (v - x.low) / (x.high - x.low); }
};

Axes axes_of(const Chart& chart) {
  Axes axes{{}, {}, chart.log_y};
  Range robust;
  for (const Series& s : chart.series) {
    for (double v : s.x) axes.x.include(v);
    for (double v : s.y) {
      if (!chart.log_y || v > 0) (s.faint ? robust : axes.y).include(v);
    }
  }
  for (const Band& band : chart.bands) {
    for (double v : band.x) axes.x.include(v);
    for (double v : band.low) axes.y.include(v);
    for (double v : band.high) axes.y.include(v);
  }
  for (double v : chart.rules) axes.y.include(v);
  if (!axes.y.valid()) axes.y = robust;
  if (!axes.x.valid()) axes.x = {0, 1};
  if (!axes.y.valid()) axes.y = {0, 1};
  if (axes.x.high <= axes.x.low) axes.x.high = axes.x.low + 1;
  axes.x.open_up();
  if (chart.log_y) {
    axes.y.low /= 1.1;
    axes.y.high *= 1.1;
  } else {
    axes.y.open_up();
    const double span = axes.y.high - axes.y.low;
    axes.y.low -= 0.06 * span;
    axes.y.high += 0.06 * span;
  }
  return axes;
}

std::string grid(const Axes& axes, const Chart& chart) {
  std::string out;
  const auto horizontal = [&](double v, double step) {
    out += fmt::format(R"(<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>)", left,
                       width - right, axes.map_y(v), axes.map_y(v));
    out += fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>)", left - 6,
                       axes.map_y(v) + 4, tick_label(v, step));
  };
  if (axes.log_y && axes.y.high / axes.y.low > 10) {
    for (double v = std::pow(10, std::ceil(std::log10(axes.y.low))); v <= axes.y.high; v *= 10)
      horizontal(v, v);
  } else {
    const double step = nice_step(axes.y.high - axes.y.low, 5);
    for (double v = std::ceil(axes.y.low / step) * step; v <= axes.y.high; v += step)
      horizontal(std::abs(v) < 1e-12 ? 0 : v, step);
  }
  const double step = nice_step(axes.x.high - axes.x.low, 8);
  for (double v = std::ceil(axes.x.low / step) * step; v <= axes.x.high; v += step) {
    out += fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>)", axes.map_x(v),
                       height - bottom + 17, tick_label(v, step));
  }
  out += fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>)",
                     (left + width - right) / 2, height - 6, escape_html(chart.x_label));
  out += fmt::format(
      R"svg(<text x="14" y="{0:.1f}" text-anchor="middle" transform="rotate(-90 14 {0:.1f})">{1}</text>)svg",
      (top + height - bottom) / 2, escape_html(chart.y_label));
  return out;
}

std::string draw(const Series& series, const Axes& axes) {
  const size_t n = std::min(series.x.size(), series.y.size()), stride = std::max<size_t>(1, n / most_points);
  std::string points, out;
  const auto flush = [&] {
    if (!points.empty())
      out += fmt::format(R"(<polyline class="line c{}{}" points="{}"/>)", series.color,
                         series.faint ? " faint" : "", points);
    points.clear();
  };
  for (size_t i = 0; i < n; i += (i + stride < n || i + 1 == n) ? stride : n - 1 - i) {
    if (!std::isfinite(series.y[i])) {
      flush();
      continue;
    }
    const double x = axes.map_x(series.x[i]),
                 y = std::clamp(axes.map_y(series.y[i]), top - 1, height - bottom + 1);
    if (series.points) {
      out += fmt::format(
          R"(<circle class="c{} point" cx="{:.1f}" cy="{:.1f}" r="3.2"><title>{:.6g}</title></circle>)",
          series.color, x, y, series.y[i]);
    } else {
      points += fmt::format("{:.1f},{:.1f} ", x, y);
    }
  }
  flush();
  return out;
}

std::string draw(const Band& band, const Axes& axes) {
  const size_t n = band.x.size(), stride = std::max<size_t>(1, n / most_points);
  std::string there, back;
  for (size_t i = 0; i < n; i += stride) {
    if (!std::isfinite(band.low[i]) || !std::isfinite(band.high[i])) continue;
    const auto clamp = [&](double v) { return std::clamp(axes.map_y(v), top - 1, height - bottom + 1); };
    there += fmt::format("{:.1f},{:.1f} ", axes.map_x(band.x[i]), clamp(band.high[i]));
    back = fmt::format("{:.1f},{:.1f} ", axes.map_x(band.x[i]), clamp(band.low[i])) + back;
  }
  return there.empty() ? there
                       : fmt::format(R"(<polygon class="band c{}" points="{}{}"/>)", band.color, there, back);
}

}  // namespace

std::string render(const Chart& chart) {
  const Axes axes = axes_of(chart);
  std::string legend, body = grid(axes, chart);
  for (const Band& band : chart.bands) body += draw(band, axes);
  for (double rule : chart.rules) {
    body += fmt::format(R"(<line class="rule" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>)", left,
                        width - right, axes.map_y(rule), axes.map_y(rule));
  }
  for (const Series& series : chart.series) body += draw(series, axes);
  for (const Series& series : chart.series) {
    if (!series.faint)
      legend += fmt::format(R"(<span class="key"><i class="swatch c{}"></i>{}</span>)", series.color,
                            escape_html(series.name));
  }
  return fmt::format(
      R"(<figure><figcaption>{}<span class="legend">{}</span></figcaption><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>)",
      escape_html(chart.title), legend, width, height, escape_html(chart.title), body);
}

std::string render(const HeatMap& map) {
  constexpr double label = 250, cell_height = 15;
  const size_t stride = std::max<size_t>(1, (map.columns.size() + 119) / 120),
               shown = (map.columns.size() + stride - 1) / stride;
  const double cell = (width - label - right) / static_cast<double>(std::max<size_t>(shown, 1));
  const double total = cell_height * static_cast<double>(map.rows.size()) + 30;
  std::string body;
  for (size_t r = 0; r < map.rows.size(); ++r) {
    const double y = cell_height * static_cast<double>(r);
    body += fmt::format(R"(<text x="{:.0f}" y="{:.1f}" text-anchor="end">{}</text>)", label - 6, y + 11,
                        escape_html(map.rows[r]));
    for (size_t c = 0; c < shown; ++c) {
      // A column that stands for several steps shows the worst of them.
      double value = std::numeric_limits<double>::quiet_NaN();
      for (size_t k = c * stride; k < std::min((c + 1) * stride, map.columns.size()); ++k) {
        if (std::isfinite(map.values[r][k]) && !(value >= map.values[r][k])) value = map.values[r][k];
      }
      if (!std::isfinite(value)) continue;
      // Shares from 1e-6 (faint) to 1e-1 (full), on a logarithmic scale; exact zero stays empty.
      const double opacity = value <= 0 ? 0 : std::clamp((std::log10(value) + 6) / 5, 0.06, 1.0);
      body += fmt::format(
          R"(<rect class="cell" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}" style="--heat:{:.2f}"><title>{} step {}: {:.3g} %</title></rect>)",
          label + cell * static_cast<double>(c), y, std::max(cell - 0.5, 0.5), cell_height - 1.5, opacity,
          escape_html(map.rows[r]), map.columns[c * stride], 100 * value);
    }
  }
  if (!map.columns.empty()) {
    body +=
        fmt::format(R"(<text x="{:.0f}" y="{:.0f}">step {}</text>)", label, total - 10, map.columns.front());
    body += fmt::format(R"(<text x="{:.0f}" y="{:.0f}" text-anchor="end">step {}</text>)", width - right,
                        total - 10, map.columns.back());
  }
  return fmt::format(
      R"(<figure><figcaption>{}</figcaption><svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg></figure>)",
      escape_html(map.title), width, total, escape_html(map.title), body);
}

}  // namespace octet
