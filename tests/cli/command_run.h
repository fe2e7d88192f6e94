// Runs the built program as a user does.
#pragma once
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <string>

#include "base/error.h"

struct CommandRun {
  int code = -1;
  std::string output;  // standard output and error together
  bool says(const std::string& text) const { return output.find(text) != std::string::npos; }
};

// `command` goes through the shell; `folder` is where it runs.
inline CommandRun run_command(const std::string& command, const std::filesystem::path& folder = ".") {
  const std::string whole = "cd '" + folder.string() + "' && " + command + " 2>&1";
  CommandRun run;
  FILE* pipe = popen(whole.c_str(), "r");
  if (!pipe) throw octet::Error(octet::ExitCode::Internal, "popen failed");
  std::array<char, 4096> buffer;
  for (size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) run.output.append(buffer.data(), n);
  const int status = pclose(pipe);
  run.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return run;
}

inline CommandRun run_octet(const std::string& arguments, const std::filesystem::path& folder = ".") {
  return run_command("'" OCTET_BINARY "' " + arguments, folder);
}

// An empty folder that goes away.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "octet-cli-XXXXXX").string();
    if (!mkdtemp(name.data())) throw octet::Error(octet::ExitCode::Internal, "mkdtemp failed");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};
