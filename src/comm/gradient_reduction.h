// Adds up gradients over the ranks, in the precision that the wire is given.
//
//   FP32  the communicator's sum of FP32 values; a BF16 gradient is widened into scratch first, and the sum
//         rounded to BF16 once.
//   BF16  values are rounded to BF16 once, then the communicator's sum of BF16: CPU ranks add in FP32 in rank
//         order and round once, NCCL rounds at every hop.
//   FP8   each rank encodes its gradient once, E4M3 in blocks of 256 with a power-of-two scale each,
//         stochastically; the codes are exchanged (all-to-all), decoded and added in FP32 in rank order by
//         the owner of a piece. reduce_scatter keeps that sum; all_reduce encodes it again for the
//         all-gather. Never NCCL's sum of FP8, which rounds to FP8 at every hop.  [2310.18313; 2407.02610]
//
// add_up_onto() is the sum of which gradients are shards too (ZeRO-2): each rank's piece is exchanged
// all-to-all in the wire's type and added in FP32, in rank order, onto what the owner has. Nothing else is
// rounded, by no communicator: where the wire is as wide as the gradient, it is the sum of one process over
// the same gradients, to the bit.
//
// With one rank nothing is sent and nothing is rounded. A value that is not finite, on any rank, arrives as
// one that is not finite (FP8: it makes its block NaN). Error bounds: docs/numerics.md.
//
// Reductions overlap with what the device is given after them, as those of a Communicator do, as long as the
// scratch has room: it is a ring, as large as the largest gradient needs, and the oldest are finished first.
// Bytes an element of that: 0 where gradient and wire have one type, else 4 (FP32), 2 (BF16), 2.01 (FP8; a
// BF16 gradient 4 / ranks more). To add onto: those of the narrower of both types, twice where the wire is.
// Every rank makes the same calls, waits included, in the same order.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "comm/automatic_scale.h"
#include "comm/communicator.h"
#include "device/device.h"
#include "tensor/memory_plan.h"

namespace octet {

enum class GradientWire : uint8_t { FP32, BF16, FP8 };

class GradientReduction {
 public:
  using Ticket = Communicator::Ticket;  // of this object, for its wait(); rising
  struct Options {
    GradientWire wire = GradientWire::BF16;
    uint64_t seed = 0;            // of stochastic rounding
    DType gradient = DType::F32;  // F32 or BF16
    int64_t largest = 0;          // elements of the largest gradient
    enum class Use : uint8_t {
      Reduce,
      AddOnto
    } use = Use::Reduce;                 // all_reduce and reduce_scatter, or add_up_onto
    std::vector<int64_t> together = {};  // elements of gradients that the ring has room for at once
  };
  // What a checkpoint keeps; the same on all ranks. Only FP8 changes it. The newest step's count is judged at
  // the end of the next step, so that nobody waits for the device, unless mu was halved meanwhile.
  struct State {
    AutomaticScale scale;
    // Of the newest step: the most on a rank, of how many, with which mu.
    uint64_t saturated = 0, values = 0;
    int counted_log2_mu = 0;
    bool operator==(const State&) const = default;
  };

  // Plans its scratch; nothing is allocated later but 4 bytes of host memory here. While measuring, device
  // and communicator may be null. Both outlive it.
  GradientReduction(Device* device, Communicator* communicator, int ranks, const Options& options,
                    MemoryPlan& plan);
  ~GradientReduction();
  GradientReduction(const GradientReduction&) = delete;
  GradientReduction& operator=(const GradientReduction&) = delete;

  // gradient = its sum over the ranks, the same bits on every rank. `step` and `tensor` (below 2^32) name the
  // gradient for its random numbers. The gradient is this object's until wait().
  Ticket all_reduce(const Tensor& gradient, uint64_t step, uint64_t tensor);
  // Piece `rank` of the gradient, whose elements are a multiple of the ranks, is the sum afterwards; the rest
  // is unspecified.
  Ticket reduce_scatter(const Tensor& gradient, uint64_t step, uint64_t tensor);
  // sum (F32 [n / ranks]) = ((sum + piece `rank` of rank 0's gradient) + of rank 1's) + ...
  Ticket add_up_onto(const Tensor& sum, const Tensor& gradient, uint64_t step, uint64_t tensor);
  // What the device is given from now on sees the sum, and those of the reductions before. THIS wait(), not
  // the communicator's: the sum is put together here. Waiting for the newest one is quicker than for each in
  // turn.
  void wait(Ticket ticket);

  // Once a step. Error(Internal) when a reduction was not waited for.
  void end_step();
  State state();
  void restore(const State& state);  // Error(Checkpoint) when it is none

 private:
  enum class Kind : uint8_t { AllReduce, ReduceScatter, AddOnto };
  enum class Stage : uint8_t { Scatter, Gather };
  struct Name {
    uint64_t step, tensor;
  };
  struct Flight {  // a reduction under way
    Kind kind;
    Tensor gradient;  // [n]
    Name name;
    Ticket ticket = 0;
    size_t begin = 0, end = 0;  // bytes of the ring
    // FP8: messages [ranks, message_bytes(piece)]. Else `sent` is the gradient in the wire's type.
    Tensor sent = {}, received = {};
    Tensor sum = {};  // F32 [piece] or empty: what is added onto; FP8 of a BF16 gradient
    Stage stage = Stage::Scatter;
    Communicator::Ticket operation = 0;
  };

  bool codes() const { return options_.wire == GradientWire::FP8; }
  bool adds_onto() const { return options_.use == Options::Use::AddOnto; }
  bool direct() const { return options_.gradient == wire_type_; }
  int64_t piece_of(const Tensor& gradient) const;
  Tensor own_piece(const Tensor& gradient) const;
  size_t scratch_bytes(int64_t elements) const;
  void take_scratch(Flight& flight);
  void exchange(Flight& flight);
  Ticket start(Flight flight);
  void encode(const Flight& flight, Stage stage, const Tensor& source);
  void add_up(const Flight& flight, const Tensor& sum, bool onto);
  void gather(Flight& flight);  // an all-reduce of codes: Scatter -> Gather
  void finish_oldest();
  void fetch_counter();

  Device* const device_;
  Communicator* const communicator_;
  const int ranks_;
  const Options options_;
  const DType wire_type_;
  Tensor ring_;  // U8
  size_t top_ = 0;
  std::deque<Flight> flights_;
  Ticket given_ = 0;

  // FP8 only.
  State state_;
  uint64_t encoded_ = 0;  // values, of this step; at most on a rank
  Tensor saturated_;      // U32 [1], of this step
  uint32_t* saturated_host_ = nullptr;
  std::optional<uint64_t> place_;  // in the device's queue, behind the download; none: state_ has it
};

}  // namespace octet
