// Who am I: this process's place among the ranks of a run.
//
// mpirun, srun and their kin only start processes; what they say about themselves is in the environment.
// Octet reads that and links none of their libraries. Names and meanings of the variables: Open MPI 4 and 5
// manual
// ("Environment variables set for MPI applications"), Slurm's srun(1), Flux's flux-environment(7), PyTorch's
// torchrun, Kubernetes' indexed Jobs; MPICH's and Open MPI 4's as observed.
#pragma once
#include <functional>
#include <optional>
#include <string>

namespace octet {

struct Launch {
  int rank = 0, ranks = 1;
  int local_rank = 0, local_ranks = 1;    // among the ranks of this host
  std::string source = "single process";  // who said so: "Open MPI", "Slurm step 12.0", "flags", ...
  std::string host = "127.0.0.1";         // where rank 0 listens
  int port = 0;                           // 0: only one rank, or nobody was asked (Environment::meet)
  std::string job;                        // equal for the ranks of one start of one job, different otherwise
  // Rank 0 only: a socket that listens on `port` already, whose owner this process now is; -1: make one.
  int listener = -1;
  int restart = 0;  // how often the built-in launcher has started this job before
};

// What the command line says. Rank and ranks come together; the others complete or correct any source.
struct LaunchFlags {
  std::optional<int> rank, ranks, local_rank, local_ranks;
  std::optional<std::string> rendezvous;  // "host:port" of rank 0
  std::string launcher = "auto";          // auto, octet, mpi, slurm, flux, env, single: whom to believe
};

// A meeting arranged by the process manager that started the ranks: rank 0 tells the others where it listens.
struct MeetingRequest {
  int socket = -1;  // PMI_FD
  int rank = 0;
  bool one_host = false;  // all ranks are on this host
  bool place = true;      // false: only the job's name is asked for
};
struct Meeting {
  std::string job, host;
  int port = 0, listener = -1;
};

// What detection may know of this process.
struct Environment {
  std::function<std::optional<std::string>(const std::string& name)> variable;
  // Empty: there is nobody to ask. It may leave the place open (port 0).
  std::function<Meeting(const MeetingRequest&)> meet;
};
Environment process_environment();  // variables and process manager of this process

// The first of: flags, OCTET_*, Open MPI, MPICH and its kin (PMI), MVAPICH, Slurm step, Flux, torchrun-style
// variables, Kubernetes' indexed Job; else a single process. Error(Usage) when sources disagree, when one is
// incomplete, and when nobody says where ranks on several hosts meet; its hint names the flag or variable.
Launch detect_launch(const LaunchFlags& flags, const Environment& environment);

// Error(Usage) when some launcher has started this process as one of several ranks already: the built-in one
// must not multiply them.
void require_unlaunched(const Environment& environment);

// "rank 1 of 4 (Open MPI; local rank 1 of 4), rendezvous at node0:20481"; one line, nothing secret.
std::string describe(const Launch& launch);

// Where a job meets when nobody says which port: below the ephemeral ports, off those in common use.
inline constexpr int first_derived_port = 20480, derived_ports = 8192;
int derived_port(const std::string& job);

}  // namespace octet
