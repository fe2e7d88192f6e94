#include "analysis/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <thread>

#include "analysis/planned_run.h"
#include "analysis/sweep_report.h"
#include "base/child_process.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "base/signals.h"
#include "base/text.h"
#include "training/checkpoint.h"
#include "training/progress.h"
#include "training/run_files.h"
#include "training/run_memory.h"
#include "training/run_status.h"

namespace octet {
namespace {

namespace fs = std::filesystem;

fs::path beside(const fs::path& folder, const char* suffix) { return folder.string() + suffix; }

// A run that ended by itself, well or not: its numbers are what the sweep is for.
bool has_result(const fs::path& folder) {
  const std::optional<RunStatus> status = read_status(folder);
  return status && (status->state == "finished" ||
                    (status->state == "failed" && status->exit_code == static_cast<int>(ExitCode::Numerics)));
}

int64_t steps_done(const fs::path& folder) {
  const std::optional<RunStatus> status = read_status(folder);
  return status ? status->step : 0;
}

// The last complaint of a program in what it printed.
std::string last_error(const fs::path& log) {
  std::ifstream in(log);
  std::string found;
  for (std::string line; std::getline(in, line);)
    if (line.rfind("error: ", 0) == 0) found = line.substr(7);
  return found;
}

class SweepRun {
 public:
  explicit SweepRun(const SweepRequest& request)
      : request_(request), program_(this_program()), cells_(request.sweep.cells.size()) {
    for (size_t i = 0; i < cells_.size(); ++i) {
      const SweepCell& cell = request.sweep.cells[i];
      cells_[i].run = {cell.config, cell.config.run.output, request.sweep.inject};
      require_same_run(cells_[i].run);  // before anything is trained
    }
    for (Cell& cell : cells_) cell.done = has_result(cell.run.folder) && !wants_sharpness(cell);
  }

  int run() {
    const fs::path& folder = request_.sweep.folder;
    fs::create_directories(folder / "cells");
    const FolderLock lock(folder, ExitCode::Usage);
    const SignalGuard signals;
    finished_ = std::count_if(cells_.begin(), cells_.end(), [](const Cell& cell) { return cell.done; });
    if (finished_ > 0)
      progress_.note(fmt::format("{} of {} cells have their result", finished_, cells_.size()));
    began_ = monotonic_seconds();
    for (;;) {
      if (signals.stop_requested() && !stopping_) stop(signals.stop_reason());
      while (!stopping_ && running() < request_.jobs && start_next()) {
      }
      if (running() == 0) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      for (Cell& cell : cells_)
        if (cell.child && cell.child->reap()) ended(cell);
    }
    const SweepReport report = report_of(request_.sweep, outcomes());
    write_report(report, folder);
    progress_.note("\n" + table(report));
    progress_.note(fmt::format("report:  {}\n         {}", (folder / "sweep.html").string(),
                               (folder / "sweep.json").string()));
    return exit_code();
  }

 private:
  struct Cell {
    PlannedRun run;
    bool done = false;   // there is a result
    bool tried = false;  // by this process
    bool measured = false;
    int code = 0;  // of its process, once that has ended
    int64_t began_at = 0;
    std::unique_ptr<ChildProcess> child;
  };

  int running() const {
    return static_cast<int>(
        std::count_if(cells_.begin(), cells_.end(), [](const Cell& c) { return c.child != nullptr; }));
  }
  const std::string& name_of(const Cell& cell) const {
    return request_.sweep.cells[static_cast<size_t>(&cell - cells_.data())].name;
  }

  bool wants_sharpness(const Cell& cell) const {
    std::error_code ignored;
    return request_.sweep.sharpness > 0 && !fs::exists(cell.run.folder / sharpness_file, ignored) &&
           !list_checkpoints(cell.run.folder / checkpoint_folder).empty();
  }

  bool start_next() {
    const auto next =
        std::find_if(cells_.begin(), cells_.end(), [](const Cell& c) { return !c.done && !c.tried; });
    if (next == cells_.end()) return false;
    Cell& cell = *next;
    cell.tried = true;
    if (has_result(cell.run.folder)) {
      measure_sharpness_of(cell);
      return true;
    }
    const fs::path config = beside(cell.run.folder, ".json");
    write_atomically(config, to_json(cell.run.config), ExitCode::Usage);
    cell.began_at = steps_done(cell.run.folder);
    std::vector<std::string> words = {"octet",   "train",    config.string(),
                                      "--quiet", "--device", request_.device};
    for (const std::string& fault : cell.run.inject) words.push_back("--inject=" + fault);
    start(cell, std::move(words));
    progress_.note(fmt::format("{} {}", cell.began_at > 0 ? "goes on" : "begins ", name_of(cell)));
    return true;
  }

  void measure_sharpness_of(Cell& cell) {
    start(cell, {"octet", "sharpness", cell.run.folder.string(), "--sequences",
                 std::to_string(request_.sweep.sharpness), "--device", request_.device});
  }

