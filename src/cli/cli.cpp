#include "cli/cli.h"

#include <fmt/format.h>

#include "base/error.h"
#include "cli/command.h"

namespace octet {

int run_command_line(int argc, char** argv) {
  CLI::App app{"Octet pretrains language models in FP8, from token shards to a verdict."};
  Action action;
  app.require_subcommand(0, 1);
  add_tokenize(app, action);
  add_data(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : static_cast<int>(ExitCode::Usage);
  }
  try {
    if (action) return action();
    fmt::print("{}", app.help());
    return 0;
  } catch (const Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    if (!error.hint().empty()) fmt::print(stderr, "hint:  {}\n", error.hint());
    return static_cast<int>(error.code());
  }
}

}  // namespace octet
