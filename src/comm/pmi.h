// The wire protocol of PMI-1, by which a process that MPICH's Hydra or Flux has started talks to its process
// manager over an inherited socket (PMI_FD): lines of key=value [Flux RFC 13, "Simple Process Manager
// Interface v1"; checked against Hydra 4.0]. A process manager answers once per start: it hangs up
// afterwards.
#pragma once
#include <optional>
#include <string>

namespace octet {

struct PmiRequest {
  int socket = -1;
  std::optional<std::string> offer;  // rank 0: what the others are told
  bool exchange = true;              // false: only the job's name is asked for
  double timeout_seconds = 60;       // for each answer; all ranks have to come for the last one
};
struct PmiAnswer {
  std::string job;      // equal for all ranks, different for each start
  std::string offered;  // what rank 0 offered; empty without an exchange
};
// Error(Usage) when the process manager does not answer, hangs up, or does not speak PMI-1.
PmiAnswer ask_process_manager(const PmiRequest& request);

}  // namespace octet
