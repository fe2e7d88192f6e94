#include <filesystem>
#include <fstream>
#include <regex>

#include "analysis/report.h"
#include "analysis/synthetic_run.h"
#include "base/error.h"
#include "catch.h"

using namespace octet;
using namespace octet::testing;

namespace {
ReportInput hostile_input() {
  SyntheticRun base, variant;
  variant.name = "fp8<script>alert(1)</script>\"'&";
  variant.fp8_share = 0.9;
  variant.input_format = "e4m3";
  variant.health = true;
  ReportInput input;
  input.title = "<img src=x onerror=alert(2)> against \x1b[31mred";
  input.baseline = synthetic_log(base);
  variant.name = "fp8";
  input.variants.push_back(synthetic_log(variant));
  input.variants[0].name = "fp8<script>alert(1)</script>\"'&";
  input.variants[0].events.push_back({10, "spike", "</td><script>alert(3)</script>"});
  input.comparisons.push_back(compare_runs(input.baseline, input.variants[0], NoiseBand{}));
  return input;
}
}  // namespace

TEST_CASE("the page escapes hostile names and asks nothing of a network") {
  const std::string page = render_html(hostile_input());
  CHECK(page.find("<script") == std::string::npos);
  CHECK(page.find("<img") == std::string::npos);
  CHECK(page.find("\x1b") == std::string::npos);
  CHECK(page.find("&lt;script&gt;") != std::string::npos);  // the name is there, harmless
  CHECK_FALSE(std::regex_search(page, std::regex("<[^>]*(src|href)\\s*=|url\\(|@import|<[^>]*https?://")));
}

TEST_CASE("every opened tag of the page is closed in order") {
  const std::string page = render_html(hostile_input());
  std::vector<std::string> open;
  const std::regex tag("<(/?)([a-z0-9]+)([^>]*)>");
  for (std::sregex_iterator it(page.begin(), page.end(), tag), end; it != end; ++it) {
    const std::string name = (*it)[2], rest = (*it)[3];
    if (name == "meta" || (!rest.empty() && rest.back() == '/')) continue;
    if ((*it)[1] == "") {
      open.push_back(name);
    } else {
      REQUIRE(!open.empty());
      CHECK(open.back() == name);
      open.pop_back();
    }
  }
  CHECK(open.empty());
}

TEST_CASE("report.json carries the verdict and survives non-finite numbers") {
  ReportInput input = hostile_input();
  input.comparisons[0].validation_gap = std::nan("");
  const auto json = render_json(input);
  CHECK(json["verdict"] == "EQUIVALENT");
  CHECK(json["comparisons"][0]["validation_gap"].is_null());
  CHECK(json["comparisons"][0]["gap"].is_number());
}

TEST_CASE("a log that a resume rewound has every step once, with the later value") {
  const auto folder = std::filesystem::temp_directory_path() / "octet-rewound";
  std::filesystem::remove_all(folder);
  SyntheticRun run;
  run.steps = 10;
  write_synthetic_run(run, folder);
  std::ofstream(folder / "metrics.jsonl", std::ios::app) << R"({"kind":"start","step":5})"
                                                         << "\n"
                                                         << R"({"kind":"step","step":6,"train/loss":9.0})"
                                                         << "\n"
                                                         << R"({"kind":"step","st)";  // killed while writing
  const RunHistory log = read_run_history(folder);
  REQUIRE(log.steps.size() == 6);
  CHECK(log.steps.back().loss == 9.0);
  std::ofstream(folder / "metrics.jsonl", std::ios::app) << "\n{}\n";  // now the broken line is in the middle
  CHECK_THROWS_AS(read_run_history(folder), Error);
  std::filesystem::remove_all(folder);
}
