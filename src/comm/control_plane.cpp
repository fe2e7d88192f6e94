#include "comm/control_plane.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/clock.h"
#include "base/text.h"

namespace octet {
namespace {

// Up to so many ranks rank 0's own phase changes go to everybody at once: each costs it a system call a rank.
constexpr int most_prompt_ranks = 16;

std::string requests_name(int64_t step) { return fmt::format("requests of step {}", step); }

// One byte of flags, then the reason.
std::string encode_requests(const Requests& requests) {
  return static_cast<char>((requests.stop ? 1 : 0) | (requests.save ? 2 : 0)) + requests.stop_reason;
}
Requests decode_requests(const std::string& bytes) {
  if (bytes.empty()) return {};
  return {.stop = (bytes[0] & 1) != 0,
          .save = (bytes[0] & 2) != 0,
          .stop_reason = escape_control(bytes.substr(1))};
}

}  // namespace

ControlPlane::ControlPlane(const Launch& launch, const Agreement& agreement, const ControlOptions& options)
    : rank_(launch.rank), leave_seconds_(options.leave_seconds) {
  Rendezvous met = meet(launch, agreement, options.rendezvous);
  peers_ = std::move(met.peers);
  timing_ = met.timing;
  timing_.heartbeat_seconds = std::min(timing_.heartbeat_seconds, timing_.deadline_seconds / 4);
  const double now = monotonic_seconds();
  for (PeerLink& link : met.links) {
    if (!local_address_) {
      local_address_ = octet::local_address(link.socket);
      rank_0_address_ = rank_ == 0 ? local_address_ : peer_address(link.socket);
    }
    links_.push_back({.peer = std::move(link), .unsent = {}, .sent_of_first = 0, .heard = now});
  }
  if (rank_ == 0) watch_.emplace(peers_, timing_, now);
  if (!links_.empty()) thread_ = std::thread(&ControlPlane::serve, this);
}

ControlPlane::~ControlPlane() {
  if (!thread_.joinable()) return;
  bool over = false;
  {
    const std::lock_guard lock(mutex_);
    over = farewell_ || failure_.has_value();
  }
  if (!over) abort("ended without finishing the run");
  {
    const std::lock_guard lock(mutex_);
    closing_ = monotonic_seconds();
  }
  wake_.set();
  thread_.join();
}

void ControlPlane::send(Link& link, std::string bytes) {
  if (!link.peer.socket.open()) return;
  link.unsent.push_back(std::make_shared<const std::string>(std::move(bytes)));
  send_unsent(link);
  if (!link.unsent.empty()) wake_.set();
}
void ControlPlane::send_to_all(std::string bytes) {
  const auto shared = std::make_shared<const std::string>(std::move(bytes));
  for (Link& link : links_) {
    if (!link.peer.socket.open()) continue;
    link.unsent.push_back(shared);
    send_unsent(link);
    if (!link.unsent.empty()) wake_.set();
  }
}

// As much as the connection takes now; the thread sends the rest.
void ControlPlane::send_unsent(Link& link) {
  while (!link.unsent.empty()) {
    const std::string& bytes = *link.unsent.front();
    const ssize_t sent = ::send(link.peer.socket.fd(), bytes.data() + link.sent_of_first,
                                bytes.size() - link.sent_of_first, MSG_NOSIGNAL);
    if (sent < 0) {
      if (!would_block(errno)) link.unsent.clear();  // broken: reading tells
      return;
    }
    link.sent_of_first += static_cast<size_t>(sent);
    if (link.sent_of_first < bytes.size()) continue;
    link.unsent.pop_front();
    link.sent_of_first = 0;
  }
}

void ControlPlane::send_status() {
  if (watch_) watch_->heard(rank_, own_, monotonic_seconds());
  send_to_all(encode(own_));
}

void ControlPlane::set_phase(const std::string& phase, int64_t step) {
  const std::lock_guard lock(mutex_);
  own_.phase = phase;
  own_.step = step;
  ++own_.progress;
  if (rank_ != 0 || ranks() <= most_prompt_ranks) send_status();
}

void ControlPlane::progress() {
  const std::lock_guard lock(mutex_);
  ++own_.progress;
}

void ControlPlane::request_stop(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (own_requests_.stop) return;
  own_requests_.stop = true;
  own_requests_.stop_reason = reason;
}
void ControlPlane::request_save() {
  const std::lock_guard lock(mutex_);
  own_requests_.save = true;
}

void ControlPlane::propose(int64_t step) {
  const std::lock_guard lock(mutex_);
  Requests mine = own_requests_;
  if (mine.stop && ranks() > 1) mine.stop_reason += fmt::format(" (rank {})", rank_);
  own_requests_.save = false;
  contribute({.kind = CollectKind::Requests,
              .root = 0,
              .name = requests_name(step),
              .value = encode_requests(mine)});
}

Requests ControlPlane::agreed(int64_t step) {
  std::unique_lock lock(mutex_);
  const std::vector<std::string> values = await(lock, requests_name(step));
  return values.empty() ? Requests{} : decode_requests(values[0]);
}

void ControlPlane::abort(const std::string& reason, ExitCode code) noexcept {
  try {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    failure_code_ = code;
    if (rank_ != 0) send_to_all(encode(own_) + encode(Abort{reason}));
    fail({.peer = peers_[static_cast<size_t>(rank_)],
          .status = own_,
          .reason = fmt::format("gave up: {},", reason)});
  } catch (const std::exception&) {
    // No memory for the message: the closing connection says that this rank is gone.
  }
}

void ControlPlane::fail(const RunFailure& failure) {
  if (failure_) return;
  failure_ = failure;
  failed_at_ = monotonic_seconds();
  if (rank_ == 0) send_to_all(encode(failure));
  has_failed_.store(true, std::memory_order_release);
  failed_event_.set();
  changed_.notify_all();
}

void ControlPlane::check() const {
  if (!has_failed_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex_);
  throw_failure();
}
std::optional<RunFailure> ControlPlane::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void ControlPlane::throw_failure() const {
  throw Error(
      failure_code_, text_of(*failure_),
      "the first lines of trouble are in that rank's own output; started again, the run goes on from its "
      "newest checkpoint");
}

void ControlPlane::peer_gone(int rank, const std::string& observation) {
  std::unique_lock lock(mutex_);
  if (rank_ == 0)
    watch_->suspected(rank, observation, monotonic_seconds());
  else
    send_to_all(encode(Suspect{static_cast<uint32_t>(rank), observation}));
  wake_.set();
  const std::chrono::duration<double> patience(2 * timing_.deadline_seconds);
  if (!changed_.wait_for(lock, patience, [&] { return failure_.has_value(); }))
    fail({.peer = peers_[static_cast<size_t>(rank)],
          .status = {},
          .reason = fmt::format("was lost: {},", observation)});
  throw_failure();
}

void ControlPlane::contribute(const Contribution& part) {
  if (links_.empty())
    collected_[part.name] = {part.value};
  else if (rank_ == 0)
    collected_from(0, part);
  else
    send(links_[0], encode(part));
}

std::vector<std::string> ControlPlane::await(std::unique_lock<std::mutex>& lock, const std::string& name) {
  // The answer may be here already, or its rank gone since: an answer that is here counts.
  if (!collected_.contains(name)) {
    lock.unlock();
    {
      const Waiting waiting(*this, name);
      lock.lock();
      changed_.wait(lock, [&] { return failure_.has_value() || collected_.contains(name); });
      lock.unlock();
    }
    lock.lock();
  }
  const auto found = collected_.find(name);
  if (found == collected_.end()) throw_failure();
  std::vector<std::string> values = std::move(found->second);
  collected_.erase(found);
  return values;
}

std::vector<std::string> ControlPlane::collect(const Contribution& part) {
  std::unique_lock lock(mutex_);
  if (failure_) throw_failure();
  contribute(part);
  return await(lock, part.name);
}

std::vector<std::string> ControlPlane::all_gather(const std::string& name, const std::string& mine) {
  return collect({.kind = CollectKind::All, .root = 0, .name = name, .value = mine});
}
std::string ControlPlane::broadcast(const std::string& name, const std::string& mine, int root) {
  return collect({.kind = CollectKind::Root,
                  .root = static_cast<uint32_t>(root),
                  .name = name,
                  .value = rank_ == root ? mine : std::string()})
      .at(0);
}
void ControlPlane::barrier(const std::string& name) {
  collect({.kind = CollectKind::Root, .root = 0, .name = name, .value = {}});
}

void ControlPlane::finish() {
  std::unique_lock lock(mutex_);
  if (failure_) throw_failure();
  if (links_.empty() || farewell_) return;
  said_goodbye_ = true;
  if (rank_ == 0)
    watch_->said_goodbye(0, monotonic_seconds());
  else
    send(links_[0], encode(own_) + encode_goodbye());
  wake_.set();
  changed_.wait(lock, [&] { return failure_.has_value() || farewell_; });
  if (!farewell_) throw_failure();
}

ControlPlane::Waiting::Waiting(ControlPlane& control, std::string operation) : control_(control) {
  const std::lock_guard lock(control_.mutex_);
  control_.waits_.push_back(std::move(operation));
  control_.own_.waits_in = control_.waits_.back();
}
ControlPlane::Waiting::~Waiting() {
  const std::lock_guard lock(control_.mutex_);
  control_.waits_.pop_back();
  control_.own_.waits_in = control_.waits_.empty() ? std::string() : control_.waits_.back();
  ++control_.own_.progress;
}

}  // namespace octet
