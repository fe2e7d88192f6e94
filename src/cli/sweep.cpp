// octet sweep
#include <fmt/format.h>

#include <csignal>
#include <memory>

#include "analysis/sweep.h"
#include "cli/experiments.h"

namespace octet {
namespace {

struct Options {
  std::string file, device = "auto", output;
  std::vector<std::string> overrides;
  int jobs = 1;
  bool dry_run = false;
};

int run(const Options& options) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away must not stop training (F41)
  const Sweep cells = load_sweep(options.file, options.overrides, options.output);
  fmt::print("{}\n", describe(cells, options.jobs));
  std::fflush(stdout);
  if (!options.dry_run) return sweep({cells, options.device, options.jobs});
  for (const SweepCell& cell : cells.cells)
    fmt::print("  {}  config {}\n", cell.name, config_hash(cell.config));
  return 0;
}

}  // namespace

void add_sweep(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("sweep", "Train a grid of runs, several at once, and say which fail");
  command->add_option("SWEEP", options->file, "base, variants and axes (JSON; docs/operations.md)")
      ->required();
  command->add_option("--jobs", options->jobs, "cells at once; the cores are shared out among them")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--set", options->overrides, "override a key of every cell: --set run.steps=100")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option("--device", options->device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--output", options->output, "the sweep's folder instead of the file's");
  command->add_flag("--dry-run", options->dry_run, "list the cells and stop");
  command->footer(
      "Exit code: 0 every cell has a result (a run that diverged is one), 75 stopped and saved: the same "
      "command goes on.\n"
      "Example:\n  octet sweep configs/sweep-recipes.json --jobs 2");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace octet
