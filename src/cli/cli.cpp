#include "cli/cli.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <new>
#include <system_error>

#include "base/error.h"
#include "base/text.h"
#include "base/version.h"
#include "cli/command.h"
#include "cli/experiments.h"
#include "kernels/launch_error.h"

namespace octet {
namespace {

constexpr const char* bug =
    "this is a bug: please report it with the command, the configuration and 'octet doctor'";

int report(const Error& error) {
  complain(error);
  return static_cast<int>(error.code());
}

Error lost_output(int error) {
  return {ExitCode::Output,
          fmt::format("standard output cannot be written{}",
                      error ? fmt::format(": {}", std::generic_category().message(error)) : ""),
          "what was printed is not whole: free space, or print to another place"};
}

// The end of every command: what it printed has arrived, or the exit code says that it has not.
int finished(int code) {
  errno = 0;
  const bool whole = std::fflush(stdout) == 0 && !std::ferror(stdout) && std::cout.flush().good();
  return whole || code != 0 ? code : report(lost_output(errno));
}

const CLI::App* chosen_command(const CLI::App& app) {
  const CLI::App* command = &app;
  while (!command->get_subcommands().empty()) command = command->get_subcommands().front();
  return command;
}

// "octet data info"
std::string full_name(const CLI::App& app) {
  std::string name = "octet";
  const CLI::App* command = &app;
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands().front();
    name += " " + command->get_name();
  }
  return name;
}

std::vector<std::string> words_of(const CLI::App& command) {
  std::vector<std::string> words;
  for (const CLI::App* sub : command.get_subcommands([](const CLI::App*) { return true; }))
    words.push_back(sub->get_name());
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) words.push_back("--" + name);
  }
  return words;
}

bool takes_commands(const CLI::App& command) {
  return !command.get_subcommands([](const CLI::App*) { return true; }).empty();
}

// What the parser refused, in the words of the house, with the nearest command or option.
Error usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* command = chosen_command(app);
  std::string hint = fmt::format("see '{} --help'", full_name(app));
  const std::vector<std::string> left = command->remaining();
  if (left.empty()) return {ExitCode::Usage, escape_control(error.what()), hint};
  const std::string word = left[0].substr(0, left[0].find('='));
  const std::vector<std::string> words = words_of(*command);
  const std::string near = nearest(word, words);
  if (!near.empty()) hint = fmt::format("did you mean '{} {}'? {}", full_name(app), near, hint);
  const char* kind = left[0][0] == '-' ? "option" : takes_commands(*command) ? "command" : "argument";
  return {ExitCode::Usage, fmt::format("unknown {} \"{}\"", kind, escape_control(word)), hint};
}

}  // namespace

void complain(const Error& error) noexcept {
  // stdio, not fmt::print: that throws where nothing can be written.
  std::fprintf(stderr, "error: %s\n", error.what());
  if (!error.hint().empty()) std::fprintf(stderr, "hint:  %s\n", error.hint().c_str());
}

int run_command_line(int argc, char** argv) {
  CLI::App app{"Octet pretrains language models in FP8, from token shards to a verdict.", "octet"};
  app.set_version_flag("--version", fmt::format("octet {}\n{}", version(), build_summary()));
  app.footer("Example:\n  octet plan configs/quickstart.json\nEvery command has its own --help.");
  app.require_subcommand(0, 1);
  Action action;
  add_train(app, action);
  add_compare(app, action);
  add_sweep(app, action);
  add_inject(app, action);
  add_sharpness(app, action);
  add_whatif(app, action);
  add_tokenize(app, action);
  add_data(app, action);
  add_plan(app, action);
  add_config(app, action);
  add_checkpoint(app, action);
  add_doctor(app, action);
  add_bench(app, action);
  add_selftest(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    // "octet report --help": what is asked about must be there.
    if (const CLI::App* command = chosen_command(app); takes_commands(*command))
      for (const std::string& word : command->remaining())
        if (word[0] != '-') return report(usage_error(app, CLI::ExtrasError("octet", {word})));
    return finished(app.exit(success));
  } catch (const CLI::ParseError& error) {
    return report(usage_error(app, error));
  }
  try {
    if (action) return finished(action());
    fmt::print("{}", app.help());
    return finished(0);
  } catch (const Error& error) {
    return report(error);
  } catch (const std::filesystem::filesystem_error& error) {
    // A path that cannot be looked at or made (permissions, a file where a folder should be) is the caller's.
    return report({ExitCode::Usage,
                   fmt::format("{}: {}", escape_control(error.path1().string()), error.code().message()),
                   "check the path, its owner and its permissions"});
  } catch (const std::system_error& error) {
    if (std::ferror(stdout)) return report(lost_output(error.code().value()));
    return report({ExitCode::Internal, fmt::format("internal error: {}", escape_control(error.what())), bug});
  } catch (const std::bad_alloc&) {
    return report(out_of_memory());
  } catch (const gpu::LaunchError& error) {
    return report({ExitCode::Hardware, escape_control(error.what()),
                   "an earlier kernel may have failed: run 'octet selftest --device cuda', and see dmesg for "
                   "NVRM messages"});
  } catch (const std::exception& error) {
    return report({ExitCode::Internal, fmt::format("internal error: {}", escape_control(error.what())), bug});
  }
}

}  // namespace octet
