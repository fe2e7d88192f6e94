#include <csignal>
#include <memory>

#include "analysis/compare.h"
#include "base/error.h"
#include "cli/command.h"

namespace octet {

void add_compare(CLI::App& app, Action& action) {
  struct Options {
    std::string config, device = "auto", output;
    std::vector<std::string> variants{"bf16", "fp8"}, overrides, from, inject;
    int seeds = 1;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "compare", "Train twins that differ in their recipe only and say whether they learn the same");
  auto* config = command->add_option("CONFIG", options->config,
                                     "configuration (JSON); run.output becomes the comparison's folder");
  command->add_option("--variants", options->variants, "recipes, the first is the baseline")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--seeds", options->seeds, "runs of the baseline that make the noise band")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  command->add_option("--set", options->overrides, "override a key: --set schedule.learning_rate=2e-3")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option("--device", options->device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command
      ->add_option("--inject", options->inject,
                   "a change of weights in every run, for example align:step=200 (docs/operations.md)")
      ->type_name("FAULT")
      ->allow_extra_args(false);
  auto* from =
      command->add_option("--from", options->from, "compare two runs that exist: baseline and variant")
          ->expected(2)
          ->excludes(config);
  command
      ->add_option(
          "--output", options->output,
          "with --from: the folder of the report; by default VARIANT-against-BASELINE beside the variant")
      ->needs(from);
  command->footer(
      "Exit code: 0 EQUIVALENT or SMALL GAP, 10 INCONCLUSIVE, 11 DEGRADED, 12 DIVERGING, 20 DIVERGED.\n"
      "Example:\n  octet compare configs/quickstart.json --variants bf16,fp8 --seeds 2\n"
      "  octet compare --from runs/a runs/b           # report in runs/b-against-a");
  command->callback([options, &action] {
    action = [options] {
      std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away must not stop training (F41)
      if (!options->from.empty())
        return compare_finished(options->from[0], options->from[1], options->output);
      if (options->config.empty())
        throw Error(ExitCode::Usage, "compare needs a configuration, or --from with two runs",
                    "octet compare --help");
      return compare({load_config(options->config, options->overrides), options->variants, options->seeds,
                      options->device, options->inject});
    };
  });
}

}  // namespace octet
