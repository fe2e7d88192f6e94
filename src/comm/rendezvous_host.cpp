// Rank 0's half of the rendezvous.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "comm/authentication.h"
#include "comm/rendezvous.h"

namespace octet {
namespace {

constexpr size_t most_strangers = 4096;

struct Stranger {
  Socket socket;
  FrameParser parser;
  std::string nonce;
  double since = 0;
};

struct Joined {
  PeerLink link;
  Hello hello;
};

std::vector<Socket> listen_for_ranks(const Launch& launch) {
  if (launch.listener >= 0) {
    std::vector<Socket> inherited;
    inherited.emplace_back(launch.listener);
    adopt(inherited[0]);
    return inherited;
  }
  // An earlier start of the job may still be leaving.
  const double give_up = monotonic_seconds() + 10;
  const std::string endpoint = endpoint_text(launch.host, launch.port);
  const std::string hint = "choose another port for the rendezvous, or end the program that has this one";
  for (bool elsewhere = false;;) {
    std::string problem;
    std::vector<SocketAddress> addresses = resolve(launch.host, launch.port, problem);
    if (elsewhere)
      for (SocketAddress& address : addresses) address = address.any();
    std::vector<Socket> listeners;
    int error = 0;
    for (const SocketAddress& address : addresses) {
      SocketAttempt attempt = listen_at(address);
      if (attempt.socket.open()) listeners.push_back(std::move(attempt.socket));
      // A second name of the same address is no second socket; one that this machine lacks is none either.
      else if (attempt.error != EADDRINUSE || listeners.empty())
        error = error == EADDRINUSE ? error : attempt.error;
    }
    if (!listeners.empty()) return listeners;
    if (error == EADDRNOTAVAIL && !elsewhere) {
      // The ranks may reach this machine by an address that it does not know of.
      log_warning(
          "{} is no address of this machine: rank 0 listens for the other ranks on all of its addresses",
          escape_control(launch.host));
      elsewhere = true;
      continue;
    }
    if (addresses.empty() || error == EADDRINUSE) {
      if (monotonic_seconds() < give_up) {
        poll(nullptr, 0, 200);
        continue;
      }
      if (addresses.empty())
        throw Error(ExitCode::Usage, fmt::format("rank 0 cannot listen at {}: {}", endpoint, problem),
                    "name rank 0's host as the other ranks can reach it, or by its address");
      throw Error(ExitCode::Usage,
                  fmt::format("port {} of {} is in use by another program", launch.port, launch.host), hint);
    }
    throw Error(ExitCode::Usage, fmt::format("rank 0 cannot listen at {}: {}", endpoint, strerror(error)),
                hint);
  }
}

class RendezvousHost {
 public:
  RendezvousHost(const Launch& launch, const Agreement& agreement, const RendezvousOptions& options)
      : launch_(launch),
        options_(options),
        key_(job_key(launch.job, options.secret)),
        listeners_(listen_for_ranks(launch)),
        joined_(static_cast<size_t>(launch.ranks)),
        last_seen_(joined_.size()) {
    own_.rank = 0;
    own_.ranks = static_cast<uint32_t>(launch.ranks);
    own_.agreement = agreement;
    self_ = this_process(0, options.host);
  }

  Rendezvous run() {
    const double began = monotonic_seconds();
    deadline_ = began + options_.seconds;
    double next_report = began + options_.report_seconds, next_notice = began + 1;
    while (true) {
      if (!refusal_ && missing().empty()) check_agreement();
      if (!refusal_ && missing().empty()) return welcome();
      if (refusal_ && (monotonic_seconds() >= deadline_ || all_told())) throw Error(*refusal_);
      wait(std::min({deadline_, next_report, next_notice}));
      const double now = monotonic_seconds();
      if (!refusal_ && now >= deadline_) give_up();
      if (refusal_) continue;
      if (now >= next_notice) {
        next_notice = now + 1;
        for (size_t r = 1; r < joined_.size(); ++r) tell_missing(r);
      }
      if (now >= next_report) {
        next_report = now + options_.report_seconds;
        const std::vector<int> ranks = missing();
        log_info("rendezvous at {}: {} of {} ranks are here, waiting for {} ({})",
                 endpoint_text(launch_.host, launch_.port), joined_.size() - ranks.size(), joined_.size(),
                 missing_text(), human_duration(now - began));
      }
    }
  }

 private:
  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (size_t r = 1; r < joined_.size(); ++r)
      if (!joined_[r]) ranks.push_back(static_cast<int>(r));
    return ranks;
  }
  // "ranks 2, 5 (rank 5 was here: host b, pid 7)"
  std::string missing_text() const {
    const std::vector<int> ranks = missing();
    std::string text = rank_list(ranks);
    for (const int r : ranks)
      if (const auto& seen = last_seen_[static_cast<size_t>(r)])
        text += fmt::format(", {} has left", name_of(*seen));
    return text;
  }

