// `octet sweep`: trains the cells of a sweep, several at once, each as a process of its own, then reports.
#pragma once
#include <string>

#include "analysis/sweep_file.h"

namespace octet {

struct SweepRequest {
  Sweep sweep;
  std::string device = "auto";
  int jobs = 1;  // cells at once; the cores are shared out among them
};

// What a sweep is before it runs: cells, steps, tokens, FLOPs, memory.
std::string describe(const Sweep& sweep, int jobs);

// Trains what is not finished: interrupted cells go on where they stopped, finished ones, also those that
// diverged, are results. Each has a folder of its own under FOLDER/cells, beside it NAME.json, the
// configuration, and NAME.log, what it printed. Writes sweep.json and sweep.html into the sweep's folder.
//
// Returns 0 when every cell has a result; 75 when asked to stop, after all cells have saved (76: one could
// not); otherwise the exit code of the first cell that did not train at all, after the others have.
int sweep(const SweepRequest& request);

}  // namespace octet
