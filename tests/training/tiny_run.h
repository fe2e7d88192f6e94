// A run of a model so small that a step takes a millisecond: two shards of nine windows, four windows a step
// in two micro-batches, so that steps cross micro-batches, the shard edge and (in step 5) the epoch edge.
#pragma once
#include <fmt/format.h>

#include <map>
#include <string>
#include <vector>

#include "base/log.h"
#include "data/shard_writer.h"
#include "training/helpers.h"
#include "training/run_files.h"
#include "training/train.h"

namespace octet::testing {

struct TinyData {
  TemporaryFolder folder;
  TinyData() {
    write("train", 2 * 145, 145, 1);
    write("validation", 81, 1000, 2);
  }
  void write(const std::string& prefix, int64_t tokens, int64_t shard_tokens, uint32_t seed) const {
    ShardWriterOptions o;
    o.folder = folder.path;
    o.prefix = prefix;
    o.vocabulary = 64;
    o.shard_tokens = shard_tokens;
    o.total_tokens = tokens;
    ShardWriter writer(o);
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    for (size_t i = 0; i < ids.size(); ++i) {
      seed = seed * 1664525u + 1013904223u;  // a walk a model can learn: mostly the next id
      ids[i] = static_cast<int32_t>((i + (seed >> 30)) % 64);
    }
    writer.write(ids);
    writer.close();
  }
  std::string glob(const std::string& prefix) const { return (folder.path / (prefix + "_*.bin")).string(); }
};

// Overrides: the tiny model with the options of the preset munit, and `more`.
inline std::vector<std::string> unit_model(const std::vector<std::string>& more) {
  std::vector<std::string> all = {"model.tied_head=false",     "model.pre_norm=false",
                                  "model.post_norm=rms",       "model.post_norm_initial_gain=1",
                                  "model.activation=gelu",     "model.residual=weighted",
                                  "model.parametrization=unit"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

struct TinyRun {
  const TinyData& data;
  TemporaryFolder folder;
  TrainRequest request;

  explicit TinyRun(const TinyData& the_data, const std::vector<std::string>& overrides = {})
      : data(the_data) {
    set_log_level(LogLevel::Error);
    const std::string text =
        fmt::format(R"({{
      "run": {{"name": "tiny", "output": "{}", "seed": 7, "steps": 8, "deterministic": true, "threads": 1}},
      "model": {{"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "ffn_width": 48, "context": 16,
                 "vocabulary": 64, "tied_head": true}},
      "precision": {{"recipe": "fp8"}},
      "data": {{"train": ["{}"], "validation": ["{}"]}},
      "batch": {{"tokens": 64, "micro": 2}},
      "schedule": {{"learning_rate": 1e-2, "warmup_steps": 2}},
      "checkpoint": {{"every": 2, "keep": 100, "asynchronous": false}},
      "evaluation": {{"every": 4, "batches": 3}},
      "health": {{"every": 2}}
    }})",
                    (folder.path / "run").string(), data.glob("train"), data.glob("validation"));
    request.config = parse_config(text, "tiny", overrides);
    request.device = "cpu";
    request.quiet = true;
  }

  std::filesystem::path path() const { return folder.path / "run"; }
  std::filesystem::path checkpoint(int64_t step) const {
    return path() / "checkpoints" / checkpoint_name(step);
  }

  TrainResult go(const std::vector<std::string>& inject = {}) {
    request.inject = inject;
    return train(request);
  }
  std::vector<Json> records(const std::string& kind) const {
    std::ifstream in(path() / metrics_file);
    std::vector<Json> found;
    for (std::string line; std::getline(in, line);) {
      Json record = Json::parse(line);  // throws when a line is not JSON
      if (record["kind"] == kind) found.push_back(std::move(record));
    }
    return found;
  }
  std::vector<std::string> events(const std::string& name) const {
    std::vector<std::string> messages;
    for (const Json& e : records("event"))
      if (e["event"] == name) messages.push_back(e["message"]);
    return messages;
  }
  // Loss and gradient norm of every step, as text: equal only when every bit is.
  std::vector<std::string> curve() const {
    std::vector<std::string> points;
    for (const Json& r : records("step"))
      points.push_back(fmt::format("{} {} {} {}", r["step"].dump(), r["train/loss"].dump(),
                                   r["train/grad_norm"].dump(), r["data/batch_hash"].dump()));
    return points;
  }
  Json status() const { return Json::parse(bytes_of(path() / status_file)); }
};

inline std::map<std::string, std::string> files_in(const std::filesystem::path& checkpoint) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(checkpoint))
    files[entry.path().filename().string()] = bytes_of(entry.path());
  return files;
}

inline std::string masters_of(const TinyRun& run, int64_t step) {
  return bytes_of(run.checkpoint(step) / "masters.safetensors");
}

}  // namespace octet::testing
