// The thread of the control plane.
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "comm/control_plane.h"

namespace octet {
namespace {

// How long a closing process waits for the others to have read its last words.
constexpr double linger_seconds = 1;

}  // namespace

void ControlPlane::serve() {
  double next_beat = monotonic_seconds();
  try {
    {
      // What came right behind the welcome was read with it.
      const std::lock_guard lock(mutex_);
      for (Link& link : links_) handle_all(link, next_beat);
    }
    while (serve_once(next_beat)) continue;
  } catch (const std::exception& error) {
    abort(fmt::format("its control thread failed: {}", error.what()));
  }
}

bool ControlPlane::serve_once(double& next_beat) {
  std::vector<pollfd> polled{{wake_.fd(), POLLIN, 0}};
  double until = next_beat;
  {
    const std::lock_guard lock(mutex_);
    for (const Link& link : links_) {
      const short events = static_cast<short>(POLLIN | (link.unsent.empty() ? 0 : POLLOUT));
      polled.push_back({link.peer.socket.fd(), events, 0});  // a closed one is -1: ignored
    }
    if (closing_) until = std::min(until, *closing_ + linger_seconds);
  }
  poll(polled.data(), polled.size(), poll_timeout(until));
  wake_.clear();

  const std::lock_guard lock(mutex_);
  const double now = monotonic_seconds();
  for (size_t i = 0; i < links_.size(); ++i) {
    Link& link = links_[i];
    if ((polled[i + 1].revents & POLLOUT) != 0) send_unsent(link);
    if ((polled[i + 1].revents & ~POLLOUT) != 0) read(link, now);
  }
  // A process that was stopped, or a laptop that slept, must not blame the others for its own silence.
  if (const double late = now - until; late > timing_.deadline_seconds / 4) {
    if (watch_) watch_->stood_still(late);
    for (Link& link : links_) link.heard += late;
  }
  if (now >= next_beat) {
    next_beat = now + timing_.heartbeat_seconds;
    if (!farewell_ && !failure_) send_status();
  }
  judge(now);
  leave_if_stuck(now);
  return !is_over(now);
}

void ControlPlane::read(Link& link, double now) {
  char bytes[65536];
  while (link.peer.socket.open()) {
    const ssize_t got = recv(link.peer.socket.fd(), bytes, sizeof bytes, 0);
    if (got < 0 && would_block(errno)) return;
    if (got <= 0) {
      closed(link, now);
      return;
    }
    link.heard = now;
    link.peer.parser.add({bytes, static_cast<size_t>(got)});
    handle_all(link, now);
    if (link.peer.parser.malformed()) {
      fail({.peer = peers_[static_cast<size_t>(link.peer.rank)],
            .status = watch_ ? watch_->status(link.peer.rank) : rank_0_,
            .reason = "sent what is no message of the control protocol,"});
      closed(link, now);
    }
  }
}

void ControlPlane::closed(Link& link, double now) {
  link.peer.socket.close();
  link.unsent.clear();
  if (watch_)
    watch_->closed(link.peer.rank, now);
  else if (!farewell_)
    fail({.peer = peers_[0],
          .status = rank_0_,
          .reason = "was lost: its connection closed without a goodbye,"});
}

void ControlPlane::handle_all(Link& link, double now) {
  while (const std::optional<Frame> frame = link.peer.parser.next()) {
    if (watch_)
      handle_at_rank_0(link, *frame, now);
    else
      handle_from_rank_0(*frame);
  }
}

void ControlPlane::handle_at_rank_0(Link& link, const Frame& frame, double now) {
  const int rank = link.peer.rank;
  switch (frame.kind) {
    case MessageKind::Status:
      if (const auto status = decode_status(frame)) watch_->heard(rank, *status, now);
      break;
    case MessageKind::Contribution:
      if (const auto part = decode_contribution(frame)) collected_from(rank, *part);
      break;
    case MessageKind::Abort:
      if (const auto message = decode_abort(frame))
        fail({.peer = watch_->peer(rank),
              .status = watch_->status(rank),
              .reason = fmt::format("gave up: {},", message->reason)});
      break;
    case MessageKind::Suspect:
      if (const auto message = decode_suspect(frame); message && message->rank < peers_.size())
        watch_->suspected(static_cast<int>(message->rank), message->reason, now);
      break;
    case MessageKind::Goodbye:
      watch_->said_goodbye(rank, now);
      break;
    default:
      break;
  }
}

void ControlPlane::handle_from_rank_0(const Frame& frame) {
  switch (frame.kind) {
    case MessageKind::Status:
      if (const auto status = decode_status(frame)) rank_0_ = *status;
      break;
    case MessageKind::Collected:
      if (auto message = decode_collected(frame)) {
        collected_[message->name] = std::move(message->values);
        changed_.notify_all();
      }
      break;
    case MessageKind::Failed:
      if (const auto failure = decode_failure(frame)) fail(*failure);
      break;
    case MessageKind::Farewell:
      farewell_ = true;
      changed_.notify_all();
      break;
    default:
      break;
  }
}

void ControlPlane::collected_from(int rank, const Contribution& part) {
  const auto [entry, is_new] = collections_.try_emplace(
      part.name, Collection{.kind = part.kind, .root = part.root, .values = {}, .count = 0});
  Collection& collection = entry->second;
  if (is_new) collection.values.resize(peers_.size());
  std::optional<std::string>& value = collection.values[static_cast<size_t>(rank)];
  if (collection.kind != part.kind || collection.root != part.root || part.root >= peers_.size() || value) {
    fail({.peer = peers_[static_cast<size_t>(rank)],
          .status = watch_->status(rank),
          .reason = fmt::format(
              "{} {}, which is a mistake in octet,",
              value ? "gave its part twice to" : "disagrees with the other ranks about the kind of",
              escape_control(part.name))});
    return;
  }
  value = part.value;
  if (++collection.count < peers_.size()) return;

  Collected message{.name = part.name, .values = {}};
  if (part.kind == CollectKind::All) {
    for (std::optional<std::string>& one : collection.values) message.values.push_back(std::move(*one));
  } else if (part.kind == CollectKind::Root) {
    message.values.push_back(*collection.values[part.root]);
  } else {
    // The flags of any rank count; of several reasons the lowest rank's.
    std::string folded(1, '\0');
    for (const std::optional<std::string>& one : collection.values) {
      if (one->empty()) continue;
      if (((*one)[0] & 1) != 0 && (folded[0] & 1) == 0) folded += one->substr(1);
      folded[0] = static_cast<char>(folded[0] | (*one)[0]);
    }
    message.values.push_back(folded);
  }
  collections_.erase(entry);
  send_to_all(encode(message));
  collected_[message.name] = std::move(message.values);
  changed_.notify_all();
}

void ControlPlane::judge(double now) {
  if (failure_ || farewell_) return;
  if (!watch_) {
    const double silence = now - links_[0].heard;
    if (silence > timing_.deadline_seconds)
      fail({.peer = peers_[0],
            .status = rank_0_,
            .reason = fmt::format("was lost: nothing heard from it for {},", human_duration(silence))});
    return;
  }
  watch_->heard(0, own_, now);
  check_goodbyes();
  if (failure_) return;
  if (watch_->all_said_goodbye()) {
    farewell_ = true;
    send_to_all(encode_farewell());
    changed_.notify_all();
  } else if (const std::optional<RunFailure> failure = watch_->judge(now)) {
    log_debug("the ranks when the run failed: {}", watch_->table());
    fail(*failure);
  }
}

// A rank that has said goodbye takes part in nothing any more: what others wait for it in never ends.
void ControlPlane::check_goodbyes() {
  for (const auto& [name, collection] : collections_)
    for (size_t r = 0; r < peers_.size(); ++r)
      if (!collection.values[r] && watch_->has_said_goodbye(static_cast<int>(r))) {
        fail(RunFailure{.peer = peers_[r],
                        .status = watch_->status(static_cast<int>(r)),
                        .reason = fmt::format("left the run while others still needed it for {},", name)});
        return;
      }
}

void ControlPlane::leave_if_stuck(double now) {
  if (!failure_ || closing_ || leave_seconds_ <= 0 || now - failed_at_ < leave_seconds_) return;
  log_error("{}; rank {} itself has not left its work for {} and is ended", text_of(*failure_), rank_,
            human_duration(now - failed_at_));
  std::fflush(nullptr);
  _exit(static_cast<int>(ExitCode::PeerLost));
}

// The thread ends when everything is said and everybody has read it: a connection closed with unread bytes in
// it would take back what was said last. So each side ends its half, and waits for the other's end.
bool ControlPlane::is_over(double now) {
  if (!closing_) return false;
  if (now - *closing_ >= linger_seconds) return true;
  bool over = true;
  for (Link& link : links_) {
    if (!link.peer.socket.open()) continue;
    over = false;
    if (link.unsent.empty()) shutdown(link.peer.socket.fd(), SHUT_WR);
  }
  return over;
}

}  // namespace octet
