// What a sweep found: a row a group of cells (everything but the seed), a row a cell, curves.
#pragma once
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "analysis/failure.h"
#include "analysis/report_health.h"
#include "analysis/run_history.h"
#include "analysis/statistics.h"
#include "analysis/sweep_file.h"

namespace octet {

// How a cell ended, in the sweep's order.
struct CellOutcome {
  bool done = false;                  // there is a result
  std::optional<RunHistory> history;  // empty: it never began
  std::string error;                  // it did not train; empty otherwise
};

struct Spread {
  double mean = std::numeric_limits<double>::quiet_NaN(), deviation = 0;  // of a sample; 0 of one value
  double low = mean, high = mean;
  int64_t count = 0;
};
Spread spread_of(const std::vector<double>& values);  // finite ones

struct CellRow {
  const SweepCell* cell = nullptr;
  CellOutcome outcome;
  RunOutcome run;
  Alarms alarms;
  double gap = std::numeric_limits<double>::quiet_NaN();  // to its BF16 partner, in final average loss
  // What an injection added to the gap, and whether the partner failed or was thrown off
  // (injection_experiment.h).
  double injected = std::numeric_limits<double>::quiet_NaN();
  bool reference_broke = false;
};
struct GroupRow {
  std::string name;
  std::vector<size_t> cells;
  int64_t done = 0, failed = 0, errors = 0;
  Share fail_rate;                 // of those done
  double spikes_per_thousand = 0;  // over all cells done
  Spread final_loss;
  Spread sharpness;  // at the last checkpoint measured, percent
  Spread gap;        // paired: each cell less the BF16 cell that differs from it in the precision alone
  Spread injected;   // what an injection added to the gap
};
struct SweepReport {
  std::string name;
  std::vector<std::string> inject;  // of every cell; empty: an ordinary sweep
  std::vector<CellRow> cells;
  std::vector<GroupRow> groups;
  std::string best;  // the cell of the best BF16 run, which rule (ii) of a failure refers to; empty: none
};

// BF16 cells are those whose precision is the recipe "bf16" and nothing else. `sweep` must outlive the
// result.
SweepReport report_of(const Sweep& sweep, std::vector<CellOutcome> outcomes);

std::string table(const SweepReport& report);  // for a terminal
std::string render_html(const SweepReport& report);
Json render_json(const SweepReport& report);
void write_report(const SweepReport& report, const std::filesystem::path& folder);  // sweep.json, sweep.html

}  // namespace octet
