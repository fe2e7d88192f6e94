#include "comm/data_mesh.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "base/clock.h"
#include "base/text.h"
#include "comm/authentication.h"
#include "comm/listener.h"

namespace octet {
namespace {

// What a connection begins with: the rank that made it, and the proof.
struct DataHello {
  uint32_t rank = 0;
  char proof[32] = {};
};

DataHello hello_of(const std::string& key, uint32_t from, uint32_t to) {
  DataHello hello{.rank = from, .proof = {}};
  const std::string proof = hmac_sha256(key, fmt::format("data from {} to {}", from, to));
  memcpy(hello.proof, proof.data(), sizeof hello.proof);
  return hello;
}

// Where a rank listens: "TCP_PORT UNIX_NAME ADDRESS", the last in bytes.
struct DataPlace {
  int port = 0;
  std::string name;
  std::optional<SocketAddress> address;
};
std::string encode(const DataPlace& place) {
  return fmt::format("{} {} ", place.port, place.name) +
         (place.address ? place.address->bytes() : std::string());
}
DataPlace decode_place(const std::string& bytes) {
  DataPlace place;
  const size_t first = bytes.find(' '), second = bytes.find(' ', first + 1);
  if (second == std::string::npos) return place;
  place.port = static_cast<int>(strtol(bytes.c_str(), nullptr, 10));
  place.name = bytes.substr(first + 1, second - first - 1);
  place.address = SocketAddress::from_bytes(bytes.substr(second + 1));
  return place;
}

class MeshMaker {
 public:
  MeshMaker(ControlPlane& control, DataTransport transport)
      : control_(control),
        transport_(transport),
        sockets_(static_cast<size_t>(control.ranks())),
        deadline_(monotonic_seconds() + std::max(60.0, 2 * control.timing().deadline_seconds)) {}

  std::vector<Socket> run() {
    key_ = control_.broadcast("data key", random_bytes(32), 0);
    const bool one_machine = std::all_of(control_.peers().begin(), control_.peers().end(),
                                         [&](const Peer& peer) { return near(peer); });
    Listener tcp(one_machine ? Listener::Reach::Loopback : Listener::Reach::Everywhere);
    DataPlace mine{.port = tcp.port(), .name = "octet-", .address = control_.local_address()};
    for (const char c : random_bytes(16)) mine.name += fmt::format("{:02x}", static_cast<unsigned char>(c));
    listeners_.emplace_back(tcp.release());
    adopt(listeners_.back());
    if (transport_ == DataTransport::Auto) {
      SocketAttempt attempt = listen_at(SocketAddress::abstract(mine.name));
      if (!attempt.socket.open())
        throw Error(ExitCode::Internal, fmt::format("a Unix socket for data: {}", strerror(attempt.error)));
      listeners_.push_back(std::move(attempt.socket));
    }
    // All listen from here on, so connecting waits for nobody.
    const std::vector<std::string> places = control_.all_gather("data places", encode(mine));
    for (int r = 0; r < control_.rank(); ++r) connect_to(r, decode_place(places[static_cast<size_t>(r)]));
    while (!all_here()) accept_some();
    return std::move(sockets_);
  }

 private:
  struct Stranger {
    Socket socket;
    DataHello hello;
    size_t got = 0;
  };

  bool near(const Peer& peer) const {
    return peer.network == control_.peers()[static_cast<size_t>(control_.rank())].network;
  }

  SocketAddress address_of(int rank, const DataPlace& place) const {
    if (near(control_.peers()[static_cast<size_t>(rank)])) {
      if (transport_ == DataTransport::Auto) return SocketAddress::abstract(place.name);
      std::string problem;
      return resolve("127.0.0.1", place.port, problem).at(0);
    }
    // A rank that reaches rank 0 by loopback is on its machine: where this process found rank 0.
    if (rank == 0 || !place.address || place.address->is_loopback())
      return control_.rank_0_address()->with_port(place.port);
    return place.address->with_port(place.port);
  }

