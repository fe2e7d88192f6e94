// octet whatif
#include <fmt/format.h>

#include <memory>

#include "analysis/whatif.h"
#include "base/files.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/experiments.h"

namespace octet {
namespace {

struct Options {
  WhatIfRequest request;
  std::string path, output;
  bool all = false;
};

int run(Options options) {
  options.request.checkpoint = options.path;
  const WhatIf result = what_if(options.request);
  fmt::print("{}", table(result, options.all ? Detail::Sites : Detail::Roles));
  if (options.output.empty()) return 0;
  write_atomically(options.output, to_json(result).dump(2) + "\n", ExitCode::Usage);
  fmt::print("written: {}\n", escape_control(options.output));
  return 0;
}

}  // namespace

void add_whatif(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "whatif", "What other recipes' casts would make of a checkpoint's tensors, without training");
  command->add_option("CHECKPOINT", options->path, "a checkpoint, or a run's folder: its newest")->required();
  command
      ->add_option("--recipes", options->request.recipes,
                   "recipes to try, with changes: fp8,fp8:scaling=delayed:smooth_swiglu=none")
      ->delimiter(',')
      ->required();
  command
      ->add_option("--data", options->request.data,
                   "shards to read; by default the run's validation shards, or else its training shards")
      ->type_name("GLOB");
  command->add_option("--set", options->request.overrides, "override a key of every configuration")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_flag("--all", options->all, "each site of each block, not a line for all blocks");
  command->add_option("--device", options->request.device, device_names)->capture_default_str();
  command->add_option("--output", options->output, "JSON file");
  command->footer("Example:\n  octet whatif runs/quickstart/fp8 --recipes bf16,fp8,fp8:smooth_swiglu=none");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace octet
