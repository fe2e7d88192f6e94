#include "analysis/run_history.h"

#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "base/error.h"
#include "base/files.h"
#include "training/run_files.h"

namespace octet {

using nlohmann::json;

double number_of(const json& value) {
  if (value.is_number()) return value.get<double>();
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    if (text == "Infinity") return std::numeric_limits<double>::infinity();
    if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
  }
  return std::numeric_limits<double>::quiet_NaN();
}

namespace {

double field(const json& record, const char* key) {
  const auto it = record.find(key);
  return it == record.end() ? std::numeric_limits<double>::quiet_NaN() : number_of(*it);
}

std::string text_field(const json& record, const char* key) {
  const auto it = record.find(key);
  return it != record.end() && it->is_string() ? it->get<std::string>() : std::string{};
}

int64_t integer_field(const json& record, const char* key) {
  const auto it = record.find(key);
  return it != record.end() && it->is_number_integer() ? it->get<int64_t>() : 0;
}

json read_json(const std::filesystem::path& path) {
  try {
    return json::parse(read_text(path, ExitCode::Data));
  } catch (const json::exception& error) {
    throw Error(ExitCode::Data, fmt::format("{}: not valid JSON: {}", path.string(), error.what()),
                "the file is written by octet train; if it was edited, restore it");
  }
}

// After a resume from step k the writer starts again at k + 1: what was there beyond is history that did not
// happen.
template <class Record>
void rewind(std::vector<Record>& records, int64_t step) {
  while (!records.empty() && records.back().step >= step) records.pop_back();
}

HealthRecord health_of(const json& record, int64_t step) {
  HealthRecord health{step, {}};
  const auto sites = record.find("sites");
  if (sites == record.end() || !sites->is_array()) return health;
  for (const json& site : *sites) {
    if (!site.is_object()) continue;
    health.sites.push_back({text_field(site, "name"), static_cast<int>(integer_field(site, "block")),
                            field(site, "amax"), field(site, "scale"), field(site, "saturated"),
                            field(site, "flushed")});
  }
  return health;
}

void add_record(RunHistory& log, const json& record) {
  const std::string kind = text_field(record, "kind");
  const int64_t step = integer_field(record, "step");
  if (kind == "start") {
    log.start = record;
    rewind(log.steps, step + 1);
    rewind(log.validations, step + 1);
    rewind(log.health, step + 1);
  } else if (kind == "step") {
    rewind(log.steps, step);
    StepRecord s;
    s.step = step;
    s.tokens = integer_field(record, "tokens");
    s.loss = field(record, "train/loss");
    s.gradient_norm = field(record, "train/grad_norm");
    s.learning_rate = field(record, "train/learning_rate");
    s.tokens_per_second = field(record, "perf/tokens_per_second");
    s.fp8_flop_share = field(record, "perf/fp8_flop_share");
    s.memory_bytes = field(record, "memory/bytes");
    s.skipped = field(record, "train/skipped") > 0;
    s.batch_hash = text_field(record, "data/batch_hash");
    log.steps.push_back(std::move(s));
  } else if (kind == "validation") {
    rewind(log.validations, step);
    log.validations.push_back({step, field(record, "validation/loss")});
  } else if (kind == "health") {
    rewind(log.health, step);
    log.health.push_back(health_of(record, step));
  } else if (kind == "event") {
    log.events.push_back({step, text_field(record, "event"), text_field(record, "message")});
  }
}

}  // namespace

RunHistory read_run_history(const std::filesystem::path& folder) {
  const auto metrics = folder / metrics_file;
  if (!std::filesystem::exists(metrics)) {
    throw Error(ExitCode::Data, fmt::format("{}: no {} there", folder.string(), metrics_file),
                "give the folder of a run that octet train wrote");
  }
  RunHistory log;
  log.folder = folder;
  log.config = read_json(folder / config_file);
  if (std::filesystem::exists(folder / status_file)) log.status = read_json(folder / status_file);
  log.name = folder.filename().string();
  std::ifstream in(metrics);
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (line.empty()) continue;
    const json record = json::parse(line, nullptr, false);
    if (record.is_object()) {
      add_record(log, record);
    } else if (in.peek() != std::ifstream::traits_type::eof()) {
      throw Error(ExitCode::Data, fmt::format("{}:{}: not a JSON object", metrics.string(), number),
                  "each line of the file is one record; only a last, partial line is tolerated");
    }
  }
  return log;
}

}  // namespace octet
