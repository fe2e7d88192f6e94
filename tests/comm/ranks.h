// Ranks of a run inside a test: as threads of this process, or as processes that can be killed.
#pragma once
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "catch.h"
#include "comm/control_plane.h"

namespace octet {

// A listening socket of loopback with a port of its own, for rank 0 to take over.
inline int listening_socket(int& port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(listen(fd, 128) == 0);
  socklen_t length = sizeof address;
  REQUIRE(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  port = ntohs(address.sin_port);
  return fd;
}

inline std::vector<Launch> launches(int ranks) {
  std::vector<Launch> all(static_cast<size_t>(ranks));
  int port = 0;
  const int fd = ranks > 1 ? listening_socket(port) : -1;
  for (int r = 0; r < ranks; ++r) {
    Launch& launch = all[static_cast<size_t>(r)];
    launch.rank = launch.local_rank = r;
    launch.ranks = launch.local_ranks = ranks;
    launch.port = port;
    launch.job = "test";
    launch.listener = r == 0 ? fd : -1;
  }
  return all;
}

// Hearts that beat fast, so that the judge looks often.
inline ControlOptions quick_options(const Launch& launch) {
  ControlOptions options;
  options.rendezvous.seconds = 20;
  options.rendezvous.linger_seconds = 0.3;
  options.rendezvous.host = "host" + std::to_string(launch.rank);
  options.rendezvous.timing = {.heartbeat_seconds = 0.05, .deadline_seconds = 20, .stall_seconds = 0};
  options.leave_seconds = 0;
  return options;
}

inline std::string error_text(const std::exception& error) {
  const auto* known = dynamic_cast<const Error*>(&error);
  return "exit " + std::to_string(known != nullptr ? static_cast<int>(known->code()) : -1) + ": " +
         error.what();
}

using RankBody = std::function<std::string(const Launch&)>;

// What each rank returned, or "exit CODE: what it threw".
inline std::vector<std::string> run_as_threads(const std::vector<Launch>& all, const RankBody& body) {
  std::vector<std::string> results(all.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < all.size(); ++r)
    threads.emplace_back([&, r] {
      try {
        results[r] = body(all[r]);
      } catch (const std::exception& error) {
        results[r] = error_text(error);
      }
    });
  for (std::thread& thread : threads) thread.join();
  return results;
}
inline std::vector<std::string> run_as_threads(int ranks, const RankBody& body) {
  return run_as_threads(launches(ranks), body);
}

// Each rank a process; whoever is still there at the end is killed.
class RankProcesses {
 public:
  RankProcesses(int ranks, const RankBody& body) : RankProcesses(launches(ranks), body) {}
  RankProcesses(const std::vector<Launch>& all, const RankBody& body) {
    for (const Launch& launch : all) {
      int ends[2];
      REQUIRE(pipe(ends) == 0);
      const pid_t pid = fork();
      REQUIRE(pid >= 0);
      if (pid == 0) {
        close(ends[0]);
        if (launch.rank != 0 && all[0].listener >= 0) close(all[0].listener);
        std::string result;
        try {
          result = body(launch);
        } catch (const std::exception& error) {
          result = error_text(error);
        }
        [[maybe_unused]] const ssize_t written = write(ends[1], result.data(), result.size());
        _exit(0);
      }
      close(ends[1]);
      pids_.push_back(pid);
      outputs_.push_back(ends[0]);
    }
    if (all[0].listener >= 0) close(all[0].listener);
  }
  ~RankProcesses() {
    for (const pid_t pid : pids_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
    for (const int fd : outputs_) close(fd);
  }
  RankProcesses(const RankProcesses&) = delete;
  RankProcesses& operator=(const RankProcesses&) = delete;
  pid_t pid(int rank) const { return pids_[static_cast<size_t>(rank)]; }
  // Of a rank that has ended, or ends soon; -1: it did not exit.
  int exit_code(int rank) const {
    siginfo_t info{};
    const int waited = waitid(P_PID, static_cast<id_t>(pid(rank)), &info, WEXITED | WNOWAIT);
    return waited == 0 && info.si_code == CLD_EXITED ? info.si_status : -1;
  }
  // What a rank said until it ended. "(no answer)" after a minute: it hangs.
  std::string result(int rank) {
    const int fd = outputs_[static_cast<size_t>(rank)];
    std::string text;
    while (true) {
      pollfd polled{fd, POLLIN, 0};
      if (poll(&polled, 1, 60000) <= 0) return text + "(no answer)";
      char bytes[4096];
      const ssize_t got = read(fd, bytes, sizeof bytes);
      if (got <= 0) return text;
      text.append(bytes, static_cast<size_t>(got));
    }
  }

 private:
  std::vector<pid_t> pids_;
  std::vector<int> outputs_;
};

}  // namespace octet
