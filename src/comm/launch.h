// Who am I: this process's place among the ranks of a run.
#pragma once
#include <functional>
#include <optional>
#include <string>

namespace octet {

struct Launch {
  int rank = 0, ranks = 1;
  int local_rank = 0, local_ranks = 1;  // among the ranks of this host
  std::string source = "single process";  // who said so: "Open MPI", "Slurm step 12.0", "flags", ...
  std::string host = "127.0.0.1";         // where rank 0 listens
  int port = 0;                           // 0: only one rank
  std::string job;                        // equal for the ranks of one start of one job, different otherwise
};

}  // namespace octet
