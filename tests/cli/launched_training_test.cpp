// octet train under Open MPI, MPICH and plain variables, on one host and on two.
#include "catch.h"
#include "cli/shared_run.h"
#include "comm/two_hosts.h"

using octet::testing::Agent;
using octet::testing::installed;
using octet::testing::Output;
using octet::testing::output_of;
using octet::testing::SharedRun;
using octet::testing::TwoHosts;

namespace {

std::string training(const SharedRun& place, const std::string& name, const std::string& arguments = "") {
  return fmt::format("'{}' train '{}' --quiet --set run.output='{}' {}", OCTET_BINARY,
                     (place.folder.path() / "run.json").string(), (place.folder.path() / name).string(),
                     arguments);
}

// `before` starts two ranks of what follows it. The data's paths are relative to the configuration's folder.
Output launched(const SharedRun& place, const std::string& before, const std::string& name) {
  return output_of(
      fmt::format("cd '{}' && {} {}", place.folder.path().string(), before, training(place, name)));
}

// Two ranks with variables of their own, the second one on another host. Its exit code follows the first's.
Output by_variables(const SharedRun& place, const TwoHosts& hosts, const std::string& name,
                    const std::string& arguments = "") {
  const auto rank = [&](int r) {
    // Each host has a name of its own, too.
    return fmt::format(
        "OCTET_RANK={0} {1} unshare --uts sh -c 'echo host-{0} > /proc/sys/kernel/hostname && exec \"$@\"' "
        "sh "
        "timeout 60 {2}",
        r, hosts.on(r), training(place, name, arguments));
  };
  return output_of(
      fmt::format("cd '{}' && export OCTET_RANKS=2 OCTET_RENDEZVOUS={}:20480\n{} & {}; code=$?\n"
                  "wait $!; echo \"the second rank ended with $?\"; exit $code",
                  place.folder.path().string(), hosts.address(0), rank(1), rank(0)));
}

// The same losses, norms and tensors as the built-in launcher's two ranks, bit for bit.
void check_equal(const SharedRun& place, const Output& output, const std::string& name) {
  INFO(name << ": " << output.text);
  REQUIRE(output.code == 0);
  CHECK(place.numbers(name, "train/loss").size() == 6);
  for (const char* key : {"train/loss", "train/grad_norm"})
    CHECK(place.numbers(name, key) == place.numbers("builtin", key));
  CHECK(place.same_checkpoint(name, "builtin"));
}

constexpr const char* no_hosts = "skipped: network namespaces are not allowed here, or iproute2 is missing";

}  // namespace

TEST_CASE("octet train under mpirun and mpiexec has the bits of the built-in launcher") {
  const SharedRun place;
  REQUIRE(place.train("builtin", "--ranks 2").code == 0);
  if (installed("mpirun.openmpi")) {
    const Output run =
        launched(place, "timeout 60 mpirun.openmpi --allow-run-as-root --oversubscribe --bind-to none -np 2",
                 "mpirun");
    check_equal(place, run, "mpirun");
    CHECK_THAT(run.text, contains_text("launch: rank 0 of 2 (Open MPI; local rank 0 of 2)"));
  } else {
    WARN("skipped: no mpirun.openmpi here (scripts/install_dependencies.sh --test)");
  }
  if (installed("mpiexec.hydra")) {
    const Output run = launched(place, "timeout 60 mpiexec.hydra -np 2", "mpiexec");
    check_equal(place, run, "mpiexec");
    CHECK_THAT(run.text, contains_text("launch: rank 0 of 2 (MPICH (PMI); local rank 0 of 2)"));
  } else {
    WARN("skipped: no mpiexec.hydra here (scripts/install_dependencies.sh --test)");
  }
  // Negative control: gradients that are rounded to BF16 on their way are other bits.
  REQUIRE(place.train("rounded", "--ranks 2 --set parallel.reduce=bf16").code == 0);
  CHECK(place.numbers("rounded", "train/loss") != place.numbers("builtin", "train/loss"));
  CHECK_FALSE(place.same_checkpoint("rounded", "builtin"));
}

TEST_CASE("octet train on two hosts with addresses of their own has the bits of one host") {
  const auto hosts = TwoHosts::make();
  if (!hosts) {
    WARN(no_hosts);
    return;
  }
  const SharedRun place;
  REQUIRE(place.train("builtin", "--ranks 2").code == 0);
  const Agent agent(Agent::Host::Namespace);
  const std::string meeting = "rendezvous at " + hosts->address(0) + ":";
  if (installed("mpirun.openmpi")) {
    const Output run = launched(place,
                                fmt::format("{} timeout 60 mpirun.openmpi --allow-run-as-root --bind-to none "
                                            "--mca plm_rsh_agent {} --host {}:1,{}:1 -np 2",
                                            hosts->on(0), agent.path(), hosts->address(0), hosts->address(1)),
                                "mpirun");
    check_equal(place, run, "mpirun");
    CHECK_THAT(run.text, contains_text("launch: rank 0 of 2 (Open MPI; local rank 0 of 1), " + meeting));
  }
  if (installed("mpiexec.hydra")) {
    const Output run =
        launched(place,
                 fmt::format("{0} timeout 60 mpiexec.hydra -localhost {1} -launcher ssh -launcher-exec {2} "
                             "-hosts {1},{3} -ppn 1 -np 2",
                             hosts->on(0), hosts->address(0), agent.path(), hosts->address(1)),
                 "mpiexec");
    check_equal(place, run, "mpiexec");
    CHECK_THAT(run.text, contains_text("launch: rank 0 of 2 (MPICH (PMI); local rank 0 of 1), " + meeting));
  }
  const Output plain = by_variables(place, *hosts, "plain");
  check_equal(place, plain, "plain");
  CHECK_THAT(plain.text, contains_text("launch: rank 0 of 2 (OCTET_RANK; local rank 0 of 1), " + meeting));
}

TEST_CASE("a rank that is killed on the second host ends the first, which says which, where and at what") {
  const auto hosts = TwoHosts::make();
  if (!hosts) {
    WARN(no_hosts);
    return;
  }
  const SharedRun place;
  REQUIRE(place.train("builtin", "--ranks 2").code == 0);
  struct Case {
    int rank, step;
    const char* phase;
  };
  for (const Case& c : {Case{1, 4, "update"}, {0, 3, "evaluation"}}) {
    const Output lost = by_variables(
        place, *hosts, "run",
        fmt::format("--overwrite --set checkpoint.every=2 --inject kill:rank={},step={},phase={}", c.rank,
                    c.step, c.phase));
    INFO(lost.text);
    CHECK(lost.code == (c.rank == 1 ? 31 : 137));
    CHECK_THAT(lost.text,
               contains_text(fmt::format("the second rank ended with {}", c.rank == 1 ? 137 : 31)));
    CHECK_THAT(lost.text, contains_text(fmt::format("error: rank {0} (host host-{0}, pid ", c.rank)));
    CHECK_THAT(lost.text, contains_text(fmt::format(
                              ") was lost: its connection closed without a goodbye, at step {}, phase {}\n",
                              c.step, c.phase)));
    check_equal(place, by_variables(place, *hosts, "run"), "run");  // goes on, to the same end
  }
}
