// The real mpirun of Open MPI and mpiexec of MPICH start ranks of this very program, which say who they are
// and meet.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <set>

#include "base/clock.h"
#include "base/error.h"
#include "catch.h"
#include "comm/launch.h"

using namespace octet;

namespace {

// A socket to or of host:port; -1 when the other side is not there (yet).
int open_socket(const std::string& host, int port, bool listening) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return -1;
  const int socket = ::socket(found->ai_family, SOCK_STREAM, 0), yes = 1;
  ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  const bool done = listening
                        ? ::bind(socket, found->ai_addr, found->ai_addrlen) == 0 && ::listen(socket, 8) == 0
                        : ::connect(socket, found->ai_addr, found->ai_addrlen) == 0;
  ::freeaddrinfo(found);
  if (done) return socket;
  ::close(socket);
  return -1;
}

// Every rank reaches rank 0 at the place that was detected. The number of ranks that met, on rank 0.
int meet(const Launch& launch) {
  if (launch.rank > 0) {
    for (const double until = monotonic_seconds() + 20; monotonic_seconds() < until; ::usleep(20'000)) {
      const int socket = open_socket(launch.host, launch.port, false);
      if (socket < 0) continue;
      const char mine = static_cast<char>(launch.rank);
      char theirs = 0;
      const bool met = ::send(socket, &mine, 1, MSG_NOSIGNAL) == 1 && ::recv(socket, &theirs, 1, 0) == 1;
      ::close(socket);
      if (met) return launch.rank;
    }
    return -1;
  }
  const int listener = launch.listener >= 0 ? launch.listener : open_socket(launch.host, launch.port, true);
  REQUIRE(listener >= 0);
  std::set<int> ranks = {0};
  while (static_cast<int>(ranks.size()) < launch.ranks) {
    const int socket = ::accept(listener, nullptr, nullptr);
    char theirs = 0;
    if (socket >= 0 && ::recv(socket, &theirs, 1, 0) == 1) {
      ranks.insert(theirs);
      CHECK(::send(socket, &theirs, 1, MSG_NOSIGNAL) == 1);
    }
    ::close(socket);
  }
  ::close(listener);
  return static_cast<int>(ranks.size());
}

struct Output {
  int code = -1;
  std::string text;
};
Output output_of(const std::string& command) {
  Output output;
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe);
  std::array<char, 4096> buffer;
  for (size_t n; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
    output.text.append(buffer.data(), n);
  const int status = ::pclose(pipe);
  output.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return output;
}

bool installed(const char* program) { return output_of(fmt::format("command -v {}", program)).code == 0; }

std::string rank_command() {
  return fmt::format("'{}' '[.rank]'", std::filesystem::read_symlink("/proc/self/exe").string());
}

// Each of the ranks has said its line once, and all of them met.
void check_ranks(const Output& output, const std::string& source, int ranks) {
  INFO(output.text);
  CHECK(output.code == 0);
  for (int rank = 0; rank < ranks; ++rank)
    CHECK_THAT(output.text, contains_text(fmt::format("LAUNCH rank {} of {} ({};", rank, ranks, source)));
  CHECK_THAT(output.text, contains_text(fmt::format("MET {} ranks", ranks)));
}

}  // namespace

TEST_CASE("one rank of a job says who it is and meets the others", "[.rank]") {
  Launch launch;
  try {
    launch = detect_launch({}, process_environment());
  } catch (const Error& error) {
    FAIL(error.what() << " (" << error.hint() << ")");
  }
  // One write a line: the launcher mixes the outputs of its ranks.
  const std::string line = fmt::format("LAUNCH {} JOB {}\n", describe(launch), launch.job);
  CHECK(::write(STDOUT_FILENO, line.data(), line.size()) == static_cast<ssize_t>(line.size()));
  const int met = meet(launch);
  CHECK(met == (launch.rank == 0 ? launch.ranks : launch.rank));
  if (launch.rank == 0) fmt::print("MET {} ranks\n", met);
}

TEST_CASE("ranks started by Open MPI's mpirun know their places and meet") {
  if (!installed("mpirun.openmpi")) {
    WARN("skipped: no mpirun.openmpi here (scripts/install_dependencies.sh --test)");
    return;
  }
  const std::string mpirun = "timeout 60 mpirun.openmpi --allow-run-as-root --oversubscribe";
  const Output output = output_of(fmt::format("{} -np 3 {}", mpirun, rank_command()));
  check_ranks(output, "Open MPI", 3);
  CHECK_THAT(output.text, contains_text("local rank 2 of 3"));
  // Two starts are two jobs.
  const auto job = [](const std::string& text) {
    const size_t at = text.find(" JOB ");
    return at == std::string::npos ? "" : text.substr(at, text.find('\n', at) - at);
  };
  const Output again = output_of(fmt::format("{} -np 2 {}", mpirun, rank_command()));
  check_ranks(again, "Open MPI", 2);
  CHECK(job(output.text).size() > 10);
  CHECK(job(output.text) != job(again.text));
}

TEST_CASE("ranks started by MPICH's mpiexec know their places and meet, on one host and on several") {
  if (!installed("mpiexec.hydra")) {
    WARN("skipped: no mpiexec.hydra here (scripts/install_dependencies.sh --test)");
    return;
  }
  const Output output = output_of("timeout 60 mpiexec.hydra -np 3 " + rank_command());
  check_ranks(output, "MPICH (PMI)", 3);
  CHECK_THAT(output.text, contains_text("local rank 2 of 3"));
  // Three names of this machine are three hosts to Hydra, with one rank each.
  const Output hosts =
      output_of("timeout 60 mpiexec.hydra -launcher fork -hosts 127.0.0.1,127.0.0.2,127.0.0.3 -ppn 1 -np 3 " +
                rank_command());
  check_ranks(hosts, "MPICH (PMI)", 3);
  CHECK_THAT(hosts.text, contains_text("local rank 0 of 1"));
  // Negative control: ranks that nobody tells of each other.
  CHECK_THAT(output_of("env -u PMI_RANK " + rank_command()).text, contains_text("LAUNCH single process"));
}
