// One self-contained HTML page and a JSON file about a comparison. No scripts, no external requests,
// everything escaped.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "analysis/comparison.h"
#include "analysis/run_history.h"

namespace octet {

struct ReportInput {
  std::string title;
  RunHistory baseline;
  std::vector<RunHistory> variants;
  std::vector<Comparison> comparisons;     // one a variant
  std::vector<RunHistory> baseline_seeds;  // empty, or all runs that made the noise band
};

std::string render_html(const ReportInput& input);
Json render_json(const ReportInput& input);
// report.html and report.json, each written atomically.
void write_report(const ReportInput& input, const std::filesystem::path& folder);

}  // namespace octet
