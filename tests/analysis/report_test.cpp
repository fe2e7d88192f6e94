#include <cmath>
#include <filesystem>
#include <fstream>
#include <regex>

#include "analysis/chart.h"
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

TEST_CASE("edited run files are errors that name the file and the key, in every reader") {
  const auto folder = std::filesystem::temp_directory_path() / "octet-edited";
  const auto complaint = [&](const char* file, const std::string& text) {
    std::filesystem::remove_all(folder);
    SyntheticRun run;
    run.steps = 3;
    write_synthetic_run(run, folder);
    std::ofstream(folder / file, file == std::string("metrics.jsonl") ? std::ios::app : std::ios::trunc)
        << text;
    try {
      ReportInput input;
      input.baseline = read_run_history(folder);
      input.variants.push_back(input.baseline);
      require_comparable(input.baseline, input.variants[0]);
      input.comparisons.push_back(compare_runs(input.baseline, input.variants[0], NoiseBand{}));
      render_html(input);
      return std::string("nothing");
    } catch (const Error& error) {  // anything else fails the test
      CHECK(error.code() == ExitCode::Data);
      return std::string(error.what());
    }
  };
  const std::pair<const char*, std::pair<const char*, const char*>> edits[] = {
      {"status.json", {"{\"state\": 7}", "status.json: /state: found 7, expected a text"}},
      {"status.json", {"null", "status.json: not a JSON object"}},
      {"config.json", {"[]", "config.json: not a JSON object"}},
      {"config.json",
       {"{\"precision\": {\"input\": {\"format\": 8}}}",
        "config.json: /precision/input: /format: found 8, expected a text"}},
      {"metrics.jsonl",
       {"{\"kind\": \"step\", \"step\": \"four\"}\n",
        "metrics.jsonl:5: /step: found \"four\", expected a whole number"}},
      {"metrics.jsonl",
       {"{\"kind\": \"step\", \"step\": 4, \"train/loss\": \"low\"}\n",
        "metrics.jsonl:5: /train/loss: found \"low\", expected a number"}},
      {"metrics.jsonl", {"{\"kind\": 1, \"step\": 4}\n", "metrics.jsonl:5: /kind: found 1"}},
      {"metrics.jsonl", {"{\"step\": 4}\n", "metrics.jsonl:5: /kind: missing"}},
      {"metrics.jsonl",
       {"{\"kind\": \"start\", \"step\": 3, \"init_hash\": {}}\n", "metrics.jsonl:5: /init_hash: found {}"}},
      {"metrics.jsonl",
       {"{\"kind\": \"start\", \"step\": 3, \"gemm_table\": [3]}\n",
        "metrics.jsonl:5: /gemm_table: found 3, expected an object"}},
      {"metrics.jsonl",
       {"{\"kind\": \"start\", \"step\": 3, \"gemm_table\": [{\"class\": 3}]}\n",
        "metrics.jsonl:5: /gemm_table: /class: found 3"}},
      {"metrics.jsonl",
       {"{\"kind\": \"health\", \"step\": 3, \"sites\": [{\"block\": \"a\"}]}\n",
        "metrics.jsonl:5: /sites: /block: found \"a\""}},
      {"metrics.jsonl",
       {"{\"kind\": \"event\", \"step\": 3, \"message\": 1}\n", "metrics.jsonl:5: /message: found 1"}},
  };
  for (const auto& [file, edit] : edits) {
    const std::string error = complaint(file, edit.first);
    INFO(edit.first << "\n" << error);
    CHECK(error.find(edit.second) != std::string::npos);
  }
  CHECK(complaint("metrics.jsonl", "{\"kind\": \"step\", \"step\": 4, \"train/loss\": \"NaN\"}\n") ==
        "nothing");
  CHECK(complaint("metrics.jsonl", "{\"kind\": \"later\", \"step\": 4, \"what\": [1]}\n") == "nothing");
  std::filesystem::remove_all(folder);
}

TEST_CASE("the report says of a killed run that it was killed, and after which step") {
  const auto folder = std::filesystem::temp_directory_path() / "octet-killed";
  SyntheticRun run;
  run.steps = 12;
  write_synthetic_run(run, folder);
  std::ofstream(folder / "status.json") << R"({"state": "running", "step": 0})";
  ReportInput input;
  input.baseline = read_run_history(folder);
  CHECK(describe_state(input.baseline) == "killed after step 12");
  CHECK(render_html(input).find("<td>killed after step 12</td>") != std::string::npos);
  std::filesystem::remove_all(folder);
}

TEST_CASE("a chart of values that differ by roundings, or of steps near 2^60, comes to an end") {
  // Ticks between these would be closer than the numbers there are.
  for (const double value : {10000.0, 1e-300, -3e18}) {
    Chart chart{"t", "x", "y", {}, {}, {}, false};
    chart.series.push_back({"s", {1, 2, 3}, {value, std::nextafter(value, 0), value}, 0, false, false});
    CHECK(render(chart).size() < 10000);
  }
  Chart far{"t", "x", "y", {}, {}, {}, false};
  far.series.push_back({"s", {0x1p60, 0x1p60 + 256}, {1, 2}, 0, false, false});
  CHECK(render(far).size() < 10000);
}

TEST_CASE("speed is claimed of GPUs only") {
  const auto page_on = [](const std::string& device) {
    SyntheticRun base, variant;
    variant.name = "fp8";
    variant.fp8_share = 0.9;
    variant.input_format = "e4m3";
    base.device = variant.device = device;
    ReportInput input;
    input.baseline = synthetic_log(base);
    input.variants.push_back(synthetic_log(variant));
    input.comparisons.push_back(compare_runs(input.baseline, input.variants[0], NoiseBand{}));
    const Json entry = render_json(input)["comparisons"][0];
    CHECK(entry["speed_up"].is_null() == (device != "NVIDIA H200"));
    CHECK(entry["net_benefit"].is_null() == (device != "NVIDIA H200"));
    return render_html(input);
  };
  for (const char* device : {"CPU (some processor, 2 threads)", "kernel interpreter on CPU (x, 1 thread)"}) {
    const std::string page = page_on(device);
    CHECK(page.find("speed ×") == std::string::npos);
    CHECK(page.find("net benefit") == std::string::npos);
  }
  CHECK(page_on("NVIDIA H200").find("speed ×0.90 · net benefit ×") != std::string::npos);
}
