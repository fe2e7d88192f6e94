#include "comm/gradient_reduction.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace octet {
namespace {

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
size_t aligned(size_t bytes) {
  return (bytes + MemoryPlan::alignment - 1) / MemoryPlan::alignment * MemoryPlan::alignment;
}

DType wire_type(GradientWire wire) {
  return wire == GradientWire::FP32 ? DType::F32 : wire == GradientWire::BF16 ? DType::BF16 : DType::U8;
}

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ExitCode::Internal, "gradient reduction: " + what);
}

}  // namespace

GradientReduction::GradientReduction(Device* device, Communicator* communicator, int ranks,
                                     const Options& options, MemoryPlan& plan)
    : device_(device),
      communicator_(communicator),
      ranks_(ranks),
      options_(options),
      wire_type_(wire_type(options.wire)) {
  if (options.gradient != DType::F32 && options.gradient != DType::BF16)
    refuse(fmt::format("gradients are F32 or BF16, not {}", name_of(options.gradient)));
  if (options.wire == GradientWire::FP8) refuse("fp8 is not there yet");
  if (ranks > 1 && !direct())
    ring_ = plan.add("gradient_reduction.ring", Category::Scratch, DType::U8,
                     {static_cast<int64_t>(scratch_bytes(options.largest))});
}

GradientReduction::~GradientReduction() = default;

size_t GradientReduction::scratch_bytes(int64_t elements) const {
  return direct() ? 0 : aligned(static_cast<size_t>(elements) * size_of(wire_type_));
}

int64_t GradientReduction::piece_of(const Flight& flight) const {
  return divide_up(flight.gradient.elements(), ranks_);
}
Tensor GradientReduction::own_piece(const Tensor& whole) const {
  const int64_t piece = whole.elements() / ranks_;
  return whole.slice(communicator_->rank() * piece, piece);
}

// Room in the ring: behind the newest, or again at its beginning. What is there is finished first.
void GradientReduction::take(Flight& flight) {
  const size_t bytes = scratch_bytes(flight.gradient.elements());
  if (bytes == 0) return;
  flight.begin = top_ + bytes <= ring_.bytes() ? top_ : 0;
  flight.end = flight.begin + bytes;
  const auto in_the_way = [&](const Flight& other) {
    return other.begin < flight.end && flight.begin < other.end;
  };
  while (std::any_of(flights_.begin(), flights_.end(), in_the_way)) finish_oldest();
  top_ = flight.end;
}

GradientReduction::Ticket GradientReduction::all_reduce(const Tensor& gradient, uint64_t step,
                                                        uint64_t tensor) {
  return start({.ticket = given_ + 1,
                .kind = Kind::AllReduce,
                .gradient = gradient.flat(),
                .step = step,
                .tensor = tensor});
}
GradientReduction::Ticket GradientReduction::reduce_scatter(const Tensor& gradient, uint64_t step,
                                                            uint64_t tensor) {
  if (gradient.elements() % ranks_ != 0)
    refuse(fmt::format("{} elements are no multiple of {} ranks", gradient.elements(), ranks_));
  return start({.ticket = given_ + 1,
                .kind = Kind::ReduceScatter,
                .gradient = gradient.flat(),
                .step = step,
                .tensor = tensor});
}

GradientReduction::Ticket GradientReduction::start(Flight flight) {
  const Tensor& gradient = flight.gradient;
  if (gradient.dtype != options_.gradient || gradient.elements() > options_.largest)
    refuse(fmt::format("{} elements of {}, planned are at most {} of {}", gradient.elements(),
                       name_of(gradient.dtype), options_.largest, name_of(options_.gradient)));
  ++given_;
  if (ranks_ == 1 || gradient.elements() == 0) return given_;
  take(flight);
  flight.sent = gradient;
  if (!direct()) {
    flight.sent = {static_cast<std::byte*>(ring_.data) + flight.begin, wire_type_, gradient.shape};
    device_->copy(flight.sent, gradient);
  }
  flight.operation = flight.kind == Kind::AllReduce
                         ? communicator_->all_reduce(flight.sent, Reduction::Sum)
                         : communicator_->reduce_scatter(own_piece(flight.sent), flight.sent, Reduction::Sum);
  flights_.push_back(flight);
  return given_;
}

void GradientReduction::finish_oldest() {
  const Flight flight = flights_.front();
  flights_.pop_front();
  communicator_->wait(flight.operation);
  if (direct()) return;
  if (flight.kind == Kind::AllReduce)
    device_->copy(flight.gradient, flight.sent);
  else
    device_->copy(own_piece(flight.gradient), own_piece(flight.sent));
}

void GradientReduction::wait(Ticket ticket) {
  if (ticket > given_) refuse(fmt::format("wait for reduction {} of {}", ticket, given_));
  while (!flights_.empty() && flights_.front().ticket <= ticket) finish_oldest();
}

void GradientReduction::end_step() {
  if (!flights_.empty())
    refuse(fmt::format("the step ends, but reduction {} was not waited for", flights_.front().ticket));
}

GradientReduction::State GradientReduction::state() { return state_; }
void GradientReduction::restore(const State& state) { state_ = state; }

}  // namespace octet