  Peer peer_of(const Hello& hello) const {
    return {.rank = static_cast<int>(hello.rank),
            .host = hello.host,
            .pid = hello.pid,
            .machine = hello.machine,
            .network = hello.network};
  }

  void give_up() {
    refuse(Error(
        ExitCode::PeerLost,
        fmt::format("rendezvous at {}: {} missing after {}", endpoint_text(launch_.host, launch_.port),
                    missing_text(), human_duration(options_.seconds)),
        "see the output of those ranks; each needs this host, port and job, and a way through firewalls"));
  }

  void check_agreement() {
    std::vector<Peer> peers{self_};
    std::vector<Agreement> agreements{own_.agreement};
    for (size_t r = 1; r < joined_.size(); ++r) {
      peers.push_back(peer_of(joined_[r]->hello));
      agreements.push_back(joined_[r]->hello.agreement);
    }
    const std::string problem = disagreement(peers, agreements);
    if (!problem.empty())
      refuse(Error(
          ExitCode::Usage, problem,
          "start every rank with the same program, configuration and data, and with a device of its own"));
  }

  Rendezvous welcome() {
    Rendezvous met;
    met.timing = options_.timing;
    met.peers.push_back(self_);
    for (size_t r = 1; r < joined_.size(); ++r) met.peers.push_back(peer_of(joined_[r]->hello));
    Welcome message{.proof = {}, .timing = options_.timing, .peers = met.peers};
    for (size_t r = 1; r < joined_.size(); ++r) {
      Joined& member = *joined_[r];
      message.proof = welcome_proof(key_, member.hello.nonce);
      // One that is gone by now the control plane finds at once.
      send_all(member.link.socket, encode(message), monotonic_seconds() + options_.timing.deadline_seconds);
      member.link.parser.set_limit(FrameParser::member_limit);
      met.links.push_back(std::move(member.link));
    }
    if (dropped_ > 0) log_info("rendezvous: {} of strangers dropped", plural(dropped_, "connection"));
    return met;
  }

  // Ends the rendezvous for everybody: those who are here, and for a moment those who come.
  void refuse(const Error& error) {
    if (refusal_) return;
    refusal_ = error;
    told_.assign(joined_.size(), false);
    deadline_ =
        std::min(std::max(deadline_, monotonic_seconds()), monotonic_seconds() + options_.linger_seconds);
    for (size_t r = 1; r < joined_.size(); ++r)
      if (joined_[r]) tell_refusal(joined_[r]->link.socket, r);
  }
  void tell_refusal(const Socket& socket, size_t rank) {
    const Refused message{.what = refusal_->what(),
                          .hint = refusal_->hint(),
                          .exit_code = static_cast<uint8_t>(refusal_->code())};
    send_all(socket, encode(message), monotonic_seconds() + 1);
    if (rank < told_.size()) told_[rank] = true;
  }
  bool all_told() const { return std::find(told_.begin() + 1, told_.end(), false) == told_.end(); }

  void tell_missing(size_t rank) {
    if (!joined_[rank]) return;
    if (!send_all(joined_[rank]->link.socket, encode(Missing{missing_text()}), monotonic_seconds() + 1))
      leave(rank);
  }

  void leave(size_t rank) {
    last_seen_[rank] = peer_of(joined_[rank]->hello);
    joined_[rank].reset();
  }

  void wait(double until) {
    std::vector<pollfd> polled;
    for (const Socket& listener : listeners_) polled.push_back({listener.fd(), POLLIN, 0});
    for (const Stranger& stranger : strangers_) polled.push_back({stranger.socket.fd(), POLLIN, 0});
    std::vector<size_t> members;
    for (size_t r = 1; r < joined_.size(); ++r) {
      if (!joined_[r]) continue;
      members.push_back(r);
      polled.push_back({joined_[r]->link.socket.fd(), POLLIN, 0});
    }
    poll(polled.data(), polled.size(), poll_timeout(until));
    const pollfd* of_strangers = polled.data() + listeners_.size();
    const pollfd* of_members = of_strangers + strangers_.size();
    for (size_t i = 0; i < members.size(); ++i)
      if (of_members[i].revents != 0) read_member(members[i]);
    std::vector<Stranger> still;
    const double now = monotonic_seconds();
    for (size_t i = 0; i < strangers_.size(); ++i) {
      Stranger& stranger = strangers_[i];
      if (of_strangers[i].revents != 0 ? read_stranger(stranger)
                                       : now - stranger.since < options_.stranger_seconds)
        still.push_back(std::move(stranger));
      else if (stranger.socket.open())
        ++dropped_;  // one that was admitted has given its socket away
    }
    strangers_ = std::move(still);
    for (size_t i = 0; i < listeners_.size(); ++i)
      if (polled[i].revents != 0) accept_all(listeners_[i]);
  }

