// What each launcher says in the environment, read and checked, not yet chosen from.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/launch.h"

namespace octet {

enum class Launcher : uint8_t { Octet, Mpi, Slurm, Flux, Environment };

// One source's answer.
struct Claim {
  Launcher launcher = Launcher::Environment;
  std::string source;    // "Open MPI"
  std::string evidence;  // the variables it was read from: "OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE"
  int rank = 0, ranks = 1;
  std::optional<int> local_rank = {}, local_ranks = {};
  bool one_rank_a_host = false;  // unless somebody says how many there are here
  std::string job = {};          // empty: it does not say
  std::string host = {};         // of rank 0; empty: it does not say
  int port = 0;                  // 0: derived from the job
  std::string no_place = {};     // why this very rank cannot go by `host`; empty: it can
  int socket = -1;               // PMI_FD
  int listener = -1;
};

// Environment variables, strictly read. A variable that is set to nothing counts as not set.
class Variables {
 public:
  explicit Variables(const Environment& environment) : environment_(environment) {}
  std::optional<std::string> text(const std::string& name) const;
  // A whole number from 0 to a million; Error(Usage) for anything else.
  std::optional<int> number(const std::string& name) const;

 private:
  const Environment& environment_;
};

// "host:port" or "[address]:port"; Error(Usage) names `origin`.
struct MeetingPlace {
  std::string host;
  int port = 0;
};
MeetingPlace parse_place(const std::string& text, const std::string& origin);
bool is_loopback(const std::string& host);  // localhost, 127.x.y.z, ::1

// Everything that is claimed, in the order of belief; of one launcher only when it is named. Error(Usage) for
// what is half said.
std::vector<Claim> claims_of(const Variables& variables, std::optional<Launcher> only = {});

// "2(x3),1": tasks of each node of a Slurm step; the entry of `node`. Error(Usage) when it has none.
int slurm_tasks_on(const std::string& list, int node);
// "n[01-03,07],m1": the first host of a Slurm node list ("n01"). Error(Usage) when it is malformed.
std::string slurm_first_host(const std::string& list);
// Why this process looks like one that srun should have started: an allocation of several tasks, but no step.
std::optional<std::string> forgotten_srun(const Variables& variables);

}  // namespace octet
