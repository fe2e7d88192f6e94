// Another program, or this one again, as a child whose output goes to a file.
#pragma once
#include <sys/types.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace octet {

struct ChildStart {
  std::filesystem::path program;
  std::vector<std::string> arguments;              // argv, the name included
  std::map<std::string, std::string> environment;  // on top of this process's own
  std::filesystem::path output;                    // standard output and error are appended to it
};

// In a process group of its own: a terminal's Ctrl-C reaches whoever started it, not the child itself. It
// dies with its parent.
class ChildProcess {
 public:
  explicit ChildProcess(const ChildStart& start);  // Error(Usage) when it cannot be started
  ~ChildProcess();                                 // kills and reaps it if it is still there
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  bool running() const { return pid_ > 0; }
  bool reap();                        // true when this call found that it has ended
  int code() const { return code_; }  // once it has ended; 128 + n for signal n
  void send(int number) const;        // a signal

 private:
  pid_t pid_ = -1;
  int code_ = 0;
};

std::filesystem::path this_program();  // Error(Usage) where the system does not say
int usable_cores();                    // that this process may run on

}  // namespace octet
