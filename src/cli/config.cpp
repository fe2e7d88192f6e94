// octet config: the configuration as the program understands it.
#include <fmt/format.h>

#include <memory>

#include "base/error.h"
#include "cli/command.h"
#include "config/run_config.h"

namespace octet {
namespace {

struct Options {
  std::string path;
  std::vector<std::string> overrides;
  bool schema = false, hash = false;
};

int run(const Options& options) {
  if (options.schema) {
    if (!options.path.empty())
      throw Error(ExitCode::Usage, "--schema takes no configuration",
                  "octet config --schema > octet.schema.json");
    fmt::print("{}", json_schema());
    return 0;
  }
  if (options.path.empty())
    throw Error(ExitCode::Usage, "no configuration given",
                "octet config configs/quickstart.json, or octet config --schema");
  const RunConfig config = load_config(options.path, options.overrides);
  if (options.hash)
    fmt::print("{}\n", config_hash(config));
  else
    fmt::print("{}", to_json(config));
  return 0;
}

}  // namespace

void add_config(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("config", "Print the fully resolved configuration, or the JSON schema");
  command->add_option("CONFIG", options->path, "configuration file");
  command->add_option("--set", options->overrides, "override a key: section.key=value (repeatable)")
      ->allow_extra_args(false);
  command->add_flag("--schema", options->schema, "print a JSON schema of every key, for editors");
  command->add_flag("--hash", options->hash, "print the hash of what decides the numbers");
  command->footer(
      "Examples:\n"
      "  octet config configs/quickstart.json --set model.layers=8\n"
      "  octet config --schema > octet.schema.json");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace octet
