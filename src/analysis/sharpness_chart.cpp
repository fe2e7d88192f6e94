#include "analysis/sharpness_chart.h"

#include <algorithm>

namespace octet {
namespace {

double smallest_epsilon(const RunHistory& run) {
  double smallest = 1;
  for (const SharpnessRecord& record : run.sharpness) smallest = std::min(smallest, record.epsilon);
  return smallest;
}

}  // namespace

Chart empty_sharpness_chart() {
  return {"Sharpness of the last token's logits (smallest epsilon measured)",
          "step",
          "percent",
          {},
          {},
          {},
          false};
}

Series sharpness_series(const RunHistory& run, int color) {
  Series series{run.name, {}, {}, color, false, false};
  for (const SharpnessRecord& record : run.sharpness) {
    if (record.epsilon != smallest_epsilon(run)) continue;
    series.x.push_back(static_cast<double>(record.step));
    series.y.push_back(record.last);
  }
  series.points = series.x.size() == 1;  // a line needs two
  return series;
}

const SharpnessRecord* newest_sharpness(const RunHistory& run) {
  const SharpnessRecord* newest = nullptr;
  for (const SharpnessRecord& record : run.sharpness)
    if (record.epsilon == smallest_epsilon(run)) newest = &record;
  return newest;
}

}  // namespace octet
