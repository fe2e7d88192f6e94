#include "comm/launch_sources.h"

#include <fmt/format.h>

#include <charconv>

#include "base/error.h"
#include "base/text.h"

namespace octet {
namespace {

constexpr int largest = 1'000'000;

std::optional<int> whole_number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > largest) return {};
  return value;
}

Error half_said(const std::string& given, const std::string& missing, const std::string& hint) {
  return {ExitCode::Usage, fmt::format("{} is set, {} is not", given, missing), hint};
}

// What two variables say; nothing when neither is there.
struct RankOfRanks {
  std::string rank, ranks;  // names
};
std::optional<Claim> claim_of(const Variables& variables, const RankOfRanks& names, Launcher launcher,
                              const std::string& source) {
  const std::optional<int> rank = variables.number(names.rank), ranks = variables.number(names.ranks);
  if (!rank && !ranks) return {};
  const std::string hint = fmt::format("whoever starts Octet sets both; unset {}, or choose with --launcher",
                                       rank ? names.rank : names.ranks);
  if (!rank) throw half_said(names.ranks, names.rank, hint);
  if (!ranks) throw half_said(names.rank, names.ranks, hint);
  if (*rank >= *ranks)
    throw Error(ExitCode::Usage,
                fmt::format("{}={} and {}={}: ranks count from 0", names.rank, *rank, names.ranks, *ranks),
                "a rank is less than the number of ranks; see who sets these variables");
  Claim claim;
  claim.launcher = launcher;
  claim.source = source;
  claim.evidence = names.rank + " and " + names.ranks;
  claim.rank = *rank;
  claim.ranks = *ranks;
  return claim;
}

std::string joined(const Variables& variables, std::initializer_list<const char*> names) {
  std::string text;
  for (const char* name : names)
    if (const auto value = variables.text(name)) text += (text.empty() ? "" : " ") + *value;
  return text;
}

std::optional<Claim> octet_claim(const Variables& variables) {
  // OCTET_RANKS alone is the size of a Kubernetes Job, or a half-said place in a job (detect_launch decides).
  if (!variables.number("OCTET_RANK")) return {};
  auto claim = claim_of(variables, {"OCTET_RANK", "OCTET_RANKS"}, Launcher::Octet, "OCTET_RANK");
  claim->one_rank_a_host = true;
  claim->listener = variables.number("OCTET_RENDEZVOUS_FD").value_or(-1);
  return claim;
}

// "1759576064.0;tcp://192.0.2.2:33793;tcp6://[fd00::2]:50283" -> "192.0.2.2"; an address may be a list.
std::string address_in_uri(const std::string& uri) {
  const size_t scheme = uri.find("tcp://");
  if (scheme == std::string::npos) return {};
  const std::string rest = uri.substr(scheme + 6);
  return rest.substr(0, rest.find_first_of(",:;"));
}

