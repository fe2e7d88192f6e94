// The sub-commands that try something out: on grids of runs, and on checkpoints.
#pragma once
#include "cli/command.h"

namespace octet {
void add_sweep(CLI::App& app, Action& action);
void add_inject(CLI::App& app, Action& action);
void add_sharpness(CLI::App& app, Action& action);
void add_whatif(CLI::App& app, Action& action);
}  // namespace octet
