// One rank of this machine as a child process: started, read from, signalled, reaped.
#pragma once
#include <signal.h>
#include <sys/types.h>

#include <array>
#include <string>
#include <vector>

#include "comm/listener.h"
#include "comm/rank_output.h"

namespace octet {

// What the ranks of one start share.
class JobOfRanks {
 public:
  explicit JobOfRanks(int ranks);
  int port() const { return listener_.port(); }
  int listener() const { return listener_.socket(); }
  const std::string& token() const { return token_; }
  int threads() const { return threads_; }  // of each rank, when the cores are shared evenly

 private:
  Listener listener_;
  std::string token_;
  int threads_;
};

struct RankStart {
  std::string program;
  std::vector<std::string> arguments;  // argv
  int rank = 0, ranks = 1, restart = 0;
  int output = 1, errors = 2;  // where rank 0 writes by itself
  const sigset_t* mask;        // of blocked signals
};

class RankProcess {
 public:
  // Error(Usage) when the program cannot be started.
  RankProcess(const RankStart& start, const JobOfRanks& job);
  ~RankProcess();  // kills and reaps it if it is still there
  RankProcess(const RankProcess&) = delete;
  RankProcess& operator=(const RankProcess&) = delete;

  int rank() const { return rank_; }
  bool running() const { return pid_ > 0; }
  int code() const { return code_; }  // once it has ended; 128 + n for signal n
  bool ended_by_launcher() const { return ended_by_launcher_; }
  bool stopped() const;  // by SIGSTOP and its like: it runs no further, and takes no signal but SIGKILL

  void send(int number) const;  // a signal on its way through the launcher
  void end_by(int number);      // a signal of the launcher's own
  bool reap();                  // true when this call found that it has ended

  // Its standard output (1) or error (2) as a pipe; -1: rank 0, or at its end.
  int stream(int number) const { return streams_[static_cast<size_t>(number) - 1]; }
  void read(int number, SlowWriter& to);   // what there is
  void drain(int number, SlowWriter& to);  // everything, and the pipe is closed

 private:
  void close_stream(int number);

  int rank_;
  pid_t pid_ = -1;
  int code_ = 0;
  bool ended_by_launcher_ = false;
  std::array<int, 2> streams_ = {-1, -1};
  std::array<PrefixedLines, 2> lines_;
};

}  // namespace octet
