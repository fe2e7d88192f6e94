#include "training/run_status.h"

#include "base/files.h"
#include "base/text.h"
#include "training/json_fields.h"
#include "training/run_files.h"

namespace octet {

std::optional<RunStatus> read_status(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / status_file;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return {};
  const Json json = read_json_object(path);
  const JsonFields fields(json, path.string());
  RunStatus status;
  status.state = fields.text("state");
  status.exit_code = static_cast<int>(fields.integer("exit_code", 0));
  status.reason = fields.text("reason", "");
  status.step = fields.integer("step", 0);
  if (status.state == "running" && lock_state(folder) == LockState::Free) status.state = "killed";
  return status;
}

}  // namespace octet
