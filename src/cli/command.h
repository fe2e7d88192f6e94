// A sub-command: adds its options to the parser; its action returns the exit code.
#pragma once
#include <CLI/CLI.hpp>
#include <functional>

#include "base/error.h"

namespace octet {
// On standard error: "error: CAUSE", "hint:  REMEDY". Where that is closed or full, the exit code has to do.
void complain(const Error& error) noexcept;

// What --device may name (training/open_device.h).
inline constexpr const char* device_names =
    "auto, cpu, cuda, or interpreter: the GPU's kernels executed on the CPU";

using Action = std::function<int()>;
// Each adds one sub-command and sets `action` when the user chose it.
void add_train(CLI::App& app, Action& action);
void add_compare(CLI::App& app, Action& action);
void add_tokenize(CLI::App& app, Action& action);
void add_data(CLI::App& app, Action& action);
void add_plan(CLI::App& app, Action& action);
void add_config(CLI::App& app, Action& action);
void add_checkpoint(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);
void add_bench(CLI::App& app, Action& action);
void add_selftest(CLI::App& app, Action& action);
}  // namespace octet
