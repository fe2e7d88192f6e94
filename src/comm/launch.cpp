#include "comm/launch.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/hash.h"
#include "base/text.h"
#include "comm/launch_sources.h"

namespace octet {
namespace {

const std::vector<std::string> launcher_names = {"auto", "octet", "mpi", "slurm", "flux", "env", "single"};

const char* name_of(Launcher launcher) {
  switch (launcher) {
    case Launcher::Octet:
      return "octet";
    case Launcher::Mpi:
      return "mpi";
    case Launcher::Slurm:
      return "slurm";
    case Launcher::Flux:
      return "flux";
    case Launcher::Environment:
      return "env";
  }
  return "auto";
}

const char* expected_variables(const std::string& launcher) {
  if (launcher == "octet") return "OCTET_RANK and OCTET_RANKS";
  if (launcher == "mpi")
    return "the variables of mpirun (OMPI_COMM_WORLD_RANK, PMI_RANK, MV2_COMM_WORLD_RANK)";
  if (launcher == "slurm") return "SLURM_STEP_ID and SLURM_PROCID of a step that srun started";
  if (launcher == "flux") return "FLUX_TASK_RANK";
  return "RANK and WORLD_SIZE, or JOB_COMPLETION_INDEX and OCTET_RANKS,";
}

std::string says(const Claim& claim) {
  return fmt::format("{} says rank {} of {} ({})", claim.source, claim.rank, claim.ranks, claim.evidence);
}

bool agree(const Claim& a, const Claim& b) { return a.rank == b.rank && a.ranks == b.ranks; }

// Two answers to the same question. One rank is what the one process around a nested launcher has, and is no
// contradiction; but the inner one must not be the smaller.
bool contradict(const Claim& chosen, const Claim& other) {
  if (agree(chosen, other) || other.ranks == 1) return false;
  // mpirun starts its daemons on the other nodes of an allocation as a step of their own.
  const bool daemons =
      chosen.launcher == Launcher::Mpi && chosen.ranks > 1 && other.launcher == Launcher::Slurm;
  return !daemons;
}

void require_agreement(const Claim& chosen, const std::vector<Claim>& claims) {
  for (const Claim& other : claims) {
    if (!contradict(chosen, other)) continue;
    const std::string alone = chosen.ranks == 1 ? ", or --launcher single for a run of its own" : "";
    if (chosen.launcher == other.launcher)
      throw Error(ExitCode::Usage, fmt::format("{}, but {}", says(chosen), says(other)),
                  fmt::format("unset the variables of the one that did not start this process{}", alone));
    throw Error(ExitCode::Usage, fmt::format("{}, but {}", says(chosen), says(other)),
                fmt::format("choose: --launcher {} or --launcher {}{}", name_of(chosen.launcher),
                            name_of(other.launcher), alone));
  }
}

Claim flags_claim(const LaunchFlags& flags) {
  if (!flags.rank || !flags.ranks)
    throw Error(ExitCode::Usage, flags.rank ? "--rank without --world-size" : "--world-size without --rank",
                "give both, or neither: octet train CONFIG --ranks N starts N processes by itself");
  if (*flags.rank < 0 || *flags.rank >= *flags.ranks)
    throw Error(ExitCode::Usage, fmt::format("--rank {} of --world-size {}", *flags.rank, *flags.ranks),
                "ranks count from 0 to the world size minus one");
  Claim claim;
  claim.launcher = Launcher::Octet;
  claim.source = "flags";
  claim.evidence = "--rank and --world-size";
  claim.rank = *flags.rank;
  claim.ranks = *flags.ranks;
  claim.one_rank_a_host = true;
  return claim;
}

// What nobody completes: somebody was to start several processes and did not say which one this is.
void require_nothing_half_said(const Variables& variables) {
  for (const auto& [size, rank] : {std::pair{"OCTET_RANKS", "OCTET_RANK"}, std::pair{"WORLD_SIZE", "RANK"}})
    if (const auto ranks = variables.number(size); ranks && *ranks > 1 && !variables.text(rank))
      throw Error(ExitCode::Usage, fmt::format("{}={}, but {} is not set", size, *ranks, rank),
                  fmt::format("set {} in each process, unset {}, or say --launcher single", rank, size));
  if (const auto why = forgotten_srun(variables))
    throw Error(
        ExitCode::Usage, *why,
        "start the ranks with srun octet train ..., with --ranks N on one node, or say --launcher single");
}

// The claims to choose among. Whoever is told whom to believe reads nothing else.
std::vector<Claim> claims_for(const LaunchFlags& flags, const Variables& variables) {
  if (flags.rank || flags.ranks) {
    if (flags.launcher != "auto")
      throw Error(ExitCode::Usage, fmt::format("--rank and --launcher {}", flags.launcher),
                  "--rank and --world-size are an answer of their own: leave --launcher out");
    return {flags_claim(flags)};
  }
  if (flags.launcher == "auto") return claims_of(variables);
  for (const Launcher launcher :
       {Launcher::Octet, Launcher::Mpi, Launcher::Slurm, Launcher::Flux, Launcher::Environment}) {
    if (flags.launcher != name_of(launcher)) continue;
    if (auto claims = claims_of(variables, launcher); !claims.empty()) return claims;
  }
  throw Error(
      ExitCode::Usage,
      fmt::format("--launcher {}: {} are not set", flags.launcher, expected_variables(flags.launcher)),
      "start Octet with that launcher, or leave --launcher out");
}

std::optional<Claim> choose(const Variables& variables, const std::vector<Claim>& claims) {
  if (claims.empty()) {
    require_nothing_half_said(variables);
    return {};
  }
  const Claim& chosen = claims.front();
  require_agreement(chosen, claims);
  // srun --mpi=pmi2 and Flux speak PMI themselves; they know more than it says.
  if (chosen.source == "MPICH (PMI)")
    for (const Claim& other : claims)
      if ((other.launcher == Launcher::Slurm || other.launcher == Launcher::Flux) && agree(chosen, other))
        return other;
  return chosen;
}

// What the chosen source leaves open, from the others that give this process the same place.
void complete(Claim& chosen, const std::vector<Claim>& claims) {
  for (const Claim& other : claims) {
    if (!agree(chosen, other)) continue;
    if (!chosen.local_rank && !chosen.local_ranks) {
      chosen.local_rank = other.local_rank;
      chosen.local_ranks = other.local_ranks;
    }
    if (chosen.job.empty()) chosen.job = other.job;
    if (chosen.host.empty()) {
      chosen.host = other.host;
      chosen.port = other.port;
      chosen.no_place = other.no_place;
    }
  }
}

struct Given {  // what overrides any source
  std::optional<int> local_rank, local_ranks;
  std::optional<MeetingPlace> place;
  bool by_flag = false;  // the place
};

Given given_by(const LaunchFlags& flags, const Variables& variables) {
  Given given;
  given.local_rank = flags.local_rank ? flags.local_rank : variables.number("OCTET_LOCAL_RANK");
  given.local_ranks = flags.local_ranks ? flags.local_ranks : variables.number("OCTET_LOCAL_RANKS");
  given.by_flag = flags.rendezvous.has_value();
  if (given.by_flag)
    given.place = parse_place(*flags.rendezvous, "--rendezvous");
  else if (const auto place = variables.text("OCTET_RENDEZVOUS"))
    given.place = parse_place(*place, "OCTET_RENDEZVOUS");
  return given;
}

void place_on_host(Launch& launch, const Claim& claim, const Given& given) {
  std::optional<int> rank = given.local_rank ? given.local_rank : claim.local_rank;
  std::optional<int> ranks = given.local_ranks ? given.local_ranks : claim.local_ranks;
  const std::string meets = given.place ? given.place->host : claim.host;
  if (!rank && !ranks) {
    if (launch.ranks == 1 || is_loopback(meets)) {
      rank = launch.rank;
      ranks = launch.ranks;
    } else if (claim.one_rank_a_host) {
      rank = 0;
      ranks = 1;
    }
  } else if (!ranks && (launch.ranks == 1 || is_loopback(meets))) {
    ranks = launch.ranks;
  }
  if (!rank || !ranks)
    throw Error(ExitCode::Usage,
                fmt::format("{}, but not {}", says(claim),
                            rank ? "how many ranks this host has" : "which rank of this host it is"),
                rank ? "set OCTET_LOCAL_RANKS (or LOCAL_WORLD_SIZE) in each process"
                     : "set OCTET_LOCAL_RANK and OCTET_LOCAL_RANKS in each process");
  if (*rank < 0 || *rank >= *ranks || *ranks > launch.ranks)
    throw Error(ExitCode::Usage,
                fmt::format("local rank {} of {}, in a job of {} ranks", *rank, *ranks, launch.ranks),
                "local ranks count from 0 on each host; see who sets them (--local-rank, OCTET_LOCAL_RANK, "
                "OCTET_LOCAL_RANKS)");
  launch.local_rank = *rank;
  launch.local_ranks = *ranks;
}

Error no_meeting_place(const Claim& claim) {
  const std::string why = claim.no_place.empty() ? "not where rank 0 listens" : claim.no_place;
  return {
      ExitCode::Usage, fmt::format("{}, but {}", says(claim), why),
      claim.source == "Kubernetes indexed Job"
          ? "set OCTET_RENDEZVOUS=JOB-0.SERVICE:20480 with the Job's and its headless Service's name"
          : "set OCTET_RENDEZVOUS=host:port (--rendezvous) in every process: the host of rank 0, and a port "
            "that is free there"};
}

// mpirun inside a Slurm allocation puts rank 0 on the first node of it, unless told otherwise; rank 0 can
// tell.
std::optional<std::string> first_node_of_allocation(const Claim& claim, const Variables& variables) {
  const auto list = variables.text("SLURM_JOB_NODELIST");
  if (claim.launcher != Launcher::Mpi || !list || !claim.no_place.empty()) return {};
  const std::string first = slurm_first_host(*list);
  if (claim.rank == 0 && variables.text("SLURMD_NODENAME") != first) return {};
  return first;
}

void find_meeting_place(Launch& launch, const Claim& claim, const Given& given,
                        const Environment& environment) {
  const Variables variables(environment);
  const auto go_to = [&](const std::string& host, int port) {
    launch.host = host;
    launch.port = port > 0 ? port : derived_port(launch.job);
  };
  const bool one_host = launch.local_ranks == launch.ranks;
  const std::optional<std::string> job = variables.text("OCTET_JOB");
  if (claim.socket >= 0 && environment.meet && !(given.place && job)) {
    const Meeting meeting = environment.meet({claim.socket, launch.rank, one_host, !given.place});
    if (launch.job.empty()) launch.job = meeting.job;
    if (!given.place) {
      launch.host = meeting.host;
      launch.port = meeting.port;
      launch.listener = meeting.listener;
      return;
    }
  }
  if (given.place) {
    go_to(given.place->host, given.place->port);
    if (launch.rank == 0 && !given.by_flag) launch.listener = claim.listener;
  } else if (one_host) {
    go_to(claim.port > 0 && is_loopback(claim.host) ? claim.host : "127.0.0.1", claim.port);
  } else if (!claim.host.empty() && claim.no_place.empty()) {
    go_to(claim.host, claim.port);
  } else if (const auto address = variables.text("MASTER_ADDR"); address && claim.no_place.empty()) {
    go_to(*address, variables.number("MASTER_PORT").value_or(0));
  } else if (const auto host = first_node_of_allocation(claim, variables)) {
    go_to(*host, 0);
  } else {
    throw no_meeting_place(claim);
  }
}

}  // namespace

int derived_port(const std::string& job) {
  return first_derived_port + static_cast<int>(hash64(job.data(), job.size()) % derived_ports);
}

Launch detect_launch(const LaunchFlags& flags, const Environment& environment) {
  if (std::find(launcher_names.begin(), launcher_names.end(), flags.launcher) == launcher_names.end()) {
    const std::string near = nearest(flags.launcher, launcher_names);
    throw Error(ExitCode::Usage, fmt::format("--launcher {}: unknown", escape_control(flags.launcher)),
                near.empty() ? fmt::format("one of {}", fmt::join(launcher_names, ", "))
                             : fmt::format("did you mean --launcher {}?", near));
  }
  Launch launch;
  if (flags.launcher == "single" && !flags.rank && !flags.ranks) return launch;
  const Variables variables(environment);
  const std::vector<Claim> claims = claims_for(flags, variables);
  std::optional<Claim> chosen = choose(variables, claims);
  if (!chosen) return launch;
  const bool asked = flags.launcher != "auto" || flags.rank;
  if (const auto ranks = variables.number("OCTET_RANKS"); !asked && ranks && *ranks != chosen->ranks)
    throw Error(ExitCode::Usage, fmt::format("{}, but OCTET_RANKS={}", says(*chosen), *ranks),
                "unset OCTET_RANKS, or choose with --launcher");
  complete(*chosen, claims);
  const Given given = given_by(flags, variables);
  launch.rank = chosen->rank;
  launch.ranks = chosen->ranks;
  launch.source = chosen->source;
  launch.restart = variables.number("OCTET_RESTART").value_or(0);
  place_on_host(launch, *chosen, given);
  if (launch.ranks == 1) return launch;
  launch.job = variables.text("OCTET_JOB").value_or(chosen->job);
  find_meeting_place(launch, *chosen, given, environment);
  if (launch.job.empty()) launch.job = fmt::format("{}:{}", launch.host, launch.port);
  if (launch.restart > 0) launch.job += fmt::format(" restart {}", launch.restart);
  return launch;
}

void require_unlaunched(const Environment& environment) {
  for (const Claim& claim : claims_of(Variables(environment)))
    if (claim.ranks > 1)
      throw Error(
          ExitCode::Usage, fmt::format("--ranks starts processes by itself, but {}", says(claim)),
          fmt::format("leave --ranks out: {} has started {} ranks already", claim.source, claim.ranks));
}

std::string describe(const Launch& launch) {
  if (launch.ranks == 1)
    return launch.source == "single process" ? launch.source : fmt::format("one rank ({})", launch.source);
  std::string place = launch.host.find(':') == std::string::npos ? launch.host : "[" + launch.host + "]";
  const std::string who = fmt::format("rank {} of {} ({}; local rank {} of {})", launch.rank, launch.ranks,
                                      launch.source, launch.local_rank, launch.local_ranks);
  if (launch.port == 0) return who + ", rendezvous where the process manager says when training begins";
  return fmt::format("{}, rendezvous at {}:{}", who, escape_control(place), launch.port);
}

}  // namespace octet
