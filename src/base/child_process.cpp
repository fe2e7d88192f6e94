#include "base/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/text.h"

extern char** environ;

namespace octet {
namespace {

std::string message_of(int error) { return std::generic_category().message(error); }

std::vector<std::string> merged_environment(const std::map<std::string, std::string>& more) {
  std::vector<std::string> entries;
  for (char** entry = environ; entry && *entry; ++entry) {
    const std::string text = *entry;
    if (more.count(text.substr(0, text.find('='))) == 0) entries.push_back(text);
  }
  for (const auto& [name, value] : more) entries.push_back(name + "=" + value);
  return entries;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> list;
  for (std::string& word : words) list.push_back(word.data());
  list.push_back(nullptr);
  return list;
}

struct Descriptor {
  int number = -1;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

// Everything the child needs, made before fork(): after it only system calls are safe.
struct ChildPlan {
  const char* program;
  char* const* arguments;
  char* const* environment;
  int input, output, report;  // report gets errno when the program cannot be started
  pid_t parent;
  const sigset_t* mask;
};

[[noreturn]] void become(const ChildPlan& plan) {
  // The parent's death is the child's; it may have died before this line.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != plan.parent) ::_exit(128 + SIGKILL);
  ::setpgid(0, 0);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE}) ::signal(number, SIG_DFL);
  ::sigprocmask(SIG_SETMASK, plan.mask, nullptr);
  if (::dup2(plan.input, 0) == 0 && ::dup2(plan.output, 1) == 1 && ::dup2(plan.output, 2) == 2)
    ::execve(plan.program, plan.arguments, plan.environment);
  const int error = errno;
  [[maybe_unused]] const ssize_t told = ::write(plan.report, &error, sizeof error);
  ::_exit(127);
}

}  // namespace

ChildProcess::ChildProcess(const ChildStart& start) {
  const auto refuse = [&](const std::string& why) {
    throw Error(ExitCode::Usage,
                fmt::format("{} cannot be started: {}", escape_control(start.program.string()), why),
                "see the limits of processes and open files (ulimit -a), the free memory and the disk");
  };
  std::vector<std::string> arguments = start.arguments, environment = merged_environment(start.environment);
  const std::vector<char*> argv = pointers(arguments), envp = pointers(environment);
  const std::string program = start.program.string();
  Descriptor input{::open("/dev/null", O_RDONLY | O_CLOEXEC)},
      output{::open(start.output.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)};
  if (input.number < 0 || output.number < 0)
    refuse(fmt::format("{}: {}", start.output.string(), message_of(errno)));
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) refuse(message_of(errno));
  Descriptor reader{ends[0]}, writer{ends[1]};
  sigset_t mask;
  ::sigprocmask(SIG_SETMASK, nullptr, &mask);
  const ChildPlan plan{program.c_str(), argv.data(),   envp.data(), input.number,
                       output.number,   writer.number, ::getpid(),  &mask};
  const pid_t child = ::fork();
  if (child == 0) become(plan);
  if (child < 0) refuse(message_of(errno));
  pid_ = child;
  ::close(std::exchange(writer.number, -1));
  int failure = 0;
  ssize_t n = 0;
  do n = ::read(reader.number, &failure, sizeof failure);
  while (n < 0 && errno == EINTR);
  if (n != static_cast<ssize_t>(sizeof failure)) return;
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  refuse(message_of(failure));
}

ChildProcess::~ChildProcess() {
  if (!running()) return;
  ::kill(-pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
}

bool ChildProcess::reap() {
  if (!running()) return false;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) != pid_) return false;
  pid_ = -1;
  code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  return true;
}

void ChildProcess::send(int number) const {
  if (running()) ::kill(pid_, number);
}

std::filesystem::path this_program() {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error)
    throw Error(ExitCode::Usage, fmt::format("/proc/self/exe: {}", error.message()),
                "runs of several processes need /proc to find this program again");
  return path;
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

}  // namespace octet
