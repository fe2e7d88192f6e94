// Stream sockets, thinly: every descriptor owned, everything non-blocking and closed on exec.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

struct sockaddr_storage;

namespace octet {

class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { close(); }
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    if (this != &other) {
      close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  void close() noexcept;

 private:
  int fd_ = -1;
};

// A host and port as sockets know them, or an abstract name of this machine.
class SocketAddress {
 public:
  static SocketAddress of(const sockaddr_storage& storage, uint32_t bytes);
  // A name in Linux's abstract namespace: no file, gone with its last socket.
  static SocketAddress abstract(const std::string& name);

  int family() const;
  int port() const;  // 0 for an abstract name
  SocketAddress with_port(int port) const;
  // 0.0.0.0 or :: of this family.
  SocketAddress any() const;
  bool is_loopback() const;
  std::string text() const;  // "10.0.0.1:29500", "[fd00::1]:29500", "@name"
  const std::string& bytes() const { return bytes_; }
  // Empty when these are not the bytes of one.
  static std::optional<SocketAddress> from_bytes(const std::string& bytes);

 private:
  std::string bytes_;  // a sockaddr
};

// "host:port", with brackets around a literal IPv6 address.
std::string endpoint_text(const std::string& host, int port);

// The addresses of a name or literal; empty, with the reason in `problem`, when there is none.
std::vector<SocketAddress> resolve(const std::string& host, int port, std::string& problem);

// The result of a socket call: `socket` is open, or `error` is an errno.
struct SocketAttempt {
  Socket socket;
  int error = 0;
};
SocketAttempt listen_at(const SocketAddress& address);
SocketAttempt begin_connect(const SocketAddress& address);  // connected or under way: wait for writable
int connect_error(const Socket& socket);                    // once writable: 0 when it is connected
SocketAttempt accept_from(const Socket& listener);          // error EAGAIN: nobody waits

// An errno that means "not now" to a non-blocking call.
bool would_block(int error);
// Small messages leave at once.
void set_no_delay(const Socket& socket);
// Non-blocking and closed on exec; for a socket that came from elsewhere.
void adopt(const Socket& socket);

SocketAddress local_address(const Socket& socket);
SocketAddress peer_address(const Socket& socket);

// Wakes a poll().
class WakeEvent {
 public:
  WakeEvent();
  int fd() const { return socket_.fd(); }
  void set() noexcept;
  void clear() noexcept;

 private:
  Socket socket_;
};

// Milliseconds for poll() from now until a time of monotonic_seconds(), at least 0, rounded up.
int poll_timeout(double until);

}  // namespace octet
