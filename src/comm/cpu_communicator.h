// Collectives between processes on CPUs, over sockets.
//
// Every sum is made once, in rank order and in FP32 (F64 for F64), by the rank that owns the piece, and then
// passed on: the same bits on every rank and in every run. Reduce-scatter and all-gather move each value once
// a rank, (R - 1) / R of the tensor each way; all-reduce is one after the other. A thread runs the operations
// in order beside the caller.
//
// With a GPU, whose memory sockets cannot reach, tensors are copied to the host when an operation is given
// and back in wait(): nothing overlaps. That is for tests, and for GPUs without NCCL.
#pragma once
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "comm/communicator.h"
#include "comm/control_plane.h"
#include "comm/data_mesh.h"
#include "comm/exchange.h"
#include "device/device.h"

namespace octet {

struct CpuCommunicatorOptions {
  DataTransport transport = DataTransport::Auto;
  // Auto: when the device says that its memory is not the host's.
  enum class Staging : uint8_t { Auto, Always } staging = Staging::Auto;
};

class CpuCommunicator final : public Communicator {
 public:
  // Collective over the ranks. Both outlive it.
  CpuCommunicator(ControlPlane& control, Device& device, const CpuCommunicatorOptions& options = {});
  // Operations nobody waited for are given up, and their peers with them.
  ~CpuCommunicator() override;

  int rank() const override { return control_.rank(); }
  int ranks() const override { return control_.ranks(); }
  Ticket all_reduce(const Tensor& buffer, Reduction reduction) override;
  Ticket reduce_scatter(const Tensor& part, const Tensor& whole, Reduction reduction) override;
  Ticket all_gather(const Tensor& whole, const Tensor& part) override;
  Ticket all_to_all(const Tensor& received, const Tensor& sent) override;
  Ticket broadcast(const Tensor& buffer, int root) override;
  // Error(PeerLost) with who, where and why when the run has failed.
  void wait(Ticket ticket) override;
  void barrier() override;
  Traffic traffic() const override;

 private:
  enum class Kind : uint8_t { Barrier, AllReduce, ReduceScatter, AllGather, AllToAll, Broadcast };
  struct Operation {
    OperationHead head;
    TrafficKind traffic;
    Tensor out, in;  // of the host
    // A GPU's: `out` goes to `target`; the host memory is the operation's own.
    Tensor target;
    std::vector<std::unique_ptr<std::byte[]>> staging;
    Kind kind() const { return static_cast<Kind>(head.kind); }
    Reduction reduction() const { return static_cast<Reduction>(head.reduction); }
  };

  struct Request {
    Kind kind;
    Tensor out, in;
    Reduction reduction = Reduction::Sum;
    int root = 0;
  };
  Ticket give(const Request& request);
  void stage(Operation& operation);
  void work();  // the thread
  void run(const Operation& operation);
  void reduce(const Operation& operation);
  // Piece r of `whole` [ranks pieces] is `begin(r)` to `begin(r + 1)`; this rank's is in place.
  void gather_pieces(std::byte* whole, const std::vector<size_t>& begins, int without = -1);
  void broadcast_from(const Operation& operation);
  void exchange(const std::vector<PeerBytes>& bytes);

  ControlPlane& control_;
  Device& device_;
  const bool staged_;
  Exchange exchange_;
  std::vector<std::byte> scratch_;              // the thread's: what the others sent of a piece
  TrafficKind under_way_ = TrafficKind::Other;  // the thread's: of the operation it runs

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Operation> queue_;  // given, the first may be running
  std::deque<Operation> staged_done_;
  Ticket given_ = 0, done_ = 0;
  bool leaving_ = false;
  std::exception_ptr error_;
  Traffic traffic_;
  std::thread thread_;
};

}  // namespace octet
