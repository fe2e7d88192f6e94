#include "training/run_folder.h"

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "base/version.h"
#include "training/metrics.h"
#include "training/run_files.h"
#include "training/run_status.h"

namespace octet {
namespace fs = std::filesystem;
namespace {

bool holds_a_run(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / config_file, ignored) || fs::exists(folder / metrics_file, ignored) ||
         !list_checkpoints(folder / checkpoint_folder).empty();
}

// An entry that no run, launcher (*.log, *.out, *.err) or editor (hidden files) put there; empty: none.
std::string foreign_entry(const fs::path& folder) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string(), end = entry.path().extension().string();
    bool known =
        name[0] == '.' || name == checkpoint_folder || end == ".log" || end == ".out" || end == ".err";
    for (const char* own : {config_file, status_file, metrics_file, "events.out.tfevents."})
      known = known || name.rfind(own, 0) == 0;  // and their temporary names
    if (!known) return name;
  }
  return {};
}

bool was_killed(const fs::path& folder) {
  try {
    const std::optional<RunStatus> status = read_status(folder);
    return status && status->state == "killed";
  } catch (const Error& error) {  // an edited status stops nothing: the next one replaces it
    log_warning("{}", error.what());
    return false;
  }
}

// The same configuration whatever the folder is called: /run/output is not compared.
std::string comparable(Json config) {
  config.erase("octet");
  if (config.contains("run") && config["run"].is_object()) config["run"]["output"] = "";
  return config.dump();
}

const char* name_of(RunFolder::State state) {
  switch (state) {
    case RunFolder::State::Running:
      return "running";
    case RunFolder::State::Finished:
      return "finished";
    case RunFolder::State::Stopped:
      return "stopped";
    default:
      return "failed";
  }
}

std::string describe(const std::vector<ConfigChange>& changes, ChangeClass wanted) {
  std::string text;
  for (const ConfigChange& c : changes)
    if (c.change_class == wanted)
      text += fmt::format("{}{}: {} -> {}", text.empty() ? "" : "; ", c.pointer, c.before, c.after);
  return text;
}

}  // namespace

fs::path run_output(const RunConfig& config) {
  return fs::absolute(config.run.output.empty() ? default_output(config.run.name) : config.run.output)
      .lexically_normal();
}

RunFolder::RunFolder(const TrainRequest& request, const std::string& data_fingerprint)
    : path_(run_output(request.config)) {
  prepare(request);
  find_resume(request);
  step_ = resume_.manifest.state.step;
  if (!resume_.folder.empty()) {
    check_resumable(request, data_fingerprint);
    set_aside_later(checkpoints(), resume_.manifest.state.step);
  }
  Json config = Json::parse(to_json(request.config));
  config["octet"] = {{"version", version()}, {"config_hash", config_hash(request.config)}};
  write_atomically(path_ / config_file, config.dump(2) + "\n", ExitCode::Checkpoint);
}

RunFolder::RunFolder(fs::path path, FoundCheckpoint resume)
    : path_(std::move(path)), follows_(true), resume_(std::move(resume)) {
  claim_.settled = true;  // nothing to give back
}

RunFolder::Claim::~Claim() {
  if (settled) return;
  std::error_code ignored;
  std::vector<fs::path> files;
  const bool all_ours = std::find(made.begin(), made.end(), folder) != made.end();
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name == config_file || name == status_file || name == metrics_file ||
        (all_ours && name.rfind("events.out.tfevents.", 0) == 0))
      files.push_back(entry.path());
  }
  for (size_t i = 0; lock && i < files.size(); ++i) fs::remove(files[i], ignored);
  // Only empty folders go; the run's own after the others in it, and its lock.
  for (auto path = made.rbegin(); path != made.rend(); ++path) {
    if (*path == folder) lock.reset();
    fs::remove(*path, ignored);
  }
}

void RunFolder::go_on_from(int64_t step) {
  const fs::path checkpoint = checkpoints() / checkpoint_name(step);
  resume_ = {checkpoint, read_manifest(checkpoint)};
  notes_.clear();  // they are in the log
}

void RunFolder::settle() { claim_.settled = true; }

void RunFolder::prepare(const TrainRequest& request) {
  std::error_code error;
  if (const std::string name = foreign_entry(path_); !name.empty() && !holds_a_run(path_))
    throw Error(ExitCode::Usage, fmt::format("{} is not empty and holds no run: {}", path_.string(), name),
                "a run has a folder of its own: another run.name (--set run.name=mine) or run.output");
  for (fs::path path = checkpoints(); !path.empty() && !fs::exists(path, error); path = path.parent_path())
    claim_.made.insert(claim_.made.begin(), path);
  fs::create_directories(checkpoints(), error);
  if (error)
    throw Error(ExitCode::Usage, fmt::format("{}: {}", checkpoints().string(), error.message()),
                "run.output must be a folder this user may write to");
  // Canonical, so that a hook or a message sees one name for one file.
  const bool killed = was_killed(path_);  // before this process holds the lock
  const fs::path given = path_;
  path_ = fs::canonical(path_);
  for (fs::path& made : claim_.made)
    if (made == given) made = path_;
  claim_.folder = path_;
  claim_.lock = std::make_unique<FolderLock>(path_, ExitCode::Usage);
  claim_.settled = holds_a_run(path_);
  if (killed && !request.overwrite) {
    notes_.push_back("the process before ended without a word: killed, or its machine was lost");
    log_warning("{}: {}", path_.string(), notes_.back());
  }
  restore_former(checkpoints());
  for (const fs::path& folder : {path_, checkpoints()})
    for (const std::string& name : remove_leftovers(folder))
      log_info("{}: left over from a write that never finished, removed", name);
  if (!holds_a_run(path_)) return;
  if (request.overwrite) {
    clear();
  } else if (request.resume.kind == ResumePolicy::Kind::Never) {
    throw Error(ExitCode::Usage, fmt::format("{} already holds a run", path_.string()),
                "go on with --resume auto, replace it with --overwrite, or choose another run.output");
  }
}

