// status.json of a run folder, and whether it still tells the truth.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace octet {

struct RunStatus {
  // "running", "finished", "stopped" or "failed", as its process wrote it; "killed" where it says "running"
  // but no process holds the folder any more: it ended without a word (SIGKILL, a second Ctrl-C, a lost
  // machine).
  std::string state;
  int exit_code = 0;
  std::string reason;
  int64_t step = 0;  // of a running or killed run: where it was at its newest save, or began
};

// Empty where there is no status.json. Error(Data) names the file and the key that is not what a run writes.
std::optional<RunStatus> read_status(const std::filesystem::path& folder);

}  // namespace octet
