#include "comm/peer_watch.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"

namespace octet {
namespace {

// Only times at all: a rank that has not said goodbye has none.
void shift(std::optional<double>& time, double seconds) {
  if (time) *time += seconds;
}

}  // namespace

PeerWatch::PeerWatch(std::vector<Peer> peers, const ControlTiming& timing, double now) : timing_(timing) {
  for (Peer& peer : peers) {
    Watched& one = ranks_.emplace_back();
    one.peer = std::move(peer);
    one.heard = one.progressed = now;
  }
}

void PeerWatch::heard(int rank, const RankStatus& status, double now) {
  Watched& one = ranks_[static_cast<size_t>(rank)];
  one.heard = now;
  if (status == one.status) return;
  one.status = status;
  one.progressed = now;
}
void PeerWatch::said_goodbye(int rank, double now) { ranks_[static_cast<size_t>(rank)].goodbye = now; }
void PeerWatch::closed(int rank, double now) { ranks_[static_cast<size_t>(rank)].closed = now; }
void PeerWatch::suspected(int rank, const std::string& reason, double now) {
  Watched& one = ranks_[static_cast<size_t>(rank)];
  if (one.suspected) return;
  one.suspected = now;
  one.suspicion = reason;
}
void PeerWatch::stood_still(double seconds) {
  for (Watched& one : ranks_) {
    one.heard += seconds;
    one.progressed += seconds;
    shift(one.goodbye, seconds);
    shift(one.suspected, seconds);
  }
}

bool PeerWatch::all_said_goodbye() const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [](const Watched& one) { return one.goodbye.has_value(); });
}

std::string PeerWatch::table() const {
  constexpr size_t most = 16;
  std::string text;
  for (const Watched& one : ranks_) {
    if (static_cast<size_t>(one.peer.rank) == most)
      return text + fmt::format(", and {} more", ranks_.size() - most);
    text += fmt::format("{}rank {} step {} phase {}", text.empty() ? "" : ", ", one.peer.rank,
                        one.status.step, escape_control(one.status.phase));
    if (one.goodbye) text += " (finished)";
    if (!one.status.waits_in.empty())
      text += fmt::format(" (waits in {})", escape_control(one.status.waits_in));
  }
  return text;
}

std::optional<RunFailure> PeerWatch::judge(double now) const {
  const auto failure = [](const Watched& one, std::string reason) {
    return RunFailure{.peer = one.peer, .status = one.status, .reason = std::move(reason)};
  };
  for (const Watched& one : ranks_)
    if (one.closed && !one.goodbye) return failure(one, "was lost: its connection closed without a goodbye,");
  for (const Watched& one : ranks_)
    if (!one.closed && now - one.heard > timing_.deadline_seconds)
      return failure(one,
                     fmt::format("was lost: nothing heard from it for {},", human_duration(now - one.heard)));
  for (const Watched& one : ranks_)
    if (one.goodbye && now - *one.goodbye > timing_.deadline_seconds && others_wait(now))
      return failure(one, "left the run while others still needed it,");
  for (const Watched& one : ranks_)
    if (one.suspected && now - *one.suspected > grace())
      return failure(one, one.goodbye
                              ? fmt::format("left the run while others still needed it ({}),", one.suspicion)
                              : fmt::format("was lost: {},", one.suspicion));
  return judge_stall(now);
}

// Do all who are still there wait, and get nowhere? What was sent before a goodbye may be under way for long.
// While one does not, the others may wait for that one.
bool PeerWatch::others_wait(double now) const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [&](const Watched& other) {
                       return other.goodbye || (!other.status.waits_in.empty() &&
                                                now - other.progressed > timing_.deadline_seconds);
                     }) &&
         !all_said_goodbye();
}

std::optional<RunFailure> PeerWatch::judge_stall(double now) const {
  if (timing_.stall_seconds <= 0) return std::nullopt;
  const auto stands_still = [&](const Watched& one) { return now - one.progressed > timing_.stall_seconds; };
  const Watched* waiting = nullptr;
  for (const Watched& one : ranks_)
    if (!one.goodbye && !one.status.waits_in.empty() && stands_still(one) && waiting == nullptr)
      waiting = &one;
  if (waiting == nullptr) return std::nullopt;
  for (const Watched& one : ranks_)
    if (!one.goodbye && one.status.waits_in.empty() && stands_still(one))
      return RunFailure{.peer = one.peer,
                        .status = one.status,
                        .reason = fmt::format("hangs: no progress for {}, while rank {} waits for it in {},",
                                              human_duration(now - one.progressed), waiting->peer.rank,
                                              waiting->status.waits_in)};
  // All who are still there wait for each other: they do not call the same operations, or the network is
  // stuck.
  const bool all = std::all_of(ranks_.begin(), ranks_.end(), [&](const Watched& one) {
    return one.goodbye || (!one.status.waits_in.empty() && stands_still(one));
  });
  if (!all) return std::nullopt;
  return RunFailure{
      .peer = waiting->peer,
      .status = waiting->status,
      .reason = fmt::format("waits in {}, and so does every other rank in an operation of its own for {} "
                            "({}),",
                            waiting->status.waits_in, human_duration(now - waiting->progressed), table())};
}

}  // namespace octet
