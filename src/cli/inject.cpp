// octet inject
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <csignal>
#include <memory>

#include "analysis/injection_experiment.h"
#include "analysis/sweep.h"
#include "cli/experiments.h"

namespace octet {
namespace {

struct Options {
  InjectionOptions experiment;
  std::string file, device = "auto";
  int jobs = 1;
  bool dry_run = false;
};

int run(const Options& options) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away must not stop training (F41)
  const Sweep cells = injection_experiment(options.file, options.experiment);
  fmt::print("{}\n  injected: {}\n", describe(cells, options.jobs), fmt::join(cells.inject, "; "));
  std::fflush(stdout);
  if (!options.dry_run) return sweep({cells, options.device, options.jobs});
  for (const SweepCell& cell : cells.cells)
    fmt::print("  {}  config {}\n", cell.name, config_hash(cell.config));
  return 0;
}

}  // namespace

void add_inject(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "inject", "Inject the same outlier into BF16 and FP8 runs, and say which of them breaks");
  command
      ->add_option("CONFIG", options->file,
                   "a run's configuration, around which the experiment is made, or a sweep with \"inject\"")
      ->required();
  command->add_option(
      "--fault", options->experiment.fault,
      "what is injected, for example align:step=200,neurons=2; by default align at a third of the run");
  command->add_option("--seeds", options->experiment.seeds, "by default three, from the configuration's own")
      ->delimiter(',');
  command->add_option("--set", options->experiment.overrides, "override a key of every run")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option("--jobs", options->jobs, "runs at once; the cores are shared out among them")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--device", options->device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--output", options->experiment.output, "the experiment's folder");
  command->add_flag("--dry-run", options->dry_run, "list the runs and stop");
  command->footer(
      "Exit code: as octet sweep.\nExample:\n  octet inject configs/injected-outlier.json --jobs 2");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace octet
