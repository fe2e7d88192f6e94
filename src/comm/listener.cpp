#include "comm/listener.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <system_error>

#include "base/error.h"

namespace octet {
namespace {

// An IPv6 socket that takes IPv4 as well, or where IPv6 is switched off an IPv4 one; -1 and errno.
int bound_socket(Listener::Reach reach) {
  for (const int family : {AF_INET6, AF_INET}) {
    if (family == AF_INET6 && reach == Listener::Reach::Loopback) continue;
    const int socket = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (socket < 0) continue;
    sockaddr_storage storage{};
    socklen_t bytes = sizeof(sockaddr_in);
    if (family == AF_INET6) {
      const int no = 0;
      ::setsockopt(socket, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
      sockaddr_in6 address{};
      address.sin6_family = AF_INET6;
      address.sin6_addr = in6addr_any;
      std::memcpy(&storage, &address, bytes = sizeof address);
    } else {
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_addr.s_addr = htonl(reach == Listener::Reach::Loopback ? INADDR_LOOPBACK : INADDR_ANY);
      std::memcpy(&storage, &address, sizeof address);
    }
    if (::bind(socket, reinterpret_cast<const sockaddr*>(&storage), bytes) == 0 &&
        ::listen(socket, SOMAXCONN) == 0)
      return socket;
    const int error = errno;
    ::close(socket);
    errno = error;
  }
  return -1;
}

}  // namespace

Listener::Listener(Reach reach) : socket_(bound_socket(reach)) {
  sockaddr_storage storage{};
  socklen_t bytes = sizeof storage;
  if (socket_ < 0 || ::getsockname(socket_, reinterpret_cast<sockaddr*>(&storage), &bytes) != 0) {
    const std::string why = std::generic_category().message(errno);
    if (socket_ >= 0) ::close(socket_);
    throw Error(ExitCode::Internal, fmt::format("no port to listen on: {}", why),
                "see the limits of open files (ulimit -n) and of ports of this machine");
  }
  // The port is in the same place of both kinds of addresses.
  static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port));
  in_port_t port = 0;
  std::memcpy(&port, reinterpret_cast<const char*>(&storage) + offsetof(sockaddr_in, sin_port), sizeof port);
  port_ = ntohs(port);
}

Listener::~Listener() {
  if (socket_ >= 0) ::close(socket_);
}

}  // namespace octet
