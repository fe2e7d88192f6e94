// A sweep: a grid of runs over any configuration keys, read from one JSON file.
//
//   {
//     "name": "exmy",                        // folder runs/NAME, unless there is "output"
//     "base": "configs/quickstart.json",     // or a configuration in place
//     "set": ["run.steps=300"],              // of every cell
//     "variants": {                          // named lists of overrides: one axis
//       "bf16": ["precision.recipe=bf16"],
//       "plain": ["precision.recipe=fp8", "precision.smooth_swiglu=none"]
//     },
//     "axes": {"schedule.learning_rate": [1e-3, 4e-3], "run.seed": [1, 2, 3]},
//     "inject": ["align:step=200"],          // into the state of every cell (training/state_injection.h)
//     "sharpness": 64                        // sequences (octet sharpness); without it: not measured
//   }
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "config/run_config.h"

namespace octet {

struct SweepCell {
  std::string name;   // of its folder: "plain.learning_rate-0.001.seed-2"
  std::string group;  // what it is one seed of: "plain, learning_rate 0.001"
  std::vector<std::pair<std::string, std::string>> coordinates;  // "variant" or key, and value as text
  RunConfig config;                                              // run.output is the cell's own folder
};

struct Sweep {
  std::string name;
  std::filesystem::path folder;
  std::vector<std::string> inject;
  int64_t sharpness = 0;                    // sequences to measure it on after training; 0: not measured
  std::vector<SweepCell> cells;             // the last axis varies fastest
  std::vector<std::string> groups() const;  // in the order of their first cells
};

// Everything wrong at once, as one Error(Usage): place, key, found, allowed; each cell's configuration is
// built and checked. `overrides` are of every cell, after "set"; `output`: not empty, the folder.
Sweep load_sweep(const std::string& path, const std::vector<std::string>& overrides = {},
                 const std::string& output = {});
Sweep parse_sweep(const std::string& text, const std::string& source_name,
                  const std::vector<std::string>& overrides = {}, const std::string& output = {});

}  // namespace octet
