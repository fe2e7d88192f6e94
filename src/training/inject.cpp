#include "training/inject.h"

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text.h"
#include "device/cpu/host_facts.h"
#include "training/run_files.h"

namespace octet {
namespace {

constexpr int killed = 137;  // what a shell reports after SIGKILL

const std::map<std::string, std::vector<std::string>>& grammar() {
  static const std::map<std::string, std::vector<std::string>> keys = {
      {"kill", {"file-operation", "step", "phase"}},
      {"hang", {"step", "phase"}},
      {"exit", {"step", "phase"}},
      {"enospc", {"write", "count"}},
      {"slow", {"milliseconds"}},
      {"nan", {"step", "count"}},
      {"spike", {"step", "loss"}},
      {"memory", {"available"}},
      {"file-system", {"free", "exchange"}},
      {"signal", {"name", "phase", "step"}}};
  return keys;
}

const char* name_of(Phase phase) {
  switch (phase) {
    case Phase::Startup:
      return "startup";
    case Phase::Step:
      return "step";
    case Phase::Update:
      return "update";
    case Phase::Evaluation:
      return "evaluation";
    default:
      return "save";
  }
}

int signal_number(const std::string& name) {
  if (name == "TERM") return SIGTERM;
  if (name == "INT") return SIGINT;
  if (name == "USR1") return SIGUSR1;
  if (name == "USR2") return SIGUSR2;
  return 0;
}

[[noreturn]] void refuse(const std::string& spec, const std::string& why) {
  throw Error(ExitCode::Usage, fmt::format("--inject {}: {}", spec, why),
              "for example kill:step=3, kill:file-operation=12, enospc:write=4, nan:step=3,count=2, "
              "signal:name=TERM,phase=evaluation");
}

bool inside(const std::filesystem::path& path, const std::filesystem::path& folder) {
  return path.string().rfind(folder.string() + "/", 0) == 0;
}

}  // namespace

int64_t Injector::Rule::number(const char* key, int64_t otherwise) const {
  const auto found = values.find(key);
  return found == values.end() ? otherwise : std::stoll(found->second);
}

const std::string& Injector::Rule::text(const char* key) const {
  static const std::string none;
  const auto found = values.find(key);
  return found == values.end() ? none : found->second;
}

Injector::Rule Injector::parse(const std::string& spec) {
  Rule rule;
  const size_t colon = spec.find(':');
  rule.action = spec.substr(0, colon);
  const auto known = grammar().find(rule.action);
  if (known == grammar().end()) refuse(spec, "no such fault");
  for (size_t at = colon; at != std::string::npos;) {
    const size_t comma = spec.find(',', at + 1);
    const std::string pair =
        spec.substr(at + 1, comma == std::string::npos ? std::string::npos : comma - at - 1);
    const size_t equals = pair.find('=');
    const std::string key = pair.substr(0, equals),
                      value = equals == std::string::npos ? "" : pair.substr(equals + 1);
    if (key != "rank" && std::find(known->second.begin(), known->second.end(), key) == known->second.end())
      refuse(spec, fmt::format("'{}' takes {}, rank", rule.action, fmt::join(known->second, ", ")));
    const bool is_text = key == "name" || key == "phase";
    if (value.empty() || value.size() > 12 ||
        (!is_text && value.find_first_not_of("0123456789") != std::string::npos))
      refuse(spec, fmt::format("'{}' needs a number, found '{}'", key, value));
    rule.values[key] = value;
    at = comma;
  }
  if (rule.action == "signal" && (signal_number(rule.text("name")) == 0 || rule.text("phase").empty()))
    refuse(spec, "name is TERM, INT, USR1 or USR2; phase is startup, step, update, evaluation or save");
  const std::vector<std::string> phases = {"startup", "step", "update", "evaluation", "save"};
  if (const std::string& phase = rule.text("phase");
      !phase.empty() && std::find(phases.begin(), phases.end(), phase) == phases.end()) {
    const std::string near = nearest(phase, phases);
    refuse(spec, fmt::format("no phase '{}': {}", phase,
                             near.empty() ? "startup, step, update, evaluation or save"
                                          : "did you mean " + near + "?"));
  }
  if (rule.values.empty()) refuse(spec, "when?");
  return rule;
}

Injector::Injector(const std::vector<std::string>& specs, std::filesystem::path folder, int rank)
    : folder_(std::move(folder)) {
  for (const std::string& spec : specs) {
    if (const std::optional<StateInjection> change = parse_state_injection(spec)) {
      of_state_.push_back(*change);
      continue;
    }
    Rule rule = parse(spec);
    if (rule.number("rank", rank) != rank) continue;
    rules_.push_back(std::move(rule));
    const std::string& action = rules_.back().action;
    hooked_ =
        hooked_ || action == "enospc" || action == "slow" || !rules_.back().text("file-operation").empty();
  }
  for (const Rule& rule : rules_)
    if (rule.action == "file-system") {
      FileSystemTraits traits;
      if (rule.values.count("free") > 0) traits.free_bytes = static_cast<uint64_t>(rule.number("free", 0));
      traits.exchange = rule.number("exchange", 1) != 0;
      assume_file_system(traits);
    }
  if (hooked_)
    set_file_hook([this](FileOperation operation, const std::filesystem::path& path) {
      before_file_operation(static_cast<int>(operation), path);
    });
}

Injector::~Injector() {
  if (hooked_) set_file_hook({});
  assume_file_system({});
}

void Injector::before_file_operation(int operation, const std::filesystem::path& path) {
  const std::filesystem::path checkpoints = folder_ / checkpoint_folder;
  if (!inside(path, folder_) && path != folder_) return;
  const int64_t n = ++operations_;
  const bool write = operation == static_cast<int>(FileOperation::Write) && inside(path, checkpoints);
  const int64_t w = write ? ++writes_ : 0;
  for (const Rule& rule : rules_) {
    if (rule.action == "kill" && n == rule.number("file-operation", -1)) _exit(killed);
    if (rule.action == "enospc" && write && w >= rule.number("write", 0) &&
        w < rule.number("write", 0) + rule.number("count", 1))
      throw Error(ExitCode::Checkpoint, fmt::format("{}: No space left on device (injected)", path.string()),
                  "free disk space, or lower checkpoint.keep");
    if (rule.action == "slow" && operation == static_cast<int>(FileOperation::Create) &&
        inside(path, checkpoints))
      std::this_thread::sleep_for(std::chrono::milliseconds(rule.number("milliseconds", 0)));
  }
}

void Injector::enter(Phase phase, int64_t step) {
  for (Rule& rule : rules_) {
    const std::string& where = rule.text("phase");
    const bool here = rule.number("step", -1) == step && name_of(phase) == (where.empty() ? "step" : where);
    if (here && rule.action == "kill") _exit(killed);
    if (here && rule.action == "exit") _exit(0);
    if (here && rule.action == "hang" && !rule.spent) {
      rule.spent = true;
      std::raise(SIGSTOP);
    }
    if (rule.action == "signal" && !rule.spent && rule.text("phase") == name_of(phase) &&
        (rule.values.count("step") == 0 || rule.number("step", -1) == step)) {
      rule.spent = true;
      std::raise(signal_number(rule.text("name")));
    }
  }
}

bool Injector::nan(int64_t step) const {
  for (const Rule& rule : rules_)
    if (rule.action == "nan" && step >= rule.number("step", -1) &&
        step < rule.number("step", -1) + rule.number("count", 1))
      return true;
  return false;
}

size_t Injector::available_memory() const {
  for (const Rule& rule : rules_)
    if (rule.action == "memory") return static_cast<size_t>(rule.number("available", 0));
  return octet::available_memory();
}

double Injector::spike(int64_t step) {
  for (Rule& rule : rules_)
    if (rule.action == "spike" && !rule.spent && rule.number("step", -1) == step) {
      rule.spent = true;
      return static_cast<double>(rule.number("loss", 10));
    }
  return 0;
}

}  // namespace octet
