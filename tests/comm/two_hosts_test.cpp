// Control plane and collectives between machines with addresses of their own.
#include "comm/two_hosts.h"

#include <fcntl.h>
#include <sched.h>

#include "comm/cpu_communicator.h"
#include "ranks.h"

using namespace octet;
using octet::testing::output_of;
using octet::testing::TwoHosts;

namespace {

void move_to(const TwoHosts& hosts, int host) {
  const int fd = open(("/var/run/netns/" + hosts.address(host)).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 || setns(fd, CLONE_NEWNET) != 0) throw Error(ExitCode::Internal, "no such host");
  close(fd);
}

// Ranks 0 and 1 on one host, 2 and 3 on the other.
int host_of(int rank) { return rank / 2; }

std::vector<Launch> four_ranks(const TwoHosts& hosts) {
  std::vector<Launch> all(4, Launch{.ranks = 4, .host = hosts.address(0), .port = 29411, .job = "test"});
  for (int r = 0; r < 4; ++r) all[static_cast<size_t>(r)].rank = r;
  return all;
}

}  // namespace

TEST_CASE("ranks on two hosts reduce, gather and finish, on each host over Unix sockets") {
  const auto hosts = TwoHosts::make();
  if (!hosts) {
    WARN("skipped: network namespaces are not allowed here, or iproute2 is missing");
    return;
  }
  RankProcesses processes(four_ranks(*hosts), [&](const Launch& launch) {
    move_to(*hosts, host_of(launch.rank));
    const auto device = make_cpu_device({.threads = 1});
    ControlPlane control(launch, {}, quick_options(launch));
    std::string text;
    {
      CpuCommunicator comm(control, *device);
      std::vector<float> values(1000), all(4000);
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(i) * static_cast<float>(launch.rank + 1);
      const Tensor part{.data = values.data(), .dtype = DType::F32, .shape = {1000}};
      const Tensor whole{.data = all.data(), .dtype = DType::F32, .shape = {4000}};
      comm.all_reduce(part, Reduction::Sum);
      comm.wait(comm.all_gather(whole, part));
      text = fmt::format("{} {} {}", values[999], all[3999],
                         control.local_address()->is_loopback() ? "loopback" : "address");
    }
    control.finish();
    return text;
  });
  for (int r = 0; r < 4; ++r) CHECK(processes.result(r) == "9990 9990 address");  // 999 * (1 + 2 + 3 + 4)
}

TEST_CASE("a pulled cable: the ranks of each side name one of the other side") {
  const auto hosts = TwoHosts::make();
  if (!hosts) {
    WARN("skipped: network namespaces are not allowed here, or iproute2 is missing");
    return;
  }
  RankProcesses processes(four_ranks(*hosts), [&](const Launch& launch) {
    move_to(*hosts, host_of(launch.rank));
    const auto device = make_cpu_device({.threads = 1});
    ControlOptions options = quick_options(launch);
    options.rendezvous.timing.deadline_seconds = 1;
    ControlPlane control(launch, {}, options);
    CpuCommunicator comm(control, *device);
    control.set_phase("reduce", 3);
    control.barrier("cables");
    if (launch.rank == 0) {
      const std::string name = "oct" + std::to_string(getppid()) + "a";
      if (system(("ip -n " + hosts->address(0) + " link set " + name + " down").c_str()) != 0)
        return std::string("no cable");
    }
    std::vector<float> values(1 << 16);
    const Tensor tensor{.data = values.data(), .dtype = DType::F32, .shape = {1 << 16}};
    while (true) comm.wait(comm.all_reduce(tensor, Reduction::Sum));
  });
  for (int r = 0; r < 4; ++r) {
    INFO("rank " << r);
    const std::string result = processes.result(r);
    CHECK_THAT(
        result,
        contains_text(host_of(r) == 0 ? "exit 31: rank 2 (host host2" : "exit 31: rank 0 (host host0") ||
            contains_text(host_of(r) == 0 ? "exit 31: rank 3 (host host3" : "exit 31: rank 0 (host host0"));
    CHECK_THAT(result,
               contains_text("nothing heard from it for") && contains_text("at step 3, phase reduce"));
  }
}
