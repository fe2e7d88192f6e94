#include "comm/gradient_reduction.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "base/error.h"
#include "base/random.h"
#include "numerics/block_codes.h"

namespace octet {
namespace {

// An all-reduce of codes goes on to its all-gather when as many reductions follow it: by then its exchange
// has had time.
constexpr size_t lag = 4;

size_t aligned(size_t bytes) {
  return (bytes + MemoryPlan::alignment - 1) / MemoryPlan::alignment * MemoryPlan::alignment;
}

DType wire_type(const GradientReduction::Options& o) {
  if (o.wire == GradientWire::FP8) return DType::U8;
  // Where the communicator does not add, a BF16 gradient gains nothing from a wider wire.
  const bool narrow = o.use == GradientReduction::Options::Use::AddOnto && o.gradient == DType::BF16;
  return o.wire == GradientWire::BF16 || narrow ? DType::BF16 : DType::F32;
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
      wire_type_(wire_type(options)) {
  if (options.gradient != DType::F32 && options.gradient != DType::BF16)
    refuse(fmt::format("gradients are F32 or BF16, not {}", name_of(options.gradient)));
  if (ranks == 1) return;
  size_t together = 0;
  for (const int64_t elements : options.together) together += scratch_bytes(elements);
  if (const size_t bytes = std::max(together, scratch_bytes(options.largest)); bytes > 0)
    ring_ = plan.add("gradient_reduction.ring", Category::Scratch, DType::U8, {static_cast<int64_t>(bytes)});
  if (!codes()) return;
  saturated_ = plan.add("gradient_reduction.saturated", Category::Scratch, DType::U32, {1});
  if (plan.measuring()) return;
  device_->zero(saturated_);
  saturated_host_ = static_cast<uint32_t*>(device_->allocate_host(sizeof(uint32_t)));
}

GradientReduction::~GradientReduction() {
  if (saturated_host_) device_->free_host(saturated_host_);
}

// ---- scratch

int64_t GradientReduction::piece_of(const Tensor& gradient) const {
  return (gradient.elements() + ranks_ - 1) / ranks_;
}
// This rank's piece, when the gradient is cut into pieces of piece_of(): the last ones may be short or empty.
Tensor GradientReduction::own_piece(const Tensor& gradient) const {
  const int64_t n = gradient.elements(), piece = piece_of(gradient);
  const int64_t begin = std::min(n, communicator_->rank() * piece);
  return gradient.slice(begin, std::min(piece, n - begin));
}

size_t GradientReduction::scratch_bytes(int64_t elements) const {
  if (!codes()) {
    const size_t values = aligned(static_cast<size_t>(elements) * size_of(wire_type_));
    return (direct() ? 0 : values) + (adds_onto() ? values : 0);  // sent, received
  }
  const int64_t piece = (elements + ranks_ - 1) / ranks_;
  const size_t messages = aligned(static_cast<size_t>(ranks_ * message_bytes(piece)));
  // A BF16 gradient has no room for its piece's sum.
  const size_t sum = options_.gradient == DType::F32 || adds_onto()
                         ? 0
                         : aligned(static_cast<size_t>(piece) * sizeof(float));
  return 2 * messages + sum;
}

// Room in the ring: behind the newest, or again at its beginning. What is there is finished first.
void GradientReduction::take_scratch(Flight& flight) {
  const size_t bytes = scratch_bytes(flight.gradient.elements());
  if (bytes == 0) return;
  flight.begin = top_ + bytes <= ring_.bytes() ? top_ : 0;
  flight.end = flight.begin + bytes;
  const auto in_the_way = [&](const Flight& other) {
    return other.begin < flight.end && flight.begin < other.end;
  };
  while (std::any_of(flights_.begin(), flights_.end(), in_the_way)) finish_oldest();
  top_ = flight.end;
  std::byte* next = static_cast<std::byte*>(ring_.data) + flight.begin;
  const auto cut = [&](DType dtype, const Shape& shape) {
    const Tensor tensor{next, dtype, shape};
    next += aligned(tensor.bytes());
    return tensor;
  };
  const int64_t piece = piece_of(flight.gradient);
  if (!codes()) {
    if (!direct()) flight.sent = cut(wire_type_, flight.gradient.shape);
    if (adds_onto()) flight.received = cut(wire_type_, {ranks_, piece});
    return;
  }
  flight.sent = cut(DType::U8, {ranks_, message_bytes(piece)});
  flight.received = cut(DType::U8, {ranks_, message_bytes(piece)});
  if (options_.gradient != DType::F32 && !adds_onto()) flight.sum = cut(DType::F32, {piece});
}

// ---- on the way

GradientReduction::Ticket GradientReduction::all_reduce(const Tensor& gradient, uint64_t step,
                                                        uint64_t tensor) {
  return start(
      {.kind = Kind::AllReduce, .gradient = gradient.flat(), .name = {.step = step, .tensor = tensor}});
}
GradientReduction::Ticket GradientReduction::reduce_scatter(const Tensor& gradient, uint64_t step,
                                                            uint64_t tensor) {
  if (gradient.elements() % ranks_ != 0)
    refuse(fmt::format("{} elements are no multiple of {} ranks", gradient.elements(), ranks_));
  return start(
      {.kind = Kind::ReduceScatter, .gradient = gradient.flat(), .name = {.step = step, .tensor = tensor}});
}

GradientReduction::Ticket GradientReduction::add_up_onto(const Tensor& sum, const Tensor& gradient,
                                                         uint64_t step, uint64_t tensor) {
  if (sum.dtype != DType::F32 || gradient.elements() != ranks_ * sum.elements())
    refuse(fmt::format("{} elements onto {} of {}, of {} ranks", gradient.elements(), sum.elements(),
                       name_of(sum.dtype), ranks_));
  return start({.kind = Kind::AddOnto,
                .gradient = gradient.flat(),
                .name = {.step = step, .tensor = tensor},
                .sum = sum.flat()});
}

GradientReduction::Ticket GradientReduction::start(Flight flight) {
  const Tensor& gradient = flight.gradient;
  if ((flight.kind == Kind::AddOnto) != adds_onto()) refuse("planned for sums of the other kind");
  if (gradient.dtype != options_.gradient || gradient.elements() > options_.largest)
    refuse(fmt::format("{} elements of {}, planned are at most {} of {}", gradient.elements(),
                       name_of(gradient.dtype), options_.largest, name_of(options_.gradient)));
  flight.ticket = ++given_;
  if (gradient.elements() == 0) return given_;
  if (ranks_ == 1) {
    Tensor alone = gradient;
    alone.shape = {1, gradient.elements()};
    if (adds_onto()) device_->add_in_order({.sum = flight.sum, .sources = alone});
    return given_;
  }
  take_scratch(flight);
  exchange(flight);
  flights_.push_back(flight);
  for (size_t i = 0; i + lag < flights_.size(); ++i) gather(flights_[i]);
  return given_;
}

void GradientReduction::exchange(Flight& flight) {
  const TrafficLabel label(*communicator_, TrafficKind::Gradients);
  if (codes())
    encode(flight, Stage::Scatter, flight.gradient);
  else if (direct())
    flight.sent = flight.gradient;
  else
    device_->copy(flight.sent, flight.gradient);
  if (codes() || adds_onto())
    flight.operation = communicator_->all_to_all(flight.received, flight.sent);
  else if (flight.kind == Kind::AllReduce)
    flight.operation = communicator_->all_reduce(flight.sent, Reduction::Sum);
  else
    flight.operation = communicator_->reduce_scatter(own_piece(flight.sent), flight.sent, Reduction::Sum);
}

// Scatter: the whole gradient, into all messages. Gather: this rank's piece, into its own.
void GradientReduction::encode(const Flight& flight, Stage stage, const Tensor& source) {
  const auto rank = static_cast<uint64_t>(communicator_->rank());
  const uint64_t who = flight.name.tensor << 32 | rank << 1 | (stage == Stage::Gather ? 1u : 0u);
  device_->encode_blocks(
      {.source = source,
       .messages = stage == Stage::Scatter ? flight.sent : flight.sent.slice(communicator_->rank(), 1),
       .piece = piece_of(flight.gradient),
       .log2_mu = state_.scale.log2_mu,
       .rounding_key = random_key(options_.seed, Purpose::GradientWire, who, flight.name.step),
       .saturated = saturated_});
  encoded_ +=
      static_cast<uint64_t>(stage == Stage::Scatter ? flight.gradient.elements() : piece_of(flight.gradient));
}

// This rank's piece of the sum, from the messages of all.
void GradientReduction::add_up(const Flight& flight, const Tensor& sum, bool onto) {
  communicator_->wait(flight.operation);
  Tensor messages = flight.received;
  messages.shape = {ranks_, 1, flight.received.columns()};
  device_->decode_blocks(
      {.messages = messages, .out = sum, .piece = piece_of(flight.gradient), .accumulate = onto});
}

void GradientReduction::gather(Flight& flight) {
  if (!codes() || flight.kind != Kind::AllReduce || flight.stage == Stage::Gather) return;
  Tensor sum = own_piece(flight.gradient);
  if (!flight.sum.empty()) sum = flight.sum.slice(0, sum.elements());
  add_up(flight, sum, false);
  const TrafficLabel label(*communicator_, TrafficKind::Gradients);
  encode(flight, Stage::Gather, sum);
  flight.operation = communicator_->all_gather(flight.sent, flight.sent.slice(communicator_->rank(), 1));
  flight.stage = Stage::Gather;
}

void GradientReduction::finish_oldest() {
  gather(flights_.front());
  const Flight flight = flights_.front();
  flights_.pop_front();
  const Tensor& gradient = flight.gradient;
  if (codes() && flight.kind != Kind::AllReduce)
    return add_up(flight, adds_onto() ? flight.sum : own_piece(gradient), adds_onto());
  communicator_->wait(flight.operation);
  if (adds_onto()) {
    device_->add_in_order({.sum = flight.sum, .sources = flight.received});
  } else if (codes()) {
    Tensor messages = flight.sent;
    messages.shape = {1, ranks_, flight.sent.columns()};
    device_->decode_blocks({.messages = messages, .out = gradient, .piece = piece_of(gradient)});
  } else if (!direct()) {
    if (flight.kind == Kind::AllReduce)
      device_->copy(gradient, flight.sent);
    else
      device_->copy(own_piece(gradient), own_piece(flight.sent));
  }
}

void GradientReduction::wait(Ticket ticket) {
  if (ticket > given_) refuse(fmt::format("wait for reduction {} of {}", ticket, given_));
  if (flights_.empty() || flights_.front().ticket > ticket) return;
  // Operations end in the order they were given: an all-gather waits for every exchange before it anyway.
  for (Flight& flight : flights_) gather(flight);
  while (!flights_.empty() && flights_.front().ticket <= ticket) finish_oldest();
}

// ---- the automatic scale

void GradientReduction::end_step() {
  if (!flights_.empty())
    refuse(fmt::format("the step ends, but reduction {} was not waited for", flights_.front().ticket));
  if (!codes() || ranks_ == 1) return;
  fetch_counter();
  const int encoded_log2_mu = state_.scale.log2_mu;
  if (state_.values > 0 && state_.counted_log2_mu == state_.scale.log2_mu)
    state_.scale.step(state_.saturated, state_.values);
  communicator_->wait(communicator_->all_reduce(saturated_, Reduction::Max));
  device_->download(saturated_host_, saturated_.data, sizeof(uint32_t));
  place_ = device_->mark();
  device_->zero(saturated_);
  state_.values = std::exchange(encoded_, 0);
  state_.counted_log2_mu = encoded_log2_mu;
}

// What was counted in the step that ended last.
void GradientReduction::fetch_counter() {
  if (!place_) return;
  device_->wait(*place_);
  place_.reset();
  state_.saturated = *saturated_host_;
}

GradientReduction::State GradientReduction::state() {
  fetch_counter();
  return state_;
}

void GradientReduction::restore(const State& state) {
  const AutomaticScale& scale = state.scale;
  if (scale.log2_mu < AutomaticScale::smallest_log2 || scale.log2_mu > -AutomaticScale::smallest_log2 ||
      scale.clean_steps < 0 || scale.clean_steps >= AutomaticScale::clean_steps_to_double)
    throw Error(ExitCode::Checkpoint,
                fmt::format("automatic scale of gradients: mu 2^{} after {} clean steps, expected at most "
                            "2^+-{} and {}",
                            scale.log2_mu, scale.clean_steps, -AutomaticScale::smallest_log2,
                            AutomaticScale::clean_steps_to_double - 1),
                "the checkpoint is damaged; resume from another");
  fetch_counter();
  state_ = state;
}

}  // namespace octet
