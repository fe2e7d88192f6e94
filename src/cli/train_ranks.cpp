#include "cli/train_ranks.h"

#include <filesystem>
#include <optional>

#include "comm/launch.h"
#include "comm/local_launcher.h"
#include "training/checkpoint.h"
#include "training/run_files.h"
#include "training/run_folder.h"
#include "training/state_injection.h"

namespace octet {
namespace {

namespace fs = std::filesystem;

// When the newest checkpoint of a run was written; superseded ones do not count.
std::optional<fs::file_time_type> newest_save(const fs::path& run) {
  std::optional<fs::file_time_type> newest;
  std::error_code error;
  if (!fs::is_directory(run / checkpoint_folder, error)) return {};
  for (const CheckpointEntry& entry : list_checkpoints(run / checkpoint_folder)) {
    const fs::file_time_type written = fs::last_write_time(entry.folder, error);
    if (!error && (!newest || written > *newest)) newest = written;
  }
  return newest;
}

bool option_is(const CLI::App& command, const std::string& name, const std::string& value) {
  const CLI::Option* option = command.get_option("--" + name);
  return option->count() > 0 && option->results().back() == value;
}

}  // namespace

std::vector<std::string> arguments_again(const CLI::App& command, const std::set<std::string>& without) {
  std::vector<std::string> words = {"octet", command.get_name()};
  for (const CLI::Option* option : command.get_options()) {
    const std::vector<std::string>& names = option->get_lnames();
    if (option->count() == 0) continue;
    if (names.empty()) {  // positional
      for (const std::string& value : option->results()) words.push_back(value);
    } else if (without.count(names.front()) == 0) {
      const bool flag = option->get_type_size() == 0;
      for (const std::string& value : option->results())
        words.push_back("--" + names.front() + (flag ? "" : "=" + value));
    }
  }
  return words;
}

int train_ranks(const RanksRequest& request) {
  require_unlaunched(process_environment());
  const fs::path run = run_output(request.config);
  std::error_code ignored;
  const bool held_a_run = fs::exists(run / config_file, ignored);
  const std::optional<fs::file_time_type> saved_before = newest_save(run);
  LocalLaunch launch;
  launch.ranks = request.ranks;
  launch.max_restarts = request.max_restarts;
  launch.deadlines.peers = request.config.parallel.timeout_seconds + 15;  // to notice, and to end
  launch.arguments = [&](int restart) {
    std::set<std::string> without = {"ranks", "max-restarts"};
    if (restart == 0) return arguments_again(request.command, without);
    const std::optional<fs::file_time_type> saved = newest_save(run);
    const bool goes_on = saved && (!saved_before || *saved > *saved_before);
    const bool begins_again = !held_a_run && option_is(request.command, "resume", "never");
    without.insert("inject");
    if (goes_on) without.insert("overwrite");
    if (goes_on || begins_again) without.insert("resume");
    std::vector<std::string> words = arguments_again(request.command, without);
    // A fault of a process means the first start only; one in the state of the run is part of the run.
    for (const std::string& fault : request.command.get_option("--inject")->results())
      if (parse_state_injection(fault)) words.push_back("--inject=" + fault);
    if (goes_on || begins_again) words.push_back("--resume=auto");
    return words;
  };
  return launch_local(launch);
}

}  // namespace octet