  void start(Cell& cell, std::vector<std::string> arguments) {
    ChildStart child;
    child.program = program_;
    child.arguments = std::move(arguments);
    child.output = beside(cell.run.folder, ".log");
    if (request_.jobs > 1) {  // threads that share a core must not spin while they wait
      if (!std::getenv("OMP_NUM_THREADS"))
        child.environment["OMP_NUM_THREADS"] = std::to_string(std::max(1, usable_cores() / request_.jobs));
      if (!std::getenv("OMP_WAIT_POLICY")) child.environment["OMP_WAIT_POLICY"] = "passive";
    }
    cell.child = std::make_unique<ChildProcess>(child);
  }

  void stop(const std::string& reason) {
    stopping_ = true;
    progress_.note(fmt::format("{}: stopping {}, each saves; the same command goes on", reason,
                               plural(running(), "cell")));
    for (const Cell& cell : cells_)
      if (cell.child) cell.child->send(SIGTERM);
  }

  void ended(Cell& cell) {
    cell.code = cell.child->code();
    cell.child.reset();
    const bool trained = has_result(cell.run.folder);
    if (trained && !cell.measured && wants_sharpness(cell) && !stopping_) {
      cell.measured = true;  // whatever comes of it: the next sweep tries again
      return measure_sharpness_of(cell);
    }
    cell.done = trained && !wants_sharpness(cell);
    if (cell.done) {
      ++finished_;
      trained_ += cell.run.config.run.steps - cell.began_at;
    }
    const bool stopped = cell.code == static_cast<int>(ExitCode::Stopped);
    const bool failed = cell.done && read_status(cell.run.folder)->state == "failed";
    const char* how = failed ? "FAILED " : cell.done ? "ends   " : stopped ? "stopped" : "ERROR  ";
    const std::string why = failed || !(cell.done || stopped)
                                ? ": " + escape_control(last_error(beside(cell.run.folder, ".log")))
                                : "";
    progress_.note(
        fmt::format("{} {}  ({} of {}{}){}", how, name_of(cell), finished_, cells_.size(), time_left(), why));
  }

  std::string time_left() const {
    int64_t left = 0;
    for (const Cell& cell : cells_)
      if (!cell.done) left += cell.run.config.run.steps;
    if (trained_ <= 0 || left == 0) return "";
    const double each = (monotonic_seconds() - began_) / static_cast<double>(trained_);
    return fmt::format(", about {} left", human_duration(each * static_cast<double>(left)));
  }

  std::vector<CellOutcome> outcomes() const {
    std::vector<CellOutcome> all;
    for (const Cell& cell : cells_) {
      CellOutcome outcome;
      outcome.done = cell.done;
      std::error_code ignored;
      if (fs::exists(cell.run.folder / metrics_file, ignored))
        outcome.history = read_run_history(cell.run.folder);
      if (!cell.done && cell.tried && cell.code != 0 && cell.code != static_cast<int>(ExitCode::Stopped))
        outcome.error =
            fmt::format("exit code {}: {}", cell.code, last_error(beside(cell.run.folder, ".log")));
      all.push_back(std::move(outcome));
    }
    return all;
  }

  int exit_code() const {
    const auto ended_with = [&](ExitCode code) {
      return std::any_of(cells_.begin(), cells_.end(),
                         [&](const Cell& c) { return !c.done && c.code == static_cast<int>(code); });
    };
    if (ended_with(ExitCode::StoppedUnsaved)) return static_cast<int>(ExitCode::StoppedUnsaved);
    if (stopping_ || ended_with(ExitCode::Stopped)) return static_cast<int>(ExitCode::Stopped);
    for (const Cell& cell : cells_)
      if (!cell.done) return cell.code;
    return 0;
  }

  const SweepRequest& request_;
  fs::path program_;
  std::vector<Cell> cells_;
  Progress progress_;
  bool stopping_ = false;
  int64_t finished_ = 0, trained_ = 0;  // cells with a result; steps of those that this process trained
  double began_ = 0;
};

}  // namespace

std::string describe(const Sweep& sweep, int jobs) {
  int64_t steps = 0, tokens = 0;
  double flops = 0;
  size_t memory = 0;
  for (const SweepCell& cell : sweep.cells) {
    const RunConfig& c = cell.config;
    steps += c.run.steps;
    tokens += c.run.steps * c.batch.tokens;
    flops += c.model.flops_per_token() * static_cast<double>(c.run.steps * c.batch.tokens);
    const PlannedMemory bytes = measure_memory(nullptr, c);
    memory = std::max(memory, bytes.device_bytes + bytes.host_bytes + bytes.offload_bytes);
  }
  return fmt::format(
      "{}: {} in {}, {} at once\n  {} steps, {} tokens, {:.3g} FLOPs; the largest cell takes {}, as many at "
      "once {}",
      sweep.name, plural(static_cast<int64_t>(sweep.cells.size()), "cell"),
      plural(static_cast<int64_t>(sweep.groups().size()), "group"), jobs,
      human_count(static_cast<double>(steps)), human_count(static_cast<double>(tokens)), flops,
      human_bytes(memory), human_bytes(memory * static_cast<size_t>(jobs)));
}

int sweep(const SweepRequest& request) { return SweepRun(request).run(); }

}  // namespace octet
