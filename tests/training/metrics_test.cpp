#include "training/metrics.h"

#include <cmath>
#include <limits>
#include <sstream>

#include "standard_error.h"
#include "training/helpers.h"
#include "training/run_files.h"

using namespace octet;
using namespace octet::testing;

namespace {
std::vector<Json> records_of(const std::filesystem::path& folder) {
  std::istringstream in(bytes_of(folder / metrics_file));
  std::vector<Json> records;
  for (std::string line; std::getline(in, line);)
    records.push_back(Json::parse(line));  // throws when invalid
  return records;
}
}  // namespace

TEST_CASE("every line is valid JSON, with NaN and infinities as strings") {
  const TemporaryFolder folder;
  const double infinity = std::numeric_limits<double>::infinity();
  {
    RunLog log({folder.path, -1, true});
    log.write("step", 1,
              {{"train/loss", json_number(std::nan(""))}, {"train/grad_norm", json_number(infinity)}});
    log.write("step", 2, {{"train/loss", json_number(-infinity)}, {"train/grad_norm", json_number(0.25)}});
    log.event(2, "spike", "a \"quoted\" \x1b[31m message\nof two lines, with a broken \xff byte");
  }
  const std::vector<Json> records = records_of(folder.path);
  REQUIRE(records.size() == 3);
  CHECK(records[0]["kind"] == "step");
  CHECK(records[0]["train/loss"] == "NaN");
  CHECK(records[0]["train/grad_norm"] == "Infinity");
  CHECK(records[1]["train/loss"] == "-Infinity");
  CHECK(records[1]["train/grad_norm"] == 0.25);
  CHECK(std::isnan(number_of(records[0]["train/loss"])));
  CHECK(number_of(records[1]["train/loss"]) == -infinity);
}

TEST_CASE("a resume drops later records and a torn last line, and keeps the rest byte for byte") {
  const TemporaryFolder folder;
  const auto path = folder.path / metrics_file;
  const std::string kept = "{\"kind\":\"step\",\"step\":1}\n{\"kind\":\"step\",\"step\":2}\n";
  put_bytes(path, kept + "{\"kind\":\"step\",\"step\":3}\n{\"kind\":\"st");
  CHECK(rewind_metrics(path, 2) == 2);
  CHECK(bytes_of(path) == kept);
  CHECK(rewind_metrics(path, 2) == 0);  // nothing left to drop
  { RunLog(RunLogOptions{folder.path, 2, false}).write("step", 3, Json::object()); }
  CHECK(bytes_of(path) == kept + "{\"kind\":\"step\",\"step\":3}\n");
  { RunLog fresh({folder.path, -1, false}); }
  CHECK(bytes_of(path).empty());
}

TEST_CASE("a log on a full disk warns once and lets the run go on") {
  const TemporaryFolder folder;
  std::filesystem::create_symlink("/dev/full", folder.path / metrics_file);
  const std::string full = warnings_of([&] {
    RunLog log({folder.path, -1, false});
    for (int step = 1; step < 4; ++step) log.write("step", step, {{"train/loss", 1.0}});
  });
  CHECK(count_of(full, "warning") == 1);
  CHECK(count_of(full, "metrics.jsonl: No space left on device; this log ends here") == 1);
  std::filesystem::remove(folder.path / metrics_file);
  std::filesystem::create_directory(folder.path / metrics_file);  // not a file at all
  const std::string no_file = warnings_of([&] {
    RunLog log({folder.path, 3, false});
    for (int step = 4; step < 6; ++step) log.event(step, "stop", "");
  });
  CHECK(count_of(no_file, "warning") == 1);
  CHECK(count_of(no_file, "metrics.jsonl: Is a directory") == 1);
  std::filesystem::remove(folder.path / metrics_file);
  CHECK(warnings_of([&] { RunLog({folder.path, -1, false}).event(1, "stop", ""); }).empty());
}