  void connect_to(int rank, const DataPlace& place) {
    const SocketAddress address = address_of(rank, place);
    std::string problem;
    do {
      SocketAttempt attempt = begin_connect(address);
      int error = attempt.error;
      if (attempt.socket.open()) {
        pollfd polled[] = {{attempt.socket.fd(), POLLOUT, 0}, {control_.failure_fd(), POLLIN, 0}};
        poll(polled, 2, poll_timeout(deadline_));
        control_.check();
        error = connect_error(attempt.socket);
        const DataHello hello =
            hello_of(key_, static_cast<uint32_t>(control_.rank()), static_cast<uint32_t>(rank));
        const std::string bytes(reinterpret_cast<const char*>(&hello), sizeof hello);
        if (error == 0 && send_all(attempt.socket, bytes, deadline_)) {
          sockets_[static_cast<size_t>(rank)] = std::move(attempt.socket);
          return;
        }
      }
      problem = strerror(error);
      control_.check();
      poll(nullptr, 0, 50);
    } while (monotonic_seconds() < deadline_);
    fail(fmt::format("no data connection to {} at {}: {}",
                     name_of(control_.peers()[static_cast<size_t>(rank)]), address.text(), problem));
  }

  bool all_here() const {
    for (size_t r = static_cast<size_t>(control_.rank()) + 1; r < sockets_.size(); ++r)
      if (!sockets_[r].open()) return false;
    return true;
  }

  void accept_some() {
    std::vector<pollfd> polled{{control_.failure_fd(), POLLIN, 0}};
    for (const Socket& listener : listeners_) polled.push_back({listener.fd(), POLLIN, 0});
    for (const Stranger& stranger : strangers_) polled.push_back({stranger.socket.fd(), POLLIN, 0});
    poll(polled.data(), polled.size(), poll_timeout(deadline_));
    control_.check();
    std::vector<Stranger> still;
    for (Stranger& stranger : strangers_)
      if (read(stranger)) still.push_back(std::move(stranger));
    strangers_ = std::move(still);
    for (const Socket& listener : listeners_)
      while (true) {
        SocketAttempt attempt = accept_from(listener);
        if (!attempt.socket.open()) break;
        strangers_.push_back({.socket = std::move(attempt.socket), .hello = {}, .got = 0});
      }
    if (monotonic_seconds() < deadline_ || all_here()) return;
    std::vector<int> missing;
    for (size_t r = static_cast<size_t>(control_.rank()) + 1; r < sockets_.size(); ++r)
      if (!sockets_[r].open()) missing.push_back(static_cast<int>(r));
    fail(fmt::format("no data connection from {}", rank_list(missing)));
  }

  // False: it is one of ours now, or never will be.
  bool read(Stranger& stranger) {
    char* const bytes = reinterpret_cast<char*>(&stranger.hello);
    const ssize_t got = recv(stranger.socket.fd(), bytes + stranger.got, sizeof(DataHello) - stranger.got, 0);
    if (got < 0 && would_block(errno)) return true;
    if (got <= 0) return false;
    stranger.got += static_cast<size_t>(got);
    if (stranger.got < sizeof(DataHello)) return true;
    const uint32_t rank = stranger.hello.rank;
    const DataHello expected = hello_of(key_, rank, static_cast<uint32_t>(control_.rank()));
    const bool ours = rank < sockets_.size() && static_cast<int>(rank) > control_.rank() &&
                      equal_in_constant_time({expected.proof, sizeof expected.proof},
                                             {stranger.hello.proof, sizeof stranger.hello.proof});
    if (ours) sockets_[rank] = std::move(stranger.socket);
    return false;
  }

  [[noreturn]] void fail(const std::string& what) {
    control_.abort(what);
    throw Error(ExitCode::PeerLost, what, "the ranks of a run need a way to each other on any port");
  }

  ControlPlane& control_;
  DataTransport transport_;
  std::string key_;
  std::vector<Socket> listeners_, sockets_;
  std::vector<Stranger> strangers_;
  double deadline_;
};

}  // namespace

std::vector<Socket> connect_ranks(ControlPlane& control, DataTransport transport) {
  if (control.ranks() == 1) return std::vector<Socket>(1);
  return MeshMaker(control, transport).run();
}

}  // namespace octet
