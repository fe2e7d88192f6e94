#include "comm/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>

#include "base/clock.h"
#include "base/error.h"

namespace octet {
namespace {

const sockaddr* raw(const std::string& bytes) { return reinterpret_cast<const sockaddr*>(bytes.data()); }

template <class T>
T as(const std::string& bytes) {
  T address{};
  memcpy(&address, bytes.data(), std::min(bytes.size(), sizeof address));
  return address;
}

template <class T>
SocketAddress address_from(const T& address, size_t bytes = sizeof(T)) {
  sockaddr_storage storage{};
  memcpy(&storage, &address, bytes);
  return SocketAddress::of(storage, static_cast<uint32_t>(bytes));
}

SocketAttempt failed(int error) { return {.socket = Socket(), .error = error}; }

SocketAttempt open_socket(const SocketAddress& address) {
  Socket socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.open()) return failed(errno);
  return {.socket = std::move(socket), .error = 0};
}

}  // namespace

void Socket::close() noexcept {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

SocketAddress SocketAddress::of(const sockaddr_storage& storage, uint32_t bytes) {
  SocketAddress address;
  address.bytes_.assign(reinterpret_cast<const char*>(&storage),
                        std::min<size_t>(bytes, sizeof(sockaddr_storage)));
  return address;
}

SocketAddress SocketAddress::abstract(const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::min(name.size(), sizeof address.sun_path - 1);
  memcpy(address.sun_path + 1, name.data(), length);
  return address_from(address, offsetof(sockaddr_un, sun_path) + 1 + length);
}

std::optional<SocketAddress> SocketAddress::from_bytes(const std::string& bytes) {
  SocketAddress address;
  address.bytes_ = bytes;
  const size_t path = offsetof(sockaddr_un, sun_path);
  if (bytes.size() < sizeof(sa_family_t) || bytes.size() > sizeof(sockaddr_storage)) return std::nullopt;
  const bool right_size = (address.family() == AF_INET && bytes.size() == sizeof(sockaddr_in)) ||
                          (address.family() == AF_INET6 && bytes.size() == sizeof(sockaddr_in6)) ||
                          (address.family() == AF_UNIX && bytes.size() > path + 1 &&
                           bytes.size() <= sizeof(sockaddr_un) && bytes[path] == '\0');
  if (!right_size) return std::nullopt;
  return address;
}

int SocketAddress::family() const { return as<sockaddr>(bytes_).sa_family; }

int SocketAddress::port() const {
  if (family() == AF_INET) return ntohs(as<sockaddr_in>(bytes_).sin_port);
  if (family() == AF_INET6) return ntohs(as<sockaddr_in6>(bytes_).sin6_port);
  return 0;
}

SocketAddress SocketAddress::with_port(int port) const {
  const auto number = htons(static_cast<uint16_t>(port));
  if (family() == AF_INET) {
    auto address = as<sockaddr_in>(bytes_);
    address.sin_port = number;
    return address_from(address);
  }
  if (family() == AF_INET6) {
    auto address = as<sockaddr_in6>(bytes_);
    address.sin6_port = number;
    return address_from(address);
  }
  return *this;
}

SocketAddress SocketAddress::any() const {
  if (family() == AF_INET6) {
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_addr = in6addr_any;
    return address_from(address).with_port(port());
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  return address_from(address).with_port(port());
}

bool SocketAddress::is_loopback() const {
  if (family() == AF_INET) return (ntohl(as<sockaddr_in>(bytes_).sin_addr.s_addr) >> 24) == 127;
  if (family() == AF_INET6) {
    const auto address = as<sockaddr_in6>(bytes_);
    return IN6_IS_ADDR_LOOPBACK(&address.sin6_addr) ||
           (IN6_IS_ADDR_V4MAPPED(&address.sin6_addr) && address.sin6_addr.s6_addr[12] == 127);
  }
  return true;
}

std::string SocketAddress::text() const {
  char number[INET6_ADDRSTRLEN] = "?";
  if (family() == AF_INET) {
    const auto address = as<sockaddr_in>(bytes_);
    inet_ntop(AF_INET, &address.sin_addr, number, sizeof number);
  } else if (family() == AF_INET6) {
    const auto address = as<sockaddr_in6>(bytes_);
    inet_ntop(AF_INET6, &address.sin6_addr, number, sizeof number);
  } else {
    const size_t name = offsetof(sockaddr_un, sun_path) + 1;
    return "@" + (bytes_.size() > name ? bytes_.substr(name) : std::string());
  }
  return endpoint_text(number, port());
}

std::string endpoint_text(const std::string& host, int port) {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

std::vector<SocketAddress> resolve(const std::string& host, int port, std::string& problem) {
  std::string name = host;
  if (name.size() > 2 && name.front() == '[' && name.back() == ']') name = name.substr(1, name.size() - 2);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int error = getaddrinfo(name.c_str(), nullptr, &hints, &list);
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(list, freeaddrinfo);
  std::vector<SocketAddress> addresses;
  if (error != 0) {
    problem = fmt::format("the name {} has no address: {}", host,
                          error == EAI_SYSTEM ? strerror(errno) : gai_strerror(error));
    return addresses;
  }
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_family != AF_INET && entry->ai_family != AF_INET6) continue;
    sockaddr_storage storage{};
    memcpy(&storage, entry->ai_addr, entry->ai_addrlen);
    addresses.push_back(SocketAddress::of(storage, entry->ai_addrlen).with_port(port));
  }
  if (addresses.empty()) problem = fmt::format("the name {} has no address", host);
  return addresses;
}

SocketAttempt listen_at(const SocketAddress& address) {
  SocketAttempt attempt = open_socket(address);
  if (!attempt.socket.open()) return attempt;
  const int fd = attempt.socket.fd(), on = 1;
  // Connections of an earlier start that linger in the kernel do not hold the port.
  if (address.family() != AF_UNIX) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (address.family() == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
  const std::string& bytes = address.bytes();
  if (bind(fd, raw(bytes), static_cast<socklen_t>(bytes.size())) != 0 || listen(fd, 4096) != 0)
    return failed(errno);
  return attempt;
}

SocketAttempt begin_connect(const SocketAddress& address) {
  SocketAttempt attempt = open_socket(address);
  if (!attempt.socket.open()) return attempt;
  const std::string& bytes = address.bytes();
  const int result = connect(attempt.socket.fd(), raw(bytes), static_cast<socklen_t>(bytes.size()));
  if (result != 0 && errno != EINPROGRESS && errno != EINTR) return failed(errno);
  if (address.family() != AF_UNIX) set_no_delay(attempt.socket);
  return attempt;
}

int connect_error(const Socket& socket) {
  int error = 0;
  socklen_t length = sizeof error;
  if (getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &length) != 0) return errno;
  return error;
}

SocketAttempt accept_from(const Socket& listener) {
  Socket socket(accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!socket.open()) return failed(errno);
  set_no_delay(socket);
  return {.socket = std::move(socket), .error = 0};
}

bool would_block(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

void set_no_delay(const Socket& socket) {
  const int on = 1;
  setsockopt(socket.fd(), IPPROTO_TCP, TCP_NODELAY, &on,
             sizeof on);  // refused by Unix sockets, which never wait
}

void adopt(const Socket& socket) {
  fcntl(socket.fd(), F_SETFL, fcntl(socket.fd(), F_GETFL) | O_NONBLOCK);
  fcntl(socket.fd(), F_SETFD, fcntl(socket.fd(), F_GETFD) | FD_CLOEXEC);
}

SocketAddress local_address(const Socket& socket) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&storage), &length);
  return SocketAddress::of(storage, length);
}
SocketAddress peer_address(const Socket& socket) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  getpeername(socket.fd(), reinterpret_cast<sockaddr*>(&storage), &length);
  return SocketAddress::of(storage, length);
}

WakeEvent::WakeEvent() : socket_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (!socket_.open()) throw Error(ExitCode::Internal, fmt::format("eventfd: {}", strerror(errno)));
}
void WakeEvent::set() noexcept {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(fd(), &one, sizeof one);
}
void WakeEvent::clear() noexcept {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = read(fd(), &count, sizeof count);
}

int poll_timeout(double until) {
  const double left = (until - monotonic_seconds()) * 1000;
  return static_cast<int>(std::clamp(std::ceil(left), 0.0, 1e6));
}

}  // namespace octet
