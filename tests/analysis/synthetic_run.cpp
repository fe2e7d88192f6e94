#include "analysis/synthetic_run.h"

#include <cmath>
#include <fstream>

namespace octet::testing {

using nlohmann::json;

double shared_loss(int64_t step) {
  std::mt19937_64 generator(static_cast<uint64_t>(step) * 7919 + 5);
  std::normal_distribution<double> noise(0, 0.05);
  return 1.5 + 4.0 * std::exp(-static_cast<double>(step) / 80.0) + noise(generator);
}

namespace {

json number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

std::vector<json> records_of(const SyntheticRun& run) {
  std::vector<json> records;
  records.push_back(
      {{"kind", "start"},
       {"step", 0},
       {"init_hash", run.init_hash},
       {"device", run.device},
       {"data_fingerprint", run.data_fingerprint},
       {"environment", {{"cores", 2}}},
       {"gemm_table",
        json::array({{{"class", "fprop"}, {"a", "E4M3"}, {"b", "E4M3"}, {"out", "BF16"}, {"flops", 100}}})}});
  std::mt19937_64 generator(run.noise_seed);
  std::normal_distribution<double> noise(0, 1);
  for (int64_t step = 1; step <= run.steps; ++step) {
    const double loss = shared_loss(step) + run.gap(step) + run.noise * noise(generator);
    if (step % run.log_every == 0 || step == run.steps)
      records.push_back({{"kind", "step"},
                         {"step", step},
                         {"tokens", step * 8192},
                         {"train/loss", number(loss)},
                         {"train/grad_norm", 1.0},
                         {"train/learning_rate", 1e-3},
                         {"train/skipped", 0},
                         {"data/batch_hash", run.batch_salt + std::to_string(step)},
                         {"perf/tokens_per_second", run.fp8_share > 0 ? 9000 : 10000},
                         {"perf/fp8_flop_share", run.fp8_share},
                         {"memory/bytes", 1 << 28}});
    if (run.health && step % 20 == 0) {
      records.push_back({{"kind", "health"},
                         {"step", step},
                         {"sites", json::array({{{"name", "blocks.0.ffn.down.input"},
                                                 {"block", 0},
                                                 {"amax", 3.0},
                                                 {"scale", 64.0},
                                                 {"saturated", 0.0},
                                                 {"flushed", 1e-3}}})}});
    }
    if (step % 100 == 0)
      records.push_back({{"kind", "validation"}, {"step", step}, {"validation/loss", number(loss + 0.01)}});
  }
  return records;
}

}  // namespace

void write_synthetic_run(const SyntheticRun& run, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  json config = {{"model", {{"width", 256}}}, {"precision", {{"input", {{"format", run.input_format}}}}}};
  config.update(run.config);
  std::ofstream(folder / "config.json") << config;
  std::ofstream(folder / "status.json") << json{{"state", "finished"}, {"exit_code", 0}};
  std::ofstream metrics(folder / "metrics.jsonl");
  for (const json& record : records_of(run)) metrics << record.dump() << "\n";
}

RunHistory synthetic_log(const SyntheticRun& run) {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("octet-synthetic-" + std::to_string(std::random_device{}())) / run.name;
  write_synthetic_run(run, folder);
  RunHistory log = read_run_history(folder);
  std::filesystem::remove_all(folder.parent_path());
  return log;
}

}  // namespace octet::testing