std::optional<Claim> open_mpi_claim(const Variables& variables) {
  auto claim =
      claim_of(variables, {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}, Launcher::Mpi, "Open MPI");
  if (!claim) return {};
  claim->local_rank = variables.number("OMPI_COMM_WORLD_LOCAL_RANK");
  claim->local_ranks = variables.number("OMPI_COMM_WORLD_LOCAL_SIZE");
  // The second and third differ from start to start, the last is random.
  claim->job = joined(variables,
                      {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_precondition_transports"});
  // Open MPI 4 names the address of mpirun itself. With its default mapping rank 0 runs there too, unless
  // mpirun was started outside the hosts it uses; rank 0 can tell.
  const auto head = variables.text("OMPI_MCA_orte_hnp_uri"),
             daemon = variables.text("OMPI_MCA_orte_local_daemon_uri");
  if (head) claim->host = address_in_uri(*head);
  if (claim->rank == 0 && head && daemon && *head != *daemon)
    claim->no_place = "rank 0 is not on the host where mpirun runs";
  return claim;
}

std::optional<Claim> pmi_claim(const Variables& variables) {
  const bool pals = !variables.text("PMI_RANK") && variables.text("PALS_RANKID");
  auto claim =
      claim_of(variables, {pals ? "PALS_RANKID" : "PMI_RANK", "PMI_SIZE"}, Launcher::Mpi, "MPICH (PMI)");
  if (!claim) return {};
  const auto first_of = [&](std::initializer_list<const char*> names) {
    std::optional<int> found;
    for (const char* name : names)
      if (!found) found = variables.number(name);
    return found;
  };
  claim->local_rank = first_of({"MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID"});
  claim->local_ranks = first_of({"MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE"});
  if (const auto application = variables.text("PALS_APID")) {
    claim->source = "PALS";
    claim->job = *application;
  }
  claim->socket = variables.number("PMI_FD").value_or(-1);
  return claim;
}

std::optional<Claim> mvapich_claim(const Variables& variables) {
  auto claim = claim_of(variables, {"MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"}, Launcher::Mpi, "MVAPICH");
  if (!claim) return {};
  claim->local_rank = variables.number("MV2_COMM_WORLD_LOCAL_RANK");
  claim->local_ranks = variables.number("MV2_COMM_WORLD_LOCAL_SIZE");
  return claim;
}

// A step that srun started. The shells of sbatch and salloc have SLURM_PROCID too, but no step, or one of the
// numbers Slurm keeps for itself (0xfffffff0 and above: batch, interactive, extern).
std::optional<std::string> slurm_step(const Variables& variables) {
  const auto step = variables.text("SLURM_STEP_ID");
  if (!step || !variables.text("SLURM_PROCID")) return {};
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(step->data(), step->data() + step->size(), value);
  if (error != std::errc() || end != step->data() + step->size() || value >= 0xfffffff0u) return {};
  return step;
}

std::optional<Claim> slurm_claim(const Variables& variables) {
  const auto step = slurm_step(variables);
  if (!step) return {};
  const char* size = variables.text("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
  auto claim = claim_of(variables, {"SLURM_PROCID", size}, Launcher::Slurm, "");
  const std::string job = variables.text("SLURM_JOB_ID").value_or("?");
  claim->source = fmt::format("Slurm step {}.{}", escape_control(job), *step);
  claim->job = fmt::format("{}.{} {}", job, *step, joined(variables, {"SLURM_RESTART_COUNT"}));
  claim->local_rank = variables.number("SLURM_LOCALID");
  const auto per_node = variables.text("SLURM_STEP_TASKS_PER_NODE");
  const auto node = variables.number("SLURM_NODEID");
  if (per_node && node)
    claim->local_ranks = slurm_tasks_on(*per_node, *node);
  else if (variables.number("SLURM_STEP_NUM_NODES") == 1)
    claim->local_ranks = claim->ranks;
  // Task 0 is on the first node of the step's list (SLURM_LAUNCH_NODE_IPADDR is where srun was typed).
  for (const char* name : {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"})
    if (const auto list = variables.text(name); list && claim->host.empty())
      claim->host = slurm_first_host(*list);
  return claim;
}

std::optional<Claim> flux_claim(const Variables& variables) {
  if (!variables.text("FLUX_TASK_RANK")) return {};
  auto claim = claim_of(variables, {"FLUX_TASK_RANK", "FLUX_JOB_SIZE"}, Launcher::Flux, "Flux");
  claim->job = joined(variables, {"FLUX_JOB_ID"});
  claim->local_rank = variables.number("FLUX_TASK_LOCAL_ID");
  // Flux does not say how many tasks are on this node; spread evenly they divide.
  const int nodes = variables.number("FLUX_JOB_NNODES").value_or(0);
  if (nodes > 0 && claim->ranks % nodes == 0) claim->local_ranks = claim->ranks / nodes;
  if (variables.number("PMI_RANK") == claim->rank) claim->socket = variables.number("PMI_FD").value_or(-1);
  return claim;
}

std::optional<Claim> torchrun_claim(const Variables& variables) {
  // Generic names: one of them alone says nothing.
  if (!variables.text("RANK") || !variables.text("WORLD_SIZE")) return {};
  auto claim = claim_of(variables, {"RANK", "WORLD_SIZE"}, Launcher::Environment, "RANK and WORLD_SIZE");
  claim->local_rank = variables.number("LOCAL_RANK");
  claim->local_ranks = variables.number("LOCAL_WORLD_SIZE");
  if (!claim->local_rank) {
    // Kubeflow and its like: RANK and WORLD_SIZE count pods.
    claim->source = "RANK and WORLD_SIZE, taken as one rank a node: there is no LOCAL_RANK";
    claim->local_rank = 0;
    claim->local_ranks = 1;
  }
  claim->job = joined(variables, {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT"});
  claim->host = variables.text("MASTER_ADDR").value_or("");
  // Kubeflow tells the first pod "localhost" and the others its name: they come from elsewhere.
  if (claim->local_ranks == 1 && claim->ranks > 1 && claim->rank == 0 && is_loopback(claim->host))
    claim->host = "0.0.0.0";
  // torchrun's own agent listens on MASTER_PORT when its workers are to use the agent's store.
  const auto agent = variables.text("TORCHELASTIC_USE_AGENT_STORE");
  if (!agent || *agent == "False") claim->port = variables.number("MASTER_PORT").value_or(0);
  return claim;
}

std::optional<Claim> kubernetes_claim(const Variables& variables) {
  // An index without a size is a Job of independent runs.
  if (!variables.text("JOB_COMPLETION_INDEX") || !variables.text("OCTET_RANKS") ||
      variables.text("OCTET_RANK"))
    return {};
  auto claim = claim_of(variables, {"JOB_COMPLETION_INDEX", "OCTET_RANKS"}, Launcher::Environment,
                        "Kubernetes indexed Job");
  claim->one_rank_a_host = true;
  return claim;
}

}  // namespace

std::optional<std::string> Variables::text(const std::string& name) const {
  std::optional<std::string> value = environment_.variable ? environment_.variable(name) : std::nullopt;
  if (value && value->empty()) value.reset();
  return value;
}

std::optional<int> Variables::number(const std::string& name) const {
  const std::optional<std::string> value = text(name);
  if (!value) return {};
  const std::optional<int> parsed = whole_number(*value);
  if (!parsed)
    throw Error(
        ExitCode::Usage,
        fmt::format("{}={} is not a whole number from 0 to {}", name, escape_control(*value), largest),
        fmt::format("correct or unset {}, or choose who is believed with --launcher", name));
  return parsed;
}

MeetingPlace parse_place(const std::string& text, const std::string& origin) {
  const auto wrong = [&](const char* why) {
    return Error(ExitCode::Usage, fmt::format("{} {}: {}", origin, escape_control(text), why),
                 "give the host of rank 0 and a free port there: node0:20480, or [fd00::1]:20480");
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) throw wrong("no port");
  MeetingPlace place{text.substr(0, colon), 0};
  if (place.host.size() > 1 && place.host.front() == '[' && place.host.back() == ']')
    place.host = place.host.substr(1, place.host.size() - 2);
  else if (place.host.find_first_of(":[]") != std::string::npos)
    throw wrong("an IPv6 address goes in brackets");
  if (place.host.empty()) throw wrong("no host");
  if (place.host.find_first_of(" \t/") != std::string::npos || escape_control(place.host) != place.host)
    throw wrong("not a host name");
  const std::optional<int> port = whole_number(std::string_view(text).substr(colon + 1));
  if (!port || *port < 1 || *port > 65535) throw wrong("the port is not a number from 1 to 65535");
  place.port = *port;
  return place;
}

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0;
}

std::vector<Claim> claims_of(const Variables& variables, std::optional<Launcher> only) {
  struct Source {
    Launcher launcher;
    std::optional<Claim> (*read)(const Variables&);
  };
  constexpr Source sources[] = {{Launcher::Octet, octet_claim},
                                {Launcher::Mpi, open_mpi_claim},
                                {Launcher::Mpi, pmi_claim},
                                {Launcher::Mpi, mvapich_claim},
                                {Launcher::Slurm, slurm_claim},
                                {Launcher::Flux, flux_claim},
                                {Launcher::Environment, torchrun_claim},
                                {Launcher::Environment, kubernetes_claim}};
  std::vector<Claim> claims;
  for (const Source& source : sources)
    if (!only || *only == source.launcher)
      if (auto claim = source.read(variables)) claims.push_back(std::move(*claim));
  return claims;
}

int slurm_tasks_on(const std::string& list, int node) {
  const auto wrong = [&](const std::string& why) {
    return Error(ExitCode::Usage, fmt::format("SLURM_STEP_TASKS_PER_NODE={}: {}", escape_control(list), why),
                 "start Octet with srun itself, or set OCTET_LOCAL_RANKS to the tasks of this node");
  };
  std::string_view rest = list;
  for (int64_t first = 0; !rest.empty();) {
    const size_t comma = rest.find(',');
    std::string_view entry = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    int nodes = 1;
    if (const size_t times = entry.find("(x"); times != std::string_view::npos) {
      if (entry.back() != ')') throw wrong("not of the form 2(x3),1");
      const auto count = whole_number(entry.substr(times + 2, entry.size() - times - 3));
      if (!count || *count < 1) throw wrong("not of the form 2(x3),1");
      nodes = *count;
      entry = entry.substr(0, times);
    }
    const auto tasks = whole_number(entry);
    if (!tasks || *tasks < 1) throw wrong("not of the form 2(x3),1");
    first += nodes;
    if (node < first) return *tasks;
  }
  throw wrong(fmt::format("no entry for node {} (SLURM_NODEID)", node));
}

std::string slurm_first_host(const std::string& list) {
  const auto malformed = [&] {
    return Error(ExitCode::Usage, fmt::format("the Slurm node list {} is malformed", escape_control(list)),
                 "set OCTET_RENDEZVOUS to a host and port of rank 0: OCTET_RENDEZVOUS=node0:20480");
  };
  std::string host;
  for (size_t at = 0; at < list.size() && list[at] != ','; ++at) {
    if (list[at] == ']') throw malformed();
    if (list[at] != '[') {
      host += list[at];
      continue;
    }
    const size_t end = list.find(']', at);
    if (end == std::string::npos) throw malformed();
    const std::string range = list.substr(at + 1, end - at - 1);
    const std::string low = range.substr(0, range.find_first_of("-,"));
    if (low.empty() || low.find_first_not_of("0123456789") != std::string::npos) throw malformed();
    host += low;
    at = end;
  }
  if (host.empty()) throw malformed();
  return host;
}

std::optional<std::string> forgotten_srun(const Variables& variables) {
  if (!variables.text("SLURM_JOB_ID") || slurm_step(variables)) return {};
  for (const char* name : {"SLURM_NTASKS", "SLURM_NPROCS"})
    if (const auto tasks = variables.number(name); tasks && *tasks > 1)
      return fmt::format("this is one process of no Slurm step, in an allocation of {} tasks ({})", *tasks,
                         name);
  return {};
}

}  // namespace octet
