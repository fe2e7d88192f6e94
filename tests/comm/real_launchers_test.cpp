// The real mpirun of Open MPI and mpiexec of MPICH start ranks of this very program, which say who they are
// and meet.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "base/clock.h"
#include "base/error.h"
#include "catch.h"
#include "comm/launch.h"
#include "comm/two_hosts.h"

using namespace octet;
using octet::testing::Agent;
using octet::testing::installed;
using octet::testing::Output;
using octet::testing::output_of;
using octet::testing::TwoHosts;

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
    const std::string line = fmt::format("REFUSED {} ({})\n", error.what(), error.hint());
    CHECK(::write(STDOUT_FILENO, line.data(), line.size()) == static_cast<ssize_t>(line.size()));
    FAIL("no place among the ranks");
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
  // mpirun outside the hosts it uses: rank 0 is not where the others would look for it, and says so.
  const Agent agent(Agent::Host::This);
  const Output outside = output_of(
      fmt::format("{} --mca plm_rsh_agent {} --mca plm_rsh_no_tree_spawn 1 --host alpha:1,beta:1 -np 2 {}",
                  mpirun, agent.path(), rank_command()));
  CHECK(outside.code != 0);
  CHECK_THAT(
      outside.text,
      contains_text("but rank 0 is not on the host where mpirun runs (set OCTET_RENDEZVOUS=host:port"));
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

TEST_CASE("ranks on two hosts with addresses of their own meet: mpirun, mpiexec, and plain variables") {
  const auto hosts = TwoHosts::make();
  if (!hosts) {
    WARN("skipped: no network namespaces here (root, iproute2)");
    return;
  }
  const std::string first = hosts->address(0), second = hosts->address(1), rank = rank_command();
  const Agent agent(Agent::Host::Namespace);
  if (installed("mpirun.openmpi")) {
    const Output output = output_of(fmt::format(
        "{} timeout 60 mpirun.openmpi --allow-run-as-root --mca plm_rsh_agent {} --host {}:1,{}:1 -np 2 {}",
        hosts->on(0), agent.path(), first, second, rank));
    check_ranks(output, "Open MPI", 2);
    CHECK_THAT(output.text, contains_text("rendezvous at " + first + ":"));
  }
  if (installed("mpiexec.hydra")) {
    const Output output =
        output_of(fmt::format("{0} timeout 60 mpiexec.hydra -localhost {1} -launcher ssh -launcher-exec {2} "
                              "-hosts {1},{3} -ppn 1 -np 2 {4}",
                              hosts->on(0), first, agent.path(), second, rank));
    check_ranks(output, "MPICH (PMI)", 2);
    CHECK_THAT(output.text, contains_text("rendezvous at " + first + ":"));
  }
  const Output plain = output_of(fmt::format(
      "export OCTET_RANKS=2 OCTET_RENDEZVOUS={0}:20480\n"
      "OCTET_RANK=1 {2} timeout 60 {3} & OCTET_RANK=0 {1} timeout 60 {3}; code=$?; wait $! && exit $code",
      first, hosts->on(0), hosts->on(1), rank));
  check_ranks(plain, "OCTET_RANK", 2);
  CHECK_THAT(plain.text, contains_text("local rank 0 of 1"));
}
