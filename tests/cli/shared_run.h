// Runs of several real processes, as the built-in launcher starts them.
#pragma once
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "catch.h"
#include "cli/command_run.h"

namespace octet::testing {

using Json = nlohmann::ordered_json;

// 12 micro-batches a step; matrices of 49,152 weights, which 2 and 4 ranks share out unevenly, and smaller
// ones that every rank keeps.
struct SharedRun {
  TemporaryFolder folder;
  explicit SharedRun(const std::string& recipe = "fp32") {
    std::string text;
    for (int i = 0; i < 3000; ++i) text += "all work and no play " + std::to_string(i * i % 97) + "\n";
    std::ofstream(folder.path() / "text.txt") << text;
    REQUIRE(run_octet("tokenize text.txt --output data --validation 0.1", folder.path()).code == 0);
    std::ofstream(folder.path() / "run.json") << R"({
      "run": {"name": "shared", "seed": 3, "steps": 6, "deterministic": true, "threads": 1},
      "model": {"layers": 1, "width": 128, "heads": 2, "kv_heads": 1, "ffn_width": 384, "context": 16},
      "precision": {"recipe": ")" << recipe << R"("},
      "data": {"train": ["data/train_*.bin"], "validation": ["data/validation_*.bin"]},
      "batch": {"tokens": 384, "micro": 2},
      "parallel": {"reduce": "fp32"},
      "schedule": {"learning_rate": 3e-3, "warmup_steps": 2},
      "evaluation": {"every": 3, "batches": 5},
      "health": {"every": 2},
      "checkpoint": {"every": 0, "asynchronous": false}
    })";
  }
  CommandRun train(const std::string& name, const std::string& arguments) const {
    return run_octet("train run.json --quiet --set run.output=" + name + " " + arguments, folder.path());
  }
  std::vector<Json> records(const std::string& name, const std::string& kind) const {
    std::ifstream in(folder.path() / name / "metrics.jsonl");
    std::vector<Json> found;
    for (std::string line; std::getline(in, line);) {
      const Json record = Json::parse(line);
      if (record["kind"] == kind) found.push_back(record);
    }
    return found;
  }
  std::vector<double> numbers(const std::string& name, const char* key, const char* kind = "step") const {
    std::vector<double> values;
    for (const Json& record : records(name, kind)) values.push_back(record[key].get<double>());
    return values;
  }
  std::vector<std::string> hashes(const std::string& name) const {
    std::vector<std::string> values;
    for (const Json& record : records(name, "step")) values.push_back(record["data/batch_hash"]);
    return values;
  }
  bool same_checkpoint(const std::string& a, const std::string& b,
                       const std::string& step = "00000006") const {
    const std::string inside = "/checkpoints/step-" + step;
    // The configurations differ, for example in parallel.zero.
    const CommandRun diff = run_octet("checkpoint diff " + a + inside + " " + b + inside, folder.path());
    return diff.code == 0 || diff.says("all tensors are equal");
  }
  // Every file of the last checkpoint but the manifest, byte for byte; losses, norms and batches of every
  // step.
  bool same_run(const std::string& a, const std::string& b) const {
    for (const char* key : {"train/loss", "train/grad_norm"})
      if (numbers(a, key) != numbers(b, key)) return false;
    if (numbers(a, "validation/loss", "validation") != numbers(b, "validation/loss", "validation"))
      return false;
    if (hashes(a).size() != 6 || hashes(a) != hashes(b)) return false;
    for (const char* file : {"masters", "moments", "scale_table"}) {
      const auto content = [&](const std::string& name) {
        std::ifstream in(
            folder.path() / name / "checkpoints/step-00000006" / (std::string(file) + ".safetensors"),
            std::ios::binary);
        return std::string(std::istreambuf_iterator<char>(in), {});
      };
      const std::string bytes = content(a);
      if (bytes != content(b) || (bytes.empty() && file != std::string("scale_table"))) return false;
    }
    return true;
  }
};

inline double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  REQUIRE(!a.empty());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(a[i] - b[i]) / std::fabs(a[i]));
  return largest;
}

}  // namespace octet::testing
