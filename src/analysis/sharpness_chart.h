// The sharpness of runs over their steps, where octet sharpness has measured it.
#pragma once
#include "analysis/chart.h"
#include "analysis/run_history.h"

namespace octet {

Chart empty_sharpness_chart();
// Of the smallest epsilon measured; without points where the run has none.
Series sharpness_series(const RunHistory& run, int color);
// The newest point of that series; null where there is none.
const SharpnessRecord* newest_sharpness(const RunHistory& run);

}  // namespace octet
