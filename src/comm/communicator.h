// Collectives over the ranks of a run.
//
// Tensors are device memory, without gaps. Operations are enqueued: one sees the results of everything the
// device was given before it and runs beside what the device is given after it, until wait(): what the device
// is given after that sees its result. Until then its tensors belong to it. Every rank calls the same
// operations with the same types and shapes in the same order.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "tensor/tensor.h"

namespace octet {

enum class Reduction : uint8_t { Sum, Max };

// What an operation is for; traffic is counted by it.
enum class TrafficKind : uint8_t { Gradients, Weights, Other };
inline constexpr size_t traffic_kinds = 3;

// What went over the wire since the run began.
struct Traffic {
  std::array<uint64_t, traffic_kinds> sent_bytes{};  // payload of collectives, by this rank, by kind
  double waited_seconds = 0;                         // the host or the device's queue stood still in wait()

  uint64_t sent(TrafficKind kind) const { return sent_bytes[static_cast<size_t>(kind)]; }
  uint64_t sent() const { return sent_bytes[0] + sent_bytes[1] + sent_bytes[2]; }
};

class Communicator {
 public:
  using Ticket = uint64_t;  // of one operation; tickets of one communicator rise

  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int ranks() const = 0;

  // buffer = reduction over the ranks, the same bits on every rank. Sum: F32, F64, BF16 (CPU ranks add in
  // FP32 in rank order and round once; NCCL rounds at every hop) and U64. Max: F32, and U32 (bits of floats
  // that are not negative); NaN wins a maximum.
  virtual Ticket all_reduce(const Tensor& buffer, Reduction reduction) = 0;
  // part [n] = piece `rank` of the reduction of whole [ranks * n]; `part` may be that piece of `whole`
  // itself, the rest of which is then unspecified.
  virtual Ticket reduce_scatter(const Tensor& part, const Tensor& whole, Reduction reduction) = 0;
  // whole [ranks * n] = the parts [n] in rank order; any type. `part` may be its piece of `whole` itself.
  virtual Ticket all_gather(const Tensor& whole, const Tensor& part) = 0;
  // Piece r of sent [ranks * n] arrives as piece `rank` of rank r's received [ranks * n]; any type.
  virtual Ticket all_to_all(const Tensor& received, const Tensor& sent) = 0;
  virtual Ticket broadcast(const Tensor& buffer, int root) = 0;

  // What the device is given from now on sees the results of this operation and of those before it.
  virtual void wait(Ticket ticket) = 0;
  // Of the host: returns when every rank has called it.
  virtual void barrier() = 0;

  virtual Traffic traffic() const = 0;

  TrafficKind traffic_kind() const { return traffic_kind_; }
  void set_traffic_kind(TrafficKind kind) { traffic_kind_ = kind; }  // of the operations given from now on

 private:
  TrafficKind traffic_kind_ = TrafficKind::Other;
};

// The kind of the operations given while it lives.
class TrafficLabel {
 public:
  TrafficLabel(Communicator& communicator, TrafficKind kind)
      : communicator_(communicator), former_(communicator.traffic_kind()) {
    communicator.set_traffic_kind(kind);
  }
  ~TrafficLabel() { communicator_.set_traffic_kind(former_); }
  TrafficLabel(const TrafficLabel&) = delete;
  TrafficLabel& operator=(const TrafficLabel&) = delete;

 private:
  Communicator& communicator_;
  TrafficKind former_;
};

}  // namespace octet