  void accept_all(const Socket& listener) {
    while (true) {
      SocketAttempt attempt = accept_from(listener);
      if (!attempt.socket.open()) return;
      Stranger stranger{.socket = std::move(attempt.socket),
                        .parser = {},
                        .nonce = random_bytes(16),
                        .since = monotonic_seconds()};
      Challenge challenge;
      challenge.nonce = stranger.nonce;
      if (strangers_.size() >= most_strangers) strangers_.erase(strangers_.begin());
      if (send_all(stranger.socket, encode(challenge), 0)) strangers_.push_back(std::move(stranger));
    }
  }

  // A member says nothing before its welcome: what can be read is its end.
  void read_member(size_t rank) {
    char byte;
    const ssize_t got = recv(joined_[rank]->link.socket.fd(), &byte, 1, 0);
    if (got >= 0 || !would_block(errno)) leave(rank);
  }

  // False: it is a stranger no longer, or was never more.
  bool read_stranger(Stranger& stranger) {
    char bytes[4096];
    const ssize_t got = recv(stranger.socket.fd(), bytes, sizeof bytes, 0);
    if (got < 0 && would_block(errno)) return true;
    if (got <= 0) return false;
    stranger.parser.add({bytes, static_cast<size_t>(got)});
    const std::optional<Frame> frame = stranger.parser.next();
    if (!frame) return !stranger.parser.malformed();
    if (frame->kind != MessageKind::Hello || !is_proven(*frame, key_, stranger.nonce)) return false;
    const std::optional<Hello> hello = decode_hello(*frame);
    if (!hello) return false;
    admit(std::move(stranger), *hello);
    return false;
  }

  void admit(Stranger stranger, const Hello& hello) {
    const Peer peer = peer_of(hello);
    const size_t rank = hello.rank;
    if (!refusal_) {
      const std::string hint =
          "see how the ranks were started: each gets a rank of its own and the same number of ranks";
      if (hello.version != protocol_version)
        refuse(Error(ExitCode::Usage,
                     fmt::format("{} speaks version {} of the control protocol, {} version {}", name_of(peer),
                                 hello.version, name_of(self_), protocol_version),
                     "start every rank from the same build of octet"));
      else if (hello.ranks != own_.ranks)
        refuse(Error(ExitCode::Usage,
                     fmt::format("{} was started as one of {}, {} as one of {}", name_of(peer),
                                 plural(hello.ranks, "rank"), name_of(self_), plural(own_.ranks, "rank")),
                     hint));
      else if (rank == 0 || rank >= joined_.size())
        refuse(Error(ExitCode::Usage,
                     rank == 0
                         ? fmt::format("rank 0 is there twice: {} and {}", name_of(self_), name_of(peer))
                         : fmt::format("{} does not exist among {} ranks", name_of(peer), own_.ranks),
                     hint));
      else if (joined_[rank] && peer_of(joined_[rank]->hello) != peer)
        refuse(Error(ExitCode::Usage,
                     fmt::format("rank {} is there twice: {} and {}", rank,
                                 name_of(peer_of(joined_[rank]->hello)), name_of(peer)),
                     hint));
    }
    if (refusal_) {
      tell_refusal(stranger.socket, rank);
      return;
    }
    // The same process may come again: it lost its first connection before we did.
    joined_[rank] = Joined{.link = {.rank = static_cast<int>(rank),
                                    .socket = std::move(stranger.socket),
                                    .parser = std::move(stranger.parser)},
                           .hello = hello};
    tell_missing(rank);  // so that it knows it was admitted
  }

  const Launch launch_;
  const RendezvousOptions options_;
  const std::string key_;
  Hello own_;
  Peer self_;
  std::vector<Socket> listeners_;
  std::vector<Stranger> strangers_;
  std::vector<std::optional<Joined>> joined_;   // by rank; 0 is this process
  std::vector<std::optional<Peer>> last_seen_;  // by rank: was here, and left
  std::optional<Error> refusal_;
  std::vector<bool> told_;
  double deadline_ = 0;
  int64_t dropped_ = 0;
};

}  // namespace

Rendezvous host_rendezvous(const Launch& launch, const Agreement& agreement,
                           const RendezvousOptions& options) {
  return RendezvousHost(launch, agreement, options).run();
}

}  // namespace octet