// Removes what this program wrote there, nothing else.
void RunFolder::clear() {
  log_warning("{}: the former run is removed (--overwrite)", path_.string());
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path_)) {
    const std::string name = entry.path().filename().string();
    if (name == config_file || name == status_file || name == metrics_file ||
        name.rfind("events.out.tfevents.", 0) == 0)
      files.push_back(entry.path());
  }
  for (const CheckpointEntry& entry : list_checkpoints(checkpoints())) files.push_back(entry.folder);
  for (const auto& entry : fs::directory_iterator(checkpoints()))
    if (entry.path().filename().string().rfind("superseded-step-", 0) == 0) files.push_back(entry.path());
  for (const fs::path& file : files) remove_durably(file, ExitCode::Checkpoint);
}

void RunFolder::find_resume(const TrainRequest& request) {
  switch (request.resume.kind) {
    case ResumePolicy::Kind::Never:
      return;
    case ResumePolicy::Kind::Path: {
      const fs::path given = fs::weakly_canonical(request.resume.path);
      resume_ = {given, verify_checkpoint(given)};
      return;
    }
    case ResumePolicy::Kind::Auto:
    case ResumePolicy::Kind::Require:
      break;
  }
  resume_ = find_newest_checkpoint(checkpoints());
  if (!resume_.folder.empty()) return;
  if (request.resume.kind == ResumePolicy::Kind::Require)
    throw Error(ExitCode::Checkpoint, fmt::format("{}: no checkpoint to resume from", checkpoints().string()),
                "start with --resume auto, or give --resume PATH");
  // A run that died before its first save may start again; somebody else's folder may not be used.
  std::error_code ignored;
  if (fs::exists(path_ / config_file, ignored)) {
    Json before = Json::parse(read_text(path_ / config_file, ExitCode::Checkpoint), nullptr, false);
    const std::string changes =
        before.is_object()
            ? describe(compare_configs(comparable(before), comparable(Json::parse(to_json(request.config)))),
                       ChangeClass::Forbidden)
            : "its config.json is not readable";
    if (!changes.empty())
      throw Error(ExitCode::Usage, fmt::format("{} holds another run ({})", path_.string(), changes),
                  "replace it with --overwrite, or choose another run.output");
  }
}

void RunFolder::check_resumable(const TrainRequest& request, const std::string& data_fingerprint) {
  const Manifest& manifest = resume_.manifest;
  const std::vector<ConfigChange> changes =
      compare_configs(comparable(manifest.config), comparable(Json::parse(to_json(request.config))));
  const std::string forbidden = describe(changes, ChangeClass::Forbidden);
  if (!forbidden.empty())
    throw Error(ExitCode::Checkpoint,
                fmt::format("{} cannot go on with this configuration: {}", resume_.folder.filename().string(),
                            forbidden),
                "restore these values, choose another run.output, or start again with --overwrite");
  const std::string recorded = describe(changes, ChangeClass::Recorded);
  if (!recorded.empty() && manifest.state.step >= request.config.run.steps)
    throw Error(
        ExitCode::Checkpoint,
        fmt::format("{} is the end of a finished run: no step is left for the changed configuration: {}",
                    resume_.folder.filename().string(), recorded),
        "raise run.steps, choose another run.output, or start again with --overwrite");
  if (!recorded.empty()) {
    log_warning("the configuration changed since {}: {}", resume_.folder.filename().string(), recorded);
    notes_.push_back("configuration changed: " + recorded);
  }
  if (manifest.data_fingerprint != data_fingerprint) {
    const std::string what =
        fmt::format("the training data changed since {}: fingerprint {}, now {}",
                    resume_.folder.filename().string(), manifest.data_fingerprint, data_fingerprint);
    if (!request.accept_changed_data)
      throw Error(ExitCode::Data, what,
                  "restore the shards, or accept the change with --accept-changed-data");
    log_warning("{}", what);
    notes_.push_back(what);
  }
}

void RunFolder::write_status(State state, ExitCode code, const std::string& reason) const noexcept {
  if (!claim_.settled || follows_) return;
  try {
    const Json status = {{"state", name_of(state)},
                         {"exit_code", static_cast<int>(code)},
                         {"reason", reason},
                         {"step", step_},
                         {"time", wall_seconds()}};
    write_atomically(path_ / status_file, status.dump(2, ' ', false, Json::error_handler_t::replace) + "\n",
                     ExitCode::Checkpoint);
  } catch (const std::exception& error) {
    try {
      log_warning("{}: {}", status_file, error.what());
    } catch (...) {
    }
  }
}

}  // namespace octet
