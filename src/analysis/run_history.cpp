#include "analysis/run_history.h"

#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "base/error.h"
#include "base/files.h"
#include "base/median.h"
#include "training/json_fields.h"
#include "training/run_files.h"

namespace octet {

namespace {

constexpr double missing = std::numeric_limits<double>::quiet_NaN();

// After a resume from step k the writer starts again at k + 1: what was there beyond is history that did not
// happen.
template <class Record>
void rewind(std::vector<Record>& records, int64_t step) {
  while (!records.empty() && records.back().step >= step) records.pop_back();
}

HealthRecord health_of(const JsonFields& record, const std::string& source, int64_t step) {
  HealthRecord health{step, {}, {}};
  for (const Json& object : record.objects("sites")) {
    const JsonFields site(object, source + ": /sites");
    health.sites.push_back({site.text("name", ""), static_cast<int>(site.integer("block", 0)),
                            site.number("amax", missing), site.number("scale", missing),
                            site.number("saturated", missing), site.number("flushed", missing),
                            site.number("snr_db", missing)});
  }
  const Json activations = record.object("activations"), blocks = record.object("blocks");
  for (const auto& [tensor, values] : activations.items()) {
    const std::string place = source + ": /activations/" + tensor;
    if (!values.is_object())
      throw Error(ExitCode::Data, place + ": not an object", "the file is damaged or edited");
    const JsonFields fields(values, place);
    health.blocks["kurtosis/" + tensor] = fields.numbers("kurtosis");
    health.blocks["rms/" + tensor] = fields.numbers("rms");
  }
  if (!blocks.empty())
    health.blocks["log_sum_exp"] = JsonFields(blocks, source + ": /blocks").numbers("log_sum_exp");
  return health;
}

// What the report and the comparison read of it later must have the right types now.
void check_start(const JsonFields& record, const std::string& source) {
  record.text("init_hash", "");
  for (const Json& object : record.objects("gemm_table")) {
    const JsonFields row(object, source + ": /gemm_table");
    for (const char* key : {"class", "a", "b", "out"}) row.text(key, "");
    row.number("flops", 0);
  }
}

void add_record(RunHistory& log, const Json& json, const std::string& source) {
  const JsonFields record(json, source);
  const std::string kind = record.text("kind");
  const int64_t step = record.integer("step");
  if (kind == "start") {
    check_start(record, source);
    log.start = json;
    while (!log.starts.empty() && log.starts.back().at("step").get<int64_t>() >= step) log.starts.pop_back();
    log.starts.push_back(json);
    rewind(log.steps, step + 1);
    rewind(log.validations, step + 1);
    rewind(log.health, step + 1);
  } else if (kind == "step") {
    rewind(log.steps, step);
    StepRecord s;
    s.step = step;
    s.tokens = record.integer("tokens", 0);
    s.loss = record.number("train/loss", missing);
    s.gradient_norm = record.number("train/grad_norm", missing);
    s.learning_rate = record.number("train/learning_rate", missing);
    s.tokens_per_second = record.number("perf/tokens_per_second", missing);
    s.fp8_flop_share = record.number("perf/fp8_flop_share", missing);
    s.memory_bytes = record.number("memory/bytes", missing);
    s.skipped = record.number("train/skipped", 0) > 0;
    s.batch_hash = record.text("data/batch_hash", "");
    log.steps.push_back(std::move(s));
  } else if (kind == "validation") {
    rewind(log.validations, step);
    log.validations.push_back({step, record.number("validation/loss", missing)});
  } else if (kind == "health") {
    rewind(log.health, step);
    log.health.push_back(health_of(record, source, step));
  } else if (kind == "event") {
    log.events.push_back({step, record.text("event", ""), record.text("message", "")});
  }
}

std::vector<SharpnessRecord> read_sharpness(const std::filesystem::path& file) {
  std::error_code ignored;
  std::vector<SharpnessRecord> records;
  if (!std::filesystem::exists(file, ignored)) return records;
  const Json json = read_json_object(file);
  for (const Json& object : JsonFields(json, file.string()).objects("points")) {
    const JsonFields point(object, file.string() + ": /points");
    records.push_back({point.integer("step"), point.number("epsilon", missing), point.number("last", missing),
                       point.number("last_error", missing), point.number("all", missing)});
  }
  return records;
}

}  // namespace

std::string describe_state(const RunHistory& run) {
  if (!run.status) return "?";
  if (run.status->state != "killed") return run.status->state;
  return fmt::format("killed after step {}", run.steps.empty() ? run.status->step : run.steps.back().step);
}

double median_throughput(const RunHistory& run) {
  std::vector<double> values;
  for (const StepRecord& step : run.steps)
    if (std::isfinite(step.tokens_per_second)) values.push_back(step.tokens_per_second);
  return median(std::move(values));
}

RunHistory read_run_history(const std::filesystem::path& folder) {
  const auto metrics = folder / metrics_file;
  if (!std::filesystem::exists(metrics)) {
    throw Error(ExitCode::Data, fmt::format("{}: no {} there", folder.string(), metrics_file),
                "give the folder of a run that octet train wrote");
  }
  RunHistory log;
  log.folder = folder;
  log.config = read_json_object(folder / config_file);
  log.status = read_status(folder);
  log.sharpness = read_sharpness(folder / sharpness_file);
  log.name = std::filesystem::weakly_canonical(folder).filename().string();  // also of "runs/a/" and "."
  std::ifstream in(metrics);
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (line.empty()) continue;
    const Json record = Json::parse(line, nullptr, false);
    if (record.is_object()) {
      add_record(log, record, fmt::format("{}:{}", metrics.string(), number));
    } else if (in.peek() != std::ifstream::traits_type::eof()) {
      throw Error(ExitCode::Data, fmt::format("{}:{}: not a JSON object", metrics.string(), number),
                  "each line of the file is one record; only a last, partial line is tolerated");
    }
  }
  return log;
}

}  // namespace octet
