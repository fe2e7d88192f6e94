#include "comm/exchange.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "tensor/tensor.h"

namespace octet {

static_assert(sizeof(OperationHead) == 24, "no padding: heads are compared and sent as bytes");

std::string text_of(const OperationHead& head) {
  static constexpr const char* kinds[] = {"barrier",    "all_reduce", "reduce_scatter",
                                          "all_gather", "all_to_all", "broadcast"};
  if (head.kind >= std::size(kinds) || head.dtype > static_cast<uint8_t>(DType::F64))
    return fmt::format("operation {} of an unknown kind", head.number);
  const auto dtype = static_cast<DType>(head.dtype);
  std::string text = fmt::format("operation {}, {}", head.number, kinds[head.kind]);
  if (head.kind == 0) return text;
  if (head.kind <= 2) text += head.reduction == 0 ? " sum" : " max";
  text += fmt::format(" of {} {}", head.bytes / size_of(dtype), name_of(dtype));
  if (head.kind == 5) text += fmt::format(" from rank {}", head.root);
  return text;
}

struct Exchange::Progress {
  PeerBytes left;
  OperationHead head;
  size_t head_sent = 0, head_received = 0;  // bytes; those of a whole head once heads are done
  bool sends() const { return head_sent < sizeof(OperationHead) || left.send_bytes > 0; }
  bool receives() const { return head_received < sizeof(OperationHead) || left.receive_bytes > 0; }
};

void Exchange::begin(const OperationHead& head) {
  head_ = head;
  first_ = true;
}

bool Exchange::send(size_t rank, Progress& progress) {
  std::array<iovec, 2> parts{};
  size_t count = 0;
  if (progress.head_sent < sizeof head_)
    parts[count++] = {reinterpret_cast<char*>(&head_) + progress.head_sent,
                      sizeof head_ - progress.head_sent};
  if (progress.left.send_bytes > 0)
    parts[count++] = {const_cast<std::byte*>(progress.left.send), progress.left.send_bytes};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = count;
  const ssize_t sent = sendmsg(sockets_[rank].fd(), &message, MSG_NOSIGNAL);
  if (sent < 0 && would_block(errno)) return false;
  if (sent < 0) gone(rank, strerror(errno));
  auto taken = static_cast<size_t>(sent);
  const size_t of_head = std::min(taken, sizeof head_ - progress.head_sent);
  progress.head_sent += of_head;
  taken -= of_head;
  progress.left.send += taken;
  progress.left.send_bytes -= taken;
  return true;
}

bool Exchange::receive(size_t rank, Progress& progress) {
  const bool of_head = progress.head_received < sizeof progress.head;
  void* const to = of_head
                       ? static_cast<void*>(reinterpret_cast<char*>(&progress.head) + progress.head_received)
                       : static_cast<void*>(progress.left.receive);
  const size_t want = of_head ? sizeof progress.head - progress.head_received : progress.left.receive_bytes;
  const ssize_t got = recv(sockets_[rank].fd(), to, want, 0);
  if (got < 0 && would_block(errno)) return false;
  if (got <= 0) gone(rank, got == 0 ? "closed" : strerror(errno));
  if (!of_head) {
    progress.left.receive += got;
    progress.left.receive_bytes -= static_cast<size_t>(got);
    return true;
  }
  progress.head_received += static_cast<size_t>(got);
  if (progress.head_received == sizeof progress.head && progress.head != head_) {
    const Error error(ExitCode::Internal,
                      fmt::format("ranks do different things: rank {} does {}, rank {} {}", control_.rank(),
                                  text_of(head_), rank, text_of(progress.head)),
                      "this is a mistake in octet: please report it with the configuration");
    control_.abort(error.what());
    throw error;
  }
  return true;
}

void Exchange::gone(size_t rank, const std::string& why) {
  control_.peer_gone(static_cast<int>(rank), fmt::format("its data connection to rank {} is gone ({}) in {}",
                                                         control_.rank(), why, text_of(head_)));
}

void Exchange::run(const std::vector<PeerBytes>& bytes) {
  const auto self = static_cast<size_t>(control_.rank());
  std::vector<Progress> all(sockets_.size());
  for (size_t r = 0; r < all.size(); ++r) {
    all[r].left = bytes[r];
    if (!first_) all[r].head_sent = all[r].head_received = sizeof(OperationHead);
  }
  first_ = false;
  std::vector<pollfd> polled;
  while (true) {
    polled.assign({{control_.failure_fd(), POLLIN, 0}, {stop_.fd(), POLLIN, 0}});
    bool got_on = false;
    // Beginning with the next rank, so that not all ranks send to the same one first.
    for (size_t i = 1; i < all.size(); ++i) {
      const size_t r = (self + i) % all.size();
      if (all[r].sends()) got_on = send(r, all[r]) || got_on;
      if (all[r].receives()) got_on = receive(r, all[r]) || got_on;
      const int events = (all[r].sends() ? POLLOUT : 0) | (all[r].receives() ? POLLIN : 0);
      if (events != 0) polled.push_back({sockets_[r].fd(), static_cast<short>(events), 0});
    }
    if (polled.size() == 2) break;
    poll(polled.data(), polled.size(), got_on ? 0 : -1);
    if (polled[0].revents != 0) control_.check();
    if (polled[1].revents != 0) throw Stopped{};
  }
  control_.progress();
}

}  // namespace octet
