// A listening socket on a port the system chooses: made before anybody is told the port, so that no other
// process can take it in between.
#pragma once
#include <string>
#include <utility>

namespace octet {

class Listener {
 public:
  // Of "127.0.0.1" only, or of every IPv4 and IPv6 address of this host. Closed on exec.
  enum class Reach : unsigned char { Loopback, Everywhere };
  explicit Listener(Reach reach);  // Error(Internal) when the system has no socket or port left
  ~Listener();
  Listener(Listener&& other) noexcept : socket_(std::exchange(other.socket_, -1)), port_(other.port_) {}
  Listener& operator=(Listener&&) = delete;

  int port() const { return port_; }
  int socket() const { return socket_; }
  int release() { return std::exchange(socket_, -1); }  // the caller's from now on

 private:
  int socket_ = -1, port_ = 0;
};

}  // namespace octet
