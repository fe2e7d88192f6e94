// Bytes to and from all other ranks at once, over their data connections.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "comm/control_plane.h"
#include "comm/socket.h"

namespace octet {

// What an operation is; goes ahead of its data, so that ranks that do not do the same notice.
struct OperationHead {
  uint64_t number = 0;  // of the communicator's operations
  uint64_t bytes = 0;
  uint8_t kind = 0, reduction = 0, dtype = 0, unused = 0;
  int32_t root = 0;
  bool operator==(const OperationHead&) const = default;
};
std::string text_of(const OperationHead& head);  // "operation 7, all_reduce sum of 4096 F32"

// With one other rank.
struct PeerBytes {
  const std::byte* send = nullptr;
  size_t send_bytes = 0;
  std::byte* receive = nullptr;
  size_t receive_bytes = 0;
};

class Exchange {
 public:
  Exchange(ControlPlane& control, std::vector<Socket> sockets)
      : control_(control), sockets_(std::move(sockets)) {}

  // The next exchange is the first of an operation: heads go before the bytes, to and from every rank.
  void begin(const OperationHead& head);
  // Entry r is with rank r; this rank's own is ignored. Returns when all is sent (to the system) and
  // received. Throws Error(PeerLost) when the run fails, Error(Internal) when heads differ, Stopped after
  // stop().
  void run(const std::vector<PeerBytes>& bytes);
  void stop() { stop_.set(); }  // any thread

  struct Stopped {};

 private:
  struct Progress;
  bool send(size_t rank, Progress& progress);     // true: it got on
  bool receive(size_t rank, Progress& progress);  // true: it got on
  [[noreturn]] void gone(size_t rank, const std::string& why);

  ControlPlane& control_;
  std::vector<Socket> sockets_;
  WakeEvent stop_;
  OperationHead head_;
  bool first_ = false;
};

}  // namespace octet
