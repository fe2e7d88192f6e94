#include "comm/launch.h"

#include <set>

#include "catch.h"
#include "comm/launch_sources.h"
#include "comm/variables.h"

using namespace octet;
using namespace octet::testing;

namespace {

Launch detected(const Values& values, const LaunchFlags& flags = {}) {
  return detect_launch(flags, environment_of(values));
}
std::string refusal(const Values& values, const LaunchFlags& flags = {}) {
  return error_of([&] { detected(values, flags); });
}
LaunchFlags believing(const std::string& launcher) {
  LaunchFlags flags;
  flags.launcher = launcher;
  return flags;
}

// As observed under Open MPI 4.1: rank 2 of 4 on one host.
const Values open_mpi = {
    {"OMPI_COMM_WORLD_RANK", "2"},
    {"OMPI_COMM_WORLD_SIZE", "4"},
    {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
    {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
    {"OMPI_COMM_WORLD_NODE_RANK", "2"},
    {"OMPI_MCA_ess_base_jobid", "1759576065"},
    {"OMPI_MCA_orte_precondition_transports", "582a69ee377b549a-65bac9fe2563f847"},
    {"OMPI_MCA_orte_hnp_uri", "1759576064.0;tcp://192.0.2.2,172.17.0.1:33793;tcp6://[fd00::2]:50283"},
    {"OMPI_MCA_orte_local_daemon_uri",
     "1759576064.0;tcp://192.0.2.2,172.17.0.1:33793;tcp6://[fd00::2]:50283"}};
// The same job on two hosts, seen from the second.
const Values open_mpi_far =
    open_mpi + Values{{"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                      {"OMPI_MCA_orte_local_daemon_uri", "1759576064.1;tcp://192.0.2.3:40001"}};
// As observed under Hydra 4.0.
const Values mpich = {{"PMI_RANK", "1"},        {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"},
                      {"MPI_LOCALNRANKS", "2"}, {"PMI_FD", "8"},   {"HYDI_CONTROL_FD", "7"}};
const Values mpich_far = mpich + Values{{"MPI_LOCALRANKID", "0"}, {"MPI_LOCALNRANKS", "1"}};
// srun(1), "OUTPUT ENVIRONMENT VARIABLES": task 5 of 7 on nodes of 2, 2, 2 and 1 tasks.
const Values slurm_allocation = {{"SLURM_JOB_ID", "1234"},
                                 {"SLURM_NTASKS", "7"},
                                 {"SLURM_JOB_NODELIST", "gpu[007-009,012]"},
                                 {"SLURM_PROCID", "0"}};
const Values slurm = slurm_allocation + Values{{"SLURM_STEP_ID", "0"},
                                               {"SLURM_PROCID", "5"},
                                               {"SLURM_STEP_NUM_TASKS", "7"},
                                               {"SLURM_LOCALID", "1"},
                                               {"SLURM_NODEID", "2"},
                                               {"SLURM_STEP_TASKS_PER_NODE", "2(x3),1"},
                                               {"SLURM_STEP_NODELIST", "gpu[007-009,012]"},
                                               {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1"}};
const Values torchrun = {{"RANK", "3"},
                         {"WORLD_SIZE", "4"},
                         {"LOCAL_RANK", "1"},
                         {"LOCAL_WORLD_SIZE", "2"},
                         {"MASTER_ADDR", "node0"},
                         {"MASTER_PORT", "29500"}};
const Values own = {
    {"OCTET_RANK", "1"}, {"OCTET_RANKS", "2"}, {"OCTET_RENDEZVOUS", "127.0.0.1:4321"}, {"OCTET_JOB", "abc"}};

}  // namespace

TEST_CASE("a process that nobody has started as a rank is a single process") {
  const Launch launch = detected({});
  CHECK(launch.rank == 0);
  CHECK(launch.ranks == 1);
  CHECK(launch.port == 0);
  CHECK(launch.source == "single process");
  CHECK(describe(launch) == "single process");
  // Variables that are there but empty are not there.
  CHECK(detected({{"OMPI_COMM_WORLD_RANK", ""}, {"RANK", ""}, {"WORLD_SIZE", ""}}).ranks == 1);
  // Generic names say something only together, and one rank is one rank.
  CHECK(detected({{"RANK", "3"}}).ranks == 1);
  CHECK(detected({{"WORLD_SIZE", "1"}}).ranks == 1);
}

TEST_CASE("each launcher's variables give rank, ranks, place on the host and meeting place") {
  struct Case {
    const char* name;
    Values values;
    LaunchFlags flags;
    const char* described;
  };
  LaunchFlags by_flags;
  by_flags.rank = 2;
  by_flags.ranks = 3;
  by_flags.rendezvous = "[fd00::1]:4000";
  LaunchFlags by_flags_local = by_flags;
  by_flags_local.local_rank = 1;
  by_flags_local.local_ranks = 2;
  const std::string open_mpi_port = std::to_string(detected(open_mpi).port);
  const std::string slurm_port = std::to_string(detected(slurm).port);
  const std::vector<Case> cases = {
      {"flags, one rank a host",
       {},
       by_flags,
       "rank 2 of 3 (flags; local rank 0 of 1), rendezvous at [fd00::1]:4000"},
      {"flags, with the place on the host",
       {},
       by_flags_local,
       "rank 2 of 3 (flags; local rank 1 of 2), rendezvous at [fd00::1]:4000"},
      {"flags win over every variable", open_mpi + slurm, by_flags,
       "rank 2 of 3 (flags; local rank 0 of 1), rendezvous at [fd00::1]:4000"},
      {"own variables on one host",
       own,
       {},
       "rank 1 of 2 (OCTET_RANK; local rank 1 of 2), rendezvous at 127.0.0.1:4321"},
      {"own variables on several hosts",
       own + Values{{"OCTET_RENDEZVOUS", "node0:4321"}},
       {},
       "rank 1 of 2 (OCTET_RANK; local rank 0 of 1), rendezvous at node0:4321"},
      {"Open MPI on one host",
       open_mpi,
       {},
       "rank 2 of 4 (Open MPI; local rank 2 of 4), rendezvous at 127.0.0.1:%OPENMPI"},
      {"Open MPI 4 on two hosts: where mpirun is",
       open_mpi_far,
       {},
       "rank 2 of 4 (Open MPI; local rank 0 of 2), rendezvous at 192.0.2.2:%OPENMPI"},
      {"Cray PALS",
       {{"PALS_RANKID", "1"},
        {"PMI_SIZE", "2"},
        {"PALS_LOCAL_RANKID", "1"},
        {"PALS_LOCAL_SIZE", "2"},
        {"PALS_APID", "f00"},
        {"OCTET_RENDEZVOUS", "x1:4000"}},
       {},
       "rank 1 of 2 (PALS; local rank 1 of 2), rendezvous at x1:4000"},
      {"MVAPICH",
       {{"MV2_COMM_WORLD_RANK", "0"},
        {"MV2_COMM_WORLD_SIZE", "2"},
        {"MV2_COMM_WORLD_LOCAL_RANK", "0"},
        {"MV2_COMM_WORLD_LOCAL_SIZE", "1"},
        {"MASTER_ADDR", "m0"},
        {"MASTER_PORT", "4000"}},
       {},
       "rank 0 of 2 (MVAPICH; local rank 0 of 1), rendezvous at m0:4000"},
      {"Slurm step",
       slurm,
       {},
       "rank 5 of 7 (Slurm step 1234.0; local rank 1 of 2), rendezvous at gpu007:%SLURM"},
      {"Slurm step on one node",
       slurm + Values{{"SLURM_STEP_TASKS_PER_NODE", "7"}, {"SLURM_NODEID", "0"}},
       {},
       "rank 5 of 7 (Slurm step 1234.0; local rank 1 of 7), rendezvous at 127.0.0.1:%SLURM"},
      {"Flux",
       {{"FLUX_TASK_RANK", "3"},
        {"FLUX_JOB_SIZE", "4"},
        {"FLUX_TASK_LOCAL_ID", "1"},
        {"FLUX_JOB_NNODES", "2"},
        {"FLUX_JOB_ID", "f1"},
        {"OCTET_RENDEZVOUS", "f0:4000"}},
       {},
       "rank 3 of 4 (Flux; local rank 1 of 2), rendezvous at f0:4000"},
      {"torchrun",
       torchrun,
       {},
       "rank 3 of 4 (RANK and WORLD_SIZE; local rank 1 of 2), rendezvous at node0:29500"},
      {"Kubernetes indexed Job",
       {{"JOB_COMPLETION_INDEX", "1"}, {"OCTET_RANKS", "3"}, {"OCTET_RENDEZVOUS", "train-0.train:20480"}},
       {},
       "rank 1 of 3 (Kubernetes indexed Job; local rank 0 of 1), rendezvous at train-0.train:20480"},
  };
  for (const Case& c : cases) {
    std::string expected = c.described;
    for (const auto& [key, port] : {std::pair{"%OPENMPI", open_mpi_port}, std::pair{"%SLURM", slurm_port}})
      if (const size_t at = expected.find(key); at != std::string::npos)
        expected.replace(at, std::string(key).size(), port);
    INFO(c.name);
    CHECK(describe(detected(c.values, c.flags)) == expected);
  }
}

TEST_CASE("launchers are believed in a fixed order, and --launcher chooses another") {
  // The same place in all of them, so that they do not disagree.
  const Values place = {{"OMPI_COMM_WORLD_RANK", "1"},
                        {"OMPI_COMM_WORLD_SIZE", "2"},
                        {"MV2_COMM_WORLD_RANK", "1"},
                        {"MV2_COMM_WORLD_SIZE", "2"},
                        {"SLURM_JOB_ID", "7"},
                        {"SLURM_STEP_ID", "3"},
                        {"SLURM_PROCID", "1"},
                        {"SLURM_STEP_NUM_TASKS", "2"},
                        {"FLUX_TASK_RANK", "1"},
                        {"FLUX_JOB_SIZE", "2"},
                        {"RANK", "1"},
                        {"WORLD_SIZE", "2"},
                        {"LOCAL_RANK", "1"},
                        {"LOCAL_WORLD_SIZE", "2"}};
  const Values all = place + own;
  CHECK(detected(all).source == "OCTET_RANK");
  CHECK(detected(without(without(all, "OCTET_RANK"), "OCTET_RANKS")).source == "Open MPI");
  const Values rest = without(without(place, "OMPI_COMM_WORLD_RANK"), "OMPI_COMM_WORLD_SIZE");
  CHECK(detected(rest).source == "MVAPICH");
  CHECK(detected(all, believing("slurm")).source == "Slurm step 7.3");
  CHECK(detected(all, believing("flux")).source == "Flux");
  CHECK(detected(all, believing("env")).source == "RANK and WORLD_SIZE");
  CHECK(detected(all, believing("mpi")).source == "Open MPI");
  CHECK(detected(all, believing("octet")).source == "OCTET_RANK");
  CHECK(detected(all, believing("single")).source == "single process");
  CHECK(detected(all, believing("single")).ranks == 1);
  CHECK_THAT(refusal(slurm, believing("mpi")), contains_text("2: --launcher mpi: the variables of mpirun"));
  CHECK_THAT(refusal({}, believing("slrum")), contains_text("did you mean --launcher slurm?"));
  // Whoever is chosen is all that is read.
  CHECK(detected(all + Values{{"PMI_RANK", "nonsense"}}, believing("slurm")).rank == 1);
  CHECK_THAT(refusal(all + Values{{"PMI_RANK", "nonsense"}}),
             contains_text("PMI_RANK=nonsense is not a whole number"));
}

TEST_CASE("a shell inside a Slurm allocation is no step: srun was forgotten") {
  CHECK_THAT(refusal(slurm_allocation), contains_text("2: this is one process of no Slurm step"));
  CHECK_THAT(refusal(slurm_allocation), contains_text("srun octet train"));
  // The steps that Slurm keeps for itself: batch script, interactive shell; and ids that are no numbers.
  for (const char* step : {"4294967291", "4294967290", "4294967292", "batch", "interactive"}) {
    INFO(step);
    CHECK_THAT(refusal(slurm_allocation + Values{{"SLURM_STEP_ID", step}}), contains_text("no Slurm step"));
  }
  CHECK(detected(slurm).ranks == 7);  // a real step
  // One task, a single process asked for, or ranks that somebody else has started: nothing was forgotten.
  CHECK(detected(slurm_allocation + Values{{"SLURM_NTASKS", "1"}}).ranks == 1);
  CHECK(detected(slurm_allocation, believing("single")).ranks == 1);
  CHECK(detected(slurm_allocation + own).source == "OCTET_RANK");
  CHECK(detected(slurm_allocation + open_mpi).source == "Open MPI");
}

TEST_CASE("mpirun inside a Slurm allocation wins over the step of its own daemons") {
  const Launch launch = detected(open_mpi_far + slurm);
  CHECK(launch.source == "Open MPI");
  CHECK(launch.rank == 2);
  CHECK(launch.ranks == 4);
}

TEST_CASE("sources that disagree are an error that prints both and the flag to choose") {
  // Open MPI's singletons under srun: each of the tasks believes that it is alone.
  const Values singleton = slurm + Values{{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}};
  const std::string message = refusal(singleton);
  CHECK_THAT(message, contains_text("Open MPI says rank 0 of 1"));
  CHECK_THAT(message, contains_text("Slurm step 1234.0 says rank 5 of 7"));
  CHECK_THAT(message, contains_text("--launcher mpi or --launcher slurm, or --launcher single"));
  CHECK(detected(singleton, believing("slurm")).ranks == 7);
  CHECK(detected(singleton, believing("mpi")).ranks == 1);
  // The same with PMI, with left-over variables of our own, and between an MPI and exported generic names.
  CHECK_THAT(refusal(slurm + Values{{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}}), contains_text("rank 5 of 7"));
  CHECK_THAT(refusal(slurm + Values{{"OCTET_RANK", "0"}, {"OCTET_RANKS", "1"}}),
             contains_text("rank 5 of 7"));
  CHECK_THAT(refusal(slurm + own), contains_text("OCTET_RANK says rank 1 of 2"));
  CHECK_THAT(refusal(open_mpi + torchrun), contains_text("RANK and WORLD_SIZE says rank 3 of 4"));
  CHECK_THAT(refusal(open_mpi + mpich), contains_text("unset the variables of the one"));
  CHECK_THAT(refusal(open_mpi + Values{{"OCTET_RANKS", "8"}}), contains_text("but OCTET_RANKS=8"));
  // One rank around the launcher that started this one is no contradiction.
  const Values alone = {
      {"SLURM_JOB_ID", "1"}, {"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}};
  CHECK(detected(alone + own).ranks == 2);
  CHECK(detected(alone + open_mpi).ranks == 4);
  // Neither is the same answer twice.
  CHECK(detected(slurm + Values{{"RANK", "5"}, {"WORLD_SIZE", "7"}, {"MASTER_ADDR", "other"}}).host ==
        "gpu007");
}

TEST_CASE("variables that say half of it are refused by name") {
  CHECK_THAT(refusal({{"OCTET_RANK", "1"}}), contains_text("OCTET_RANK is set, OCTET_RANKS is not"));
  CHECK_THAT(refusal({{"OCTET_RANKS", "4"}}), contains_text("OCTET_RANKS=4, but OCTET_RANK is not set"));
  CHECK_THAT(refusal({{"WORLD_SIZE", "4"}}), contains_text("WORLD_SIZE=4, but RANK is not set"));
  CHECK_THAT(refusal({{"PMI_SIZE", "4"}}), contains_text("PMI_SIZE is set, PMI_RANK is not"));
  CHECK_THAT(refusal(without(open_mpi, "OMPI_COMM_WORLD_SIZE")),
             contains_text("OMPI_COMM_WORLD_SIZE is not"));
  LaunchFlags flags;
  flags.rank = 1;
  CHECK_THAT(refusal({}, flags), contains_text("--rank without --world-size"));
  flags.ranks = 1;
  CHECK_THAT(refusal({}, flags), contains_text("--rank 1 of --world-size 1"));
  flags.launcher = "mpi";
  CHECK_THAT(refusal({}, flags), contains_text("leave --launcher out"));
}

TEST_CASE("numbers that are none, and ranks beyond their number, are refused by name") {
  for (const char* bad : {"-1", "1x", " 1", "0x1", "1e3", "1000001", "99999999999999999999"}) {
    INFO(bad);
    CHECK_THAT(refusal(own + Values{{"OCTET_RANK", bad}}), contains_text("2: OCTET_RANK="));
  }
  CHECK_THAT(refusal(own + Values{{"OCTET_RANK", "2"}}), contains_text("ranks count from 0"));
  CHECK_THAT(refusal(own + Values{{"OCTET_RANK", "\x1b[2J"}}),
             contains_text("\\x1b[2J is not a whole number"));
  CHECK_THAT(refusal(own + Values{{"OCTET_LOCAL_RANK", "3"}, {"OCTET_LOCAL_RANKS", "2"}}),
             contains_text("local rank 3 of 2"));
  CHECK_THAT(refusal(own + Values{{"OCTET_LOCAL_RANK", "0"}, {"OCTET_LOCAL_RANKS", "9"}}),
             contains_text("local rank 0 of 9, in a job of 2 ranks"));
}

TEST_CASE("RANK without LOCAL_RANK counts nodes, and the line says so") {
  const Values nodes = without(without(torchrun, "LOCAL_RANK"), "LOCAL_WORLD_SIZE");
  const Launch launch = detected(nodes);
  CHECK(launch.local_rank == 0);
  CHECK(launch.local_ranks == 1);
  CHECK_THAT(describe(launch), contains_text("one rank a node: there is no LOCAL_RANK"));
  CHECK(describe(detected(torchrun)).find("one rank a node") == std::string::npos);
  // Kubeflow's first pod knows itself as localhost; the others must reach it all the same.
  const Values first = nodes + Values{{"RANK", "0"}, {"MASTER_ADDR", "localhost"}};
  CHECK(detected(first).host == "0.0.0.0");
  CHECK(detected(first).port == launch.port);
  CHECK(detected(first).job == launch.job);
  CHECK(detected(torchrun + Values{{"RANK", "0"}, {"MASTER_ADDR", "localhost"}}).host == "localhost");
  // A rank of this host without their number would leave threads and devices to chance.
  CHECK_THAT(refusal(without(torchrun, "LOCAL_WORLD_SIZE")),
             contains_text("but not how many ranks this host has"));
  CHECK(detected(without(torchrun, "LOCAL_WORLD_SIZE") + Values{{"OCTET_LOCAL_RANKS", "2"}}).local_ranks ==
        2);
}

TEST_CASE("torchrun's agent keeps MASTER_PORT for itself where workers share its store") {
  const Launch shared = detected(torchrun + Values{{"TORCHELASTIC_USE_AGENT_STORE", "True"}});
  CHECK(shared.host == "node0");
  CHECK(shared.port != 29500);
  CHECK(shared.port == derived_port(shared.job));
  CHECK(detected(torchrun + Values{{"TORCHELASTIC_USE_AGENT_STORE", "False"}}).port == 29500);
}

TEST_CASE("ranks on several hosts need a place to meet, or an error says which variable names it") {
  const Values far =
      without(without(open_mpi_far, "OMPI_MCA_orte_hnp_uri"), "OMPI_MCA_orte_local_daemon_uri");
  CHECK_THAT(refusal(far), contains_text("OCTET_RENDEZVOUS=host:port"));
  CHECK(detected(far + Values{{"OCTET_RENDEZVOUS", "a:4000"}}).host == "a");
  CHECK(detected(far + Values{{"MASTER_ADDR", "b"}}).host == "b");
  CHECK(detected(far + Values{{"MASTER_ADDR", "b"}, {"OCTET_RENDEZVOUS", "a:4000"}}).host == "a");
  CHECK_THAT(refusal({{"OCTET_RANK", "0"}, {"OCTET_RANKS", "2"}}), contains_text("not where rank 0 listens"));
  CHECK_THAT(refusal({{"JOB_COMPLETION_INDEX", "0"}, {"OCTET_RANKS", "2"}}),
             contains_text("JOB-0.SERVICE:20480"));
  // One rank meets nobody.
  CHECK(detected({{"OCTET_RANK", "0"}, {"OCTET_RANKS", "1"}}).port == 0);
}

TEST_CASE("Open MPI's rank 0 says when it is not where mpirun runs, the others cannot know") {
  const Values first = open_mpi_far + Values{{"OMPI_COMM_WORLD_RANK", "0"}};
  CHECK_THAT(refusal(first), contains_text("rank 0 is not on the host where mpirun runs"));
  CHECK(detected(first + Values{{"OCTET_RENDEZVOUS", "a:4000"}}).host == "a");
  const Values home =
      first + Values{{"OMPI_MCA_orte_local_daemon_uri", open_mpi.at("OMPI_MCA_orte_hnp_uri")}};
  CHECK(detected(home).host == "192.0.2.2");
}

TEST_CASE("mpirun without an address of its own meets on the first node of its Slurm allocation") {
  const Values far = {{"OMPI_COMM_WORLD_RANK", "1"},       {"OMPI_COMM_WORLD_SIZE", "2"},
                      {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"},
                      {"SLURM_JOB_NODELIST", "n[3,5]"},    {"SLURMD_NODENAME", "n5"}};
  CHECK(detected(far).host == "n3");
  const Values first = far + Values{{"OMPI_COMM_WORLD_RANK", "0"}};
  CHECK_THAT(refusal(first), contains_text("not where rank 0 listens"));  // it is on n5
  CHECK(detected(first + Values{{"SLURMD_NODENAME", "n3"}}).host == "n3");
}

TEST_CASE("the job's name differs between starts, and the port follows it within the stated range") {
  const Launch launch = detected(open_mpi);
  CHECK_THAT(launch.job, contains_text("1759576065"));
  for (const auto& [name, value] : Values{{"OMPI_MCA_ess_base_jobid", "1759576066"},
                                          {"OMPI_MCA_orte_precondition_transports", "582a69ee377b549a-0"},
                                          {"PMIX_NAMESPACE", "prterun-a-77@1"}}) {
    INFO(name);
    CHECK(detected(open_mpi + Values{{name, value}}).job != launch.job);
  }
  CHECK(detected(open_mpi + Values{{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}}).job ==
        launch.job);  // another rank
  CHECK(detected(slurm + Values{{"SLURM_STEP_ID", "1"}}).job != detected(slurm).job);
  CHECK(detected(slurm + Values{{"SLURM_RESTART_COUNT", "1"}}).job != detected(slurm).job);
  CHECK(detected(torchrun + Values{{"TORCHELASTIC_RESTART_COUNT", "1"}}).job != detected(torchrun).job);
  CHECK(detected(own + Values{{"OCTET_JOB", "abd"}}).job != detected(own).job);
  CHECK(detected(own + Values{{"OCTET_RESTART", "1"}}).job != detected(own).job);
  CHECK(detected(own + Values{{"OCTET_RESTART", "1"}}).restart == 1);
  CHECK(detected(open_mpi + Values{{"OCTET_JOB", "mine"}}).job == "mine");

  std::set<int> ports;
  for (int job = 0; job < 1000; ++job) {
    const int port = derived_port(std::to_string(job));
    CHECK(port >= first_derived_port);
    CHECK(port < first_derived_port + derived_ports);
    ports.insert(port);
  }
  CHECK(first_derived_port + derived_ports <=
        30000);  // Kubernetes' node ports begin there, ephemeral ones at 32768
  // 1000 jobs over 8192 ports: 941 different ones expected, standard deviation below 8.
  CHECK(ports.size() > 900);
  CHECK(launch.port == derived_port(launch.job));
}

TEST_CASE("a listening socket is handed to rank 0 only") {
  const Values handed = own + Values{{"OCTET_RENDEZVOUS_FD", "9"}};
  CHECK(detected(handed).listener == -1);
  CHECK(detected(handed + Values{{"OCTET_RANK", "0"}}).listener == 9);
  LaunchFlags elsewhere;
  elsewhere.rendezvous = "127.0.0.1:5000";
  CHECK(detected(handed + Values{{"OCTET_RANK", "0"}}, elsewhere).listener == -1);
}

TEST_CASE("what a source leaves open comes from another that agrees with it") {
  const Values half = {{"OCTET_RANK", "5"}, {"OCTET_RANKS", "7"}};
  const Launch launch = detected(slurm + half);
  CHECK(launch.source == "OCTET_RANK");
  CHECK(launch.local_rank == 1);
  CHECK(launch.local_ranks == 2);
  CHECK(launch.host == "gpu007");
  // srun --mpi=pmi2: Slurm speaks PMI itself, and knows more.
  CHECK(detected(slurm + Values{{"PMI_RANK", "5"}, {"PMI_SIZE", "7"}, {"PMI_FD", "5"}}).source ==
        "Slurm step 1234.0");
}

TEST_CASE("the process manager of PMI is asked where rank 0 listens, unless everything is given") {
  std::vector<MeetingRequest> asked;
  const auto with_manager = [&](const Values& values) {
    Environment environment = environment_of(values);
    environment.meet = [&](const MeetingRequest& request) {
      asked.push_back(request);
      return Meeting{"kvs_1", "h0", 4711, request.rank == 0 ? 6 : -1};
    };
    return detect_launch({}, environment);
  };
  const Launch far = with_manager(mpich_far);
  REQUIRE(asked.size() == 1);
  CHECK(asked[0].socket == 8);
  CHECK_FALSE(asked[0].one_host);
  CHECK(asked[0].place);
  CHECK(far.host == "h0");
  CHECK(far.port == 4711);
  CHECK(far.job == "kvs_1");
  CHECK(far.listener == -1);
  CHECK(with_manager(mpich_far + Values{{"PMI_RANK", "0"}}).listener == 6);
  CHECK(with_manager(mpich).port == 4711);
  CHECK(asked.back().one_host);
  // A given place: only the job's name is wanted; with a name as well, nobody is asked.
  const Launch given = with_manager(mpich_far + Values{{"OCTET_RENDEZVOUS", "a:4000"}});
  CHECK_FALSE(asked.back().place);
  CHECK(given.host == "a");
  CHECK(given.job == "kvs_1");
  const size_t before = asked.size();
  CHECK(with_manager(mpich_far + Values{{"OCTET_RENDEZVOUS", "a:4000"}, {"OCTET_JOB", "j"}}).job == "j");
  CHECK(asked.size() == before);
  // A place left open, for those who only want to look.
  Environment looking = environment_of(mpich);
  looking.meet = [](const MeetingRequest&) { return Meeting{}; };
  CHECK(describe(detect_launch({}, looking)) ==
        "rank 1 of 2 (MPICH (PMI); local rank 1 of 2), rendezvous where the process manager says when "
        "training begins");
  // Nobody to ask: known on one host, an error on several.
  CHECK(detected(mpich).host == "127.0.0.1");
  CHECK_THAT(refusal(mpich_far), contains_text("OCTET_RENDEZVOUS=host:port"));
}

TEST_CASE("the built-in launcher refuses to multiply ranks that somebody has started") {
  const auto refused = [](const Values& values) {
    return error_of([&] { require_unlaunched(environment_of(values)); });
  };
  CHECK_THAT(refused(open_mpi),
             contains_text("--ranks starts processes by itself, but Open MPI says rank 2 of 4"));
  CHECK_THAT(refused(slurm), contains_text("Slurm step 1234.0"));
  CHECK(refused({}).empty());
  CHECK(refused(slurm_allocation).empty());
  CHECK(refused({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}}).empty());
}

TEST_CASE("places are host:port, and what is not says why") {
  CHECK(parse_place("node0:20480", "x").host == "node0");
  CHECK(parse_place("node0:20480", "x").port == 20480);
  CHECK(parse_place("[::1]:1", "x").host == "::1");
  for (const auto& [text, why] :
       {std::pair{"node0", "no port"}, std::pair{":1", "no host"}, std::pair{"fd00::1:1", "in brackets"},
        std::pair{"a:0", "1 to 65535"}, std::pair{"a:65536", "1 to 65535"}, std::pair{"a:b", "1 to 65535"},
        std::pair{"a b:1", "not a host name"}, std::pair{"http://a:1", "in brackets"},
        std::pair{"[]:1", "no host"}}) {
    INFO(text);
    CHECK_THAT(error_of([&, t = text] { parse_place(t, "OCTET_RENDEZVOUS"); }), contains_text(why));
  }
}

TEST_CASE("Slurm's compressed lists are read as srun writes them") {
  CHECK(slurm_first_host("n[01-03,07]") == "n01");
  CHECK(slurm_first_host("n7") == "n7");
  CHECK(slurm_first_host("login,n[1-2]") == "login");
  CHECK(slurm_first_host("rack[0-1]n[08-09]-ib,other") == "rack0n08-ib");
  CHECK(slurm_first_host("n[12,3]") == "n12");
  for (const char* bad : {"", ",a", "n[", "n[]", "n[a-b]", "n]1", "n[1-2"}) {
    INFO(bad);
    CHECK_THAT(error_of([&] { slurm_first_host(bad); }), contains_text("malformed"));
  }
  const int expected[] = {2, 2, 2, 1, 4, 4};
  for (int node = 0; node < 6; ++node) CHECK(slurm_tasks_on("2(x3),1,4(x2)", node) == expected[node]);
  CHECK_THAT(error_of([] { slurm_tasks_on("2(x3),1,4(x2)", 6); }), contains_text("no entry for node 6"));
  for (const char* bad : {"", "2(x", "2(x)", "(x2)", "a", "2(x0)", "0", "2(y3)", "2,,1"}) {
    INFO(bad);
    CHECK_THAT(error_of([&] { slurm_tasks_on(bad, 1); }), contains_text("SLURM_STEP_TASKS_PER_NODE="));
  }
}
