#include "comm/rank_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <system_error>
#include <utility>

#include "base/child_process.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/text.h"

extern char** environ;

namespace octet {
namespace {

std::string message_of(int error) { return std::generic_category().message(error); }

std::string random_token() {
  std::array<uint64_t, 2> bits{};
  if (::getrandom(bits.data(), sizeof bits, 0) != static_cast<ssize_t>(sizeof bits))
    throw Error(ExitCode::Internal, "getrandom: " + message_of(errno), "the system gives no random numbers");
  return hex(bits[0]) + hex(bits[1]);
}

// "NAME=value" of the launcher's own environment and what this rank is told.
std::vector<std::string> environment_of(const RankStart& start, const JobOfRanks& job) {
  std::map<std::string, std::string> values;
  for (char** entry = environ; entry && *entry; ++entry) {
    const std::string text = *entry;
    if (const size_t equals = text.find('='); equals != std::string::npos)
      values[text.substr(0, equals)] = text.substr(equals + 1);
  }
  values["OCTET_RANK"] = values["OCTET_LOCAL_RANK"] = std::to_string(start.rank);
  values["OCTET_RANKS"] = values["OCTET_LOCAL_RANKS"] = std::to_string(start.ranks);
  values["OCTET_RENDEZVOUS"] = fmt::format("127.0.0.1:{}", job.port());
  values["OCTET_JOB"] = job.token();
  values["OCTET_RESTART"] = std::to_string(start.restart);
  values.erase("OCTET_RENDEZVOUS_FD");
  if (start.rank == 0) values["OCTET_RENDEZVOUS_FD"] = std::to_string(job.listener());
  values.emplace("OMP_NUM_THREADS", std::to_string(job.threads()));
  std::vector<std::string> entries;
  for (const auto& [name, value] : values) entries.push_back(name + "=" + value);
  return entries;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> list;
  for (std::string& word : words) list.push_back(word.data());
  list.push_back(nullptr);
  return list;
}

struct Pipe {
  int ends[2] = {-1, -1};
  explicit Pipe(bool wanted) {
    if (wanted && ::pipe2(ends, O_CLOEXEC) != 0)
      throw Error(ExitCode::Internal, "pipe: " + message_of(errno),
                  "see the limit of open files (ulimit -n)");
  }
  ~Pipe() {
    for (const int end : ends)
      if (end >= 0) ::close(end);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  int release_reader() { return std::exchange(ends[0], -1); }
  void close_writer() {
    if (ends[1] >= 0) ::close(std::exchange(ends[1], -1));
  }
};

// Everything the child needs, made before fork(): after it only system calls are safe.
struct ChildPlan {
  const char* program;
  char* const* arguments;
  char* const* environment;
  const sigset_t* mask;
  int input, output, errors;
  int inherited;  // a descriptor it keeps; -1: none
  pid_t parent;
  int report;  // gets errno when the program cannot be started
};

[[noreturn]] void become(const ChildPlan& plan) {
  // The launcher's death is the rank's; it may have died before this line.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != plan.parent) ::_exit(128 + SIGKILL);
  ::setpgid(0, 0);
  // Rank 0 may write to the terminal of its launcher although it is in the background of it.
  ::signal(SIGTTOU, SIG_IGN);
  ::signal(SIGPIPE, SIG_DFL);
  ::sigprocmask(SIG_SETMASK, plan.mask, nullptr);
  const bool ready = ::dup2(plan.input, 0) == 0 && ::dup2(plan.output, 1) == 1 &&
                     ::dup2(plan.errors, 2) == 2 &&
                     (plan.inherited < 0 || ::fcntl(plan.inherited, F_SETFD, 0) == 0);
  if (ready) ::execve(plan.program, plan.arguments, plan.environment);
  const int error = errno;
  [[maybe_unused]] const ssize_t told = ::write(plan.report, &error, sizeof error);
  ::_exit(127);
}

}  // namespace

JobOfRanks::JobOfRanks(int ranks)
    : listener_(Listener::Reach::Loopback),
      token_(random_token()),
      threads_(std::max(1, usable_cores() / std::max(1, ranks))) {}

RankProcess::RankProcess(const RankStart& start, const JobOfRanks& job)
    : rank_(start.rank), lines_{PrefixedLines(start.rank), PrefixedLines(start.rank)} {
  const bool first = start.rank == 0;
  Pipe output(!first), errors(!first), report(true);
  std::vector<std::string> arguments = start.arguments, environment = environment_of(start, job);
  const std::vector<char*> argv = pointers(arguments), envp = pointers(environment);
  const int nothing = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (nothing < 0)
    throw Error(ExitCode::Internal, "/dev/null: " + message_of(errno), "see the limit of open files");
  const ChildPlan plan{start.program.c_str(),
                       argv.data(),
                       envp.data(),
                       start.mask,
                       nothing,
                       first ? start.output : output.ends[1],
                       first ? start.errors : errors.ends[1],
                       first ? job.listener() : -1,
                       ::getpid(),
                       report.ends[1]};
  const pid_t child = ::fork();
  if (child == 0) become(plan);
  const int fork_error = errno;
  ::close(nothing);
  if (child < 0)
    throw Error(ExitCode::Usage, fmt::format("rank {} cannot be started: {}", rank_, message_of(fork_error)),
                "see the limit of processes (ulimit -u, the control group) and the free memory");
  pid_ = child;
  report.close_writer();
  int failure = 0;
  ssize_t n = 0;
  do n = ::read(report.ends[0], &failure, sizeof failure);
  while (n < 0 && errno == EINTR);
  if (n == static_cast<ssize_t>(sizeof failure)) {
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    throw Error(ExitCode::Usage,
                fmt::format("rank {}: {} cannot be started: {}", rank_, escape_control(start.program),
                            message_of(failure)),
                "see that the program is still there and may be executed");
  }
  streams_ = {output.release_reader(), errors.release_reader()};
  for (const int stream : streams_)
    if (stream >= 0) ::fcntl(stream, F_SETFL, O_NONBLOCK);
}

RankProcess::~RankProcess() {
  if (running()) {
    end_by(SIGKILL);
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
  }
  for (const int number : {1, 2}) close_stream(number);
}

void RankProcess::send(int number) const {
  if (running()) ::kill(pid_, number);
}

void RankProcess::end_by(int number) {
  if (!running()) return;
  ended_by_launcher_ = true;
  // With what the rank itself may have started.
  if (number != SIGKILL || ::kill(-pid_, SIGKILL) != 0) ::kill(pid_, number);
}

bool RankProcess::stopped() const {
  siginfo_t state{};
  return running() && ::waitid(P_PID, static_cast<id_t>(pid_), &state, WSTOPPED | WNOHANG | WNOWAIT) == 0 &&
         state.si_pid == pid_;
}

bool RankProcess::reap() {
  if (!running()) return false;
  int status = 0;
  const pid_t ended = ::waitpid(pid_, &status, WNOHANG);
  if (ended != pid_) return false;
  pid_ = -1;
  code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  return true;
}

void RankProcess::read(int number, SlowWriter& to) {
  std::array<char, 16 << 10> buffer;
  const ssize_t n = ::read(stream(number), buffer.data(), buffer.size());
  if (n > 0) to.add(lines_[static_cast<size_t>(number) - 1].take({buffer.data(), static_cast<size_t>(n)}));
  if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) drain(number, to);
}

void RankProcess::drain(int number, SlowWriter& to) {
  if (stream(number) < 0) return;
  PrefixedLines& lines = lines_[static_cast<size_t>(number) - 1];
  std::array<char, 16 << 10> buffer;
  for (ssize_t n = 0; (n = ::read(stream(number), buffer.data(), buffer.size())) != 0;) {
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) break;
    to.add(lines.take({buffer.data(), static_cast<size_t>(n)}));
  }
  to.add(lines.rest());
  close_stream(number);
}

void RankProcess::close_stream(int number) {
  int& fd = streams_[static_cast<size_t>(number) - 1];
  if (fd >= 0) ::close(std::exchange(fd, -1));
}

}  // namespace octet
