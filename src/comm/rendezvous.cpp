// The half of every rank but 0.
#include "comm/rendezvous.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "comm/authentication.h"

namespace octet {
namespace {

bool wait_for(const Socket& socket, short events, double until) {
  while (true) {
    pollfd polled{socket.fd(), events, 0};
    const int ready = poll(&polled, 1, poll_timeout(until));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

class RendezvousGuest {
 public:
  RendezvousGuest(const Launch& launch, const Agreement& agreement, const RendezvousOptions& options)
      : launch_(launch),
        options_(options),
        key_(job_key(launch.job, options.secret)),
        endpoint_(endpoint_text(launch.host, launch.port)),
        began_(monotonic_seconds()),
        deadline_(began_ + options.seconds),
        next_report_(began_ + options.report_seconds) {
    const Peer self = this_process(launch.rank, options.host);
    hello_.rank = static_cast<uint32_t>(launch.rank);
    hello_.ranks = static_cast<uint32_t>(launch.ranks);
    hello_.host = self.host;
    hello_.pid = self.pid;
    hello_.machine = self.machine;
    hello_.network = self.network;
    hello_.nonce = random_bytes(16);
    hello_.agreement = agreement;
  }

  Rendezvous run() {
    double pause = 0.02;
    while (true) {
      for (const SocketAddress& address : resolve(launch_.host, launch_.port, problem_)) {
        Socket socket = connect_to(address);
        if (!socket.open()) continue;
        PeerLink link{.rank = 0, .socket = std::move(socket), .parser = {}};
        if (std::optional<Rendezvous> met = converse(link)) return std::move(*met);
      }
      give_up_at_deadline();
      report();
      poll(nullptr, 0, poll_timeout(std::min(monotonic_seconds() + pause, deadline_)));
      pause = std::min(2 * pause, 1.0);
    }
  }

 private:
  Socket connect_to(const SocketAddress& address) {
    SocketAttempt attempt = begin_connect(address);
    int error = attempt.error;
    if (attempt.socket.open()) {
      const bool ready = wait_for(attempt.socket, POLLOUT, std::min(monotonic_seconds() + 5, deadline_));
      error = ready ? connect_error(attempt.socket) : ETIMEDOUT;
    }
    if (error == 0) return std::move(attempt.socket);
    problem_ = fmt::format("{}: {}", address.text(), strerror(error));
    return {};
  }

  // Until the welcome; nullopt: the connection broke, try again.
  std::optional<Rendezvous> converse(PeerLink& link) {
    const double first_word = std::min(monotonic_seconds() + options_.stranger_seconds, deadline_);
    const std::optional<Frame> first = next_frame(link, first_word);
    const std::optional<Challenge> challenge =
        first && first->kind == MessageKind::Challenge ? decode_challenge(*first) : std::nullopt;
    if (!challenge) {
      // One that is just closing says nothing; an earlier answer says more.
      if (answer_.empty() || first)
        answer_ = fmt::format("what listens at {} is no rendezvous of octet", endpoint_);
      return std::nullopt;
    }
    if (!send_all(link.socket, encode_proven(hello_, key_, challenge->nonce), monotonic_seconds() + 5)) {
      answer_ = "the connection broke";
      return std::nullopt;
    }
    bool admitted = false;
    link.parser.set_limit(FrameParser::member_limit);
    while (true) {
      // Once admitted, rank 0's deadline comes first: it names who is missing.
      const std::optional<Frame> frame = next_frame(link, admitted ? deadline_ + 5 : deadline_);
      if (!frame) break;
      if (const auto message = frame->kind == MessageKind::Missing ? decode_missing(*frame) : std::nullopt) {
        admitted = true;
        missing_ = escape_control(message->ranks);
        continue;
      }
      if (const auto message = frame->kind == MessageKind::Refused ? decode_refused(*frame) : std::nullopt)
        throw Error(static_cast<ExitCode>(message->exit_code), escape_control(message->what),
                    escape_control(message->hint));
      const auto message = frame->kind == MessageKind::Welcome ? decode_welcome(*frame) : std::nullopt;
      if (!message) break;
      if (!equal_in_constant_time(message->proof, welcome_proof(key_, hello_.nonce)) ||
          message->peers.size() != hello_.ranks) {
        answer_ = fmt::format("what listens at {} does not know this job", endpoint_);
        return std::nullopt;
      }
      Rendezvous met{.peers = message->peers, .timing = message->timing, .links = {}};
      met.links.push_back(std::move(link));
      return met;
    }
    if (challenge->version != protocol_version)
      answer_ = fmt::format("{} speaks version {} of the control protocol, this build version {}", endpoint_,
                            challenge->version, protocol_version);
    else if (!admitted)
      answer_ = fmt::format("the rendezvous at {} belongs to another job, or to another secret", endpoint_);
    else if (monotonic_seconds() < deadline_) {
      answer_ = fmt::format("rank 0 at {} was there and is gone", endpoint_);
      missing_ = "rank 0";
      deadline_ = std::min(deadline_, monotonic_seconds() + options_.timing.deadline_seconds);
    }
    return std::nullopt;
  }

  std::optional<Frame> next_frame(PeerLink& link, double until) {
    while (true) {
      if (std::optional<Frame> frame = link.parser.next()) return frame;
      if (link.parser.malformed() || !wait_for(link.socket, POLLIN, until)) return std::nullopt;
      char bytes[16384];
      const ssize_t got = recv(link.socket.fd(), bytes, sizeof bytes, 0);
      if (got < 0 && would_block(errno)) continue;
      if (got <= 0) return std::nullopt;
      link.parser.add({bytes, static_cast<size_t>(got)});
    }
  }

  void give_up_at_deadline() {
    if (monotonic_seconds() < deadline_) return;
    const std::string waited = human_duration(monotonic_seconds() - began_);
    const std::string what =
        missing_.empty() ? fmt::format("rank {} did not find rank 0 at {} within {}: {}", launch_.rank,
                                       endpoint_, waited, escape_control(problem()))
                         : fmt::format("rendezvous at {}: {} missing after {}", endpoint_, missing_, waited);
    throw Error(ExitCode::PeerLost, what,
                "see the output of the missing ranks; each needs this host, port and job, and a way through "
                "firewalls");
  }

  const std::string& problem() const { return answer_.empty() ? problem_ : answer_; }

  // Rank 0 says who is missing; what only this rank knows is why it cannot reach rank 0.
  void report() {
    const double now = monotonic_seconds();
    if (now < next_report_) return;
    next_report_ = now + options_.report_seconds;
    log_info("rank {} has not found rank 0 at {} yet ({}): {}", launch_.rank, endpoint_,
             human_duration(now - began_), problem());
  }

  const Launch launch_;
  const RendezvousOptions options_;
  const std::string key_, endpoint_;
  Hello hello_;
  double began_, deadline_, next_report_;
  std::string problem_ = "no answer";  // of the latest attempt to connect
  std::string answer_;                 // what came of the latest connection
  std::string missing_;                // as rank 0 said
};

}  // namespace

std::string job_key(const std::string& job, const std::string& secret) {
  return sha256(fmt::format("octet job {} {} {}", job.size(), job, secret));
}

bool send_all(const Socket& socket, const std::string& bytes, double until) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t sent = send(socket.fd(), bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
    if (sent > 0) {
      at += static_cast<size_t>(sent);
      continue;
    }
    if (sent < 0 && errno == EINTR) continue;
    if (sent == 0 || !would_block(errno) || !wait_for(socket, POLLOUT, until)) return false;
  }
  return true;
}

Rendezvous join_rendezvous(const Launch& launch, const Agreement& agreement,
                           const RendezvousOptions& options) {
  return RendezvousGuest(launch, agreement, options).run();
}

Rendezvous meet(const Launch& launch, const Agreement& agreement, const RendezvousOptions& options) {
  if (launch.ranks == 1)
    return {.peers = {this_process(0, options.host)}, .timing = options.timing, .links = {}};
  return launch.rank == 0 ? host_rendezvous(launch, agreement, options)
                          : join_rendezvous(launch, agreement, options);
}

}  // namespace octet
