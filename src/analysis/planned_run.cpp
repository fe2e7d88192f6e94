#include "analysis/planned_run.h"

#include <fmt/format.h>

#include "analysis/run_history.h"
#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "training/checkpoint.h"
#include "training/run_files.h"

namespace octet {

namespace fs = std::filesystem;

std::string afresh(const PlannedRun& run) {
  return fmt::format("choose another run.output, or remove {} to train it again",
                     escape_control(run.folder.string()));
}

namespace {

// What was injected into the run in the folder, where that has begun and it is not what is planned.
std::string other_injection(const PlannedRun& run) {
  std::error_code ignored;
  if (!fs::exists(run.folder / metrics_file, ignored)) return {};
  const Json start = read_run_history(run.folder).start;
  if (!start.is_object()) return {};
  const Json before = start.value("inject", Json::array()), planned = run.inject;
  return before == planned ? "" : fmt::format("injected: {} -> {}", before.dump(), planned.dump());
}

}  // namespace

void require_same_run(const PlannedRun& run) {
  std::vector<Json> before;
  std::error_code ignored;
  if (fs::exists(run.folder / config_file, ignored))
    before.push_back(Json::parse(read_text(run.folder / config_file, ExitCode::Data), nullptr, false));
  const std::vector<CheckpointEntry> checkpoints = list_checkpoints(run.folder / checkpoint_folder);
  if (!checkpoints.empty() && fs::exists(checkpoints.back().folder / manifest_file, ignored))
    before.push_back(read_manifest(checkpoints.back().folder).config);
  if (const std::string injected = other_injection(run); !injected.empty())
    throw Error(ExitCode::Usage,
                fmt::format("{} holds another run ({})", escape_control(run.folder.string()), injected),
                afresh(run));
  for (Json& config : before) {
    std::string changes = config.is_object() ? "" : fmt::format("{} is not readable", config_file);
    if (config.is_object()) {
      config.erase("octet");
      for (const ConfigChange& c : compare_configs(config.dump(), to_json(run.config)))
        if (c.change_class != ChangeClass::Free)
          changes += fmt::format("{}{}: {} -> {}", changes.empty() ? "" : "; ", c.pointer, c.before, c.after);
    }
    if (!changes.empty())
      throw Error(ExitCode::Usage,
                  fmt::format("{} holds another run ({})", escape_control(run.folder.string()), changes),
                  afresh(run));
  }
}

}  // namespace octet
