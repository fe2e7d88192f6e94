#include "comm/cpu_communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/error.h"
#include "comm/rank_order.h"

namespace octet {
namespace {

// Of one rank's values in flight at once: bounds the scratch memory, and what is summed is still in the
// cache.
constexpr size_t chunk_bytes = size_t{256} << 10;
// Smaller broadcasts go directly from the root to everybody.
constexpr size_t direct_broadcast_bytes = size_t{64} << 10;

std::byte* bytes_of(const Tensor& tensor) { return static_cast<std::byte*>(tensor.data); }

// Begins of `pieces` nearly equal pieces of n elements, and the end; in bytes.
std::vector<size_t> split(int64_t n, int pieces, size_t element_bytes) {
  std::vector<size_t> begins;
  for (int64_t p = 0; p <= pieces; ++p) begins.push_back(static_cast<size_t>(n * p / pieces) * element_bytes);
  return begins;
}

void require(bool condition, const std::string& what) {
  if (!condition) throw Error(ExitCode::Internal, what);
}

}  // namespace

CpuCommunicator::CpuCommunicator(ControlPlane& control, Device& device, const CpuCommunicatorOptions& options)
    : control_(control),
      device_(device),
      staged_(options.staging == CpuCommunicatorOptions::Staging::Always || !device.info().uses_host_memory ||
              device.info().asynchronous),
      exchange_(control, connect_ranks(control, options.transport)),
      thread_(&CpuCommunicator::work, this) {}

CpuCommunicator::~CpuCommunicator() {
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  exchange_.stop();
  changed_.notify_all();
  thread_.join();
}

Communicator::Ticket CpuCommunicator::all_reduce(const Tensor& buffer, Reduction reduction) {
  require(can_reduce(buffer.dtype, reduction), fmt::format("all_reduce of {}", name_of(buffer.dtype)));
  return give({.kind = Kind::AllReduce, .out = buffer, .in = buffer, .reduction = reduction});
}
Communicator::Ticket CpuCommunicator::reduce_scatter(const Tensor& part, const Tensor& whole,
                                                     Reduction reduction) {
  require(can_reduce(whole.dtype, reduction), fmt::format("reduce_scatter of {}", name_of(whole.dtype)));
  require(part.dtype == whole.dtype && part.elements() * ranks() == whole.elements(),
          fmt::format("reduce_scatter of {} elements into {}", whole.elements(), part.elements()));
  return give({.kind = Kind::ReduceScatter, .out = part, .in = whole, .reduction = reduction});
}
Communicator::Ticket CpuCommunicator::all_gather(const Tensor& whole, const Tensor& part) {
  require(part.dtype == whole.dtype && part.elements() * ranks() == whole.elements(),
          fmt::format("all_gather of {} elements into {}", part.elements(), whole.elements()));
  return give({.kind = Kind::AllGather, .out = whole, .in = part});
}
Communicator::Ticket CpuCommunicator::all_to_all(const Tensor& received, const Tensor& sent) {
  require(received.dtype == sent.dtype && received.elements() == sent.elements() &&
              sent.elements() % ranks() == 0,
          fmt::format("all_to_all of {} elements into {}", sent.elements(), received.elements()));
  return give({.kind = Kind::AllToAll, .out = received, .in = sent});
}
Communicator::Ticket CpuCommunicator::broadcast(const Tensor& buffer, int root) {
  require(root >= 0 && root < ranks(), fmt::format("broadcast from rank {} of {}", root, ranks()));
  return give({.kind = Kind::Broadcast, .out = buffer, .in = buffer, .root = root});
}
void CpuCommunicator::barrier() { wait(give({.kind = Kind::Barrier, .out = {}, .in = {}})); }

Communicator::Ticket CpuCommunicator::give(const Request& request) {
  // The host copies of earlier results must be on the device before it is read.
  if (staged_ && given_ > 0) wait(given_);
  Operation operation;
  operation.head = {.number = given_ + 1,
                    .bytes = std::max(request.in.bytes(), request.out.bytes()),
                    .kind = static_cast<uint8_t>(request.kind),
                    .reduction = static_cast<uint8_t>(request.reduction),
                    .dtype = static_cast<uint8_t>(request.out.dtype),
                    .unused = 0,
                    .root = request.root};
  operation.traffic = traffic_kind();
  operation.out = request.out;
  operation.in = request.in;
  if (staged_) stage(operation);
  const std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(error_);
  queue_.push_back(std::move(operation));
  changed_.notify_all();
  return ++given_;
}

void CpuCommunicator::stage(Operation& operation) {
  const auto on_host = [&](const Tensor& tensor) {
    Tensor host = tensor;
    operation.staging.push_back(std::make_unique<std::byte[]>(std::max<size_t>(tensor.bytes(), 1)));
    host.data = operation.staging.back().get();
    return host;
  };
  const Tensor source = operation.in;
  operation.target = operation.out;
  // all_reduce and broadcast; others have a result of another size, whose other parts nobody reads.
  const bool in_place = source.data == operation.target.data && source.bytes() == operation.target.bytes();
  operation.in = on_host(source);
  if (source.bytes() > 0) device_.copy_to_host(operation.in.data, source.data, source.bytes());
  operation.out = in_place ? operation.in : on_host(operation.target);
}

void CpuCommunicator::wait(Ticket ticket) {
  std::deque<Operation> ready;
  {
    std::unique_lock lock(mutex_);
    require(ticket <= given_, fmt::format("wait for operation {} of {}", ticket, given_));
    if (done_ < ticket && !error_) {
      const double began = monotonic_seconds();
      const std::string what = text_of(queue_.front().head);
      lock.unlock();
      {
        const ControlPlane::Waiting waiting(control_, what);
        lock.lock();
        changed_.wait(lock, [&] { return done_ >= ticket || error_; });
        lock.unlock();
      }
      lock.lock();
      traffic_.waited_seconds += monotonic_seconds() - began;
    }
    if (done_ < ticket) std::rethrow_exception(error_);
    ready.swap(staged_done_);
  }
  for (const Operation& operation : ready)
    if (operation.out.bytes() > 0)
      device_.copy_from_host(operation.target.data, operation.out.data, operation.out.bytes());
}

Traffic CpuCommunicator::traffic() const {
  const std::lock_guard lock(mutex_);
  return traffic_;
}

void CpuCommunicator::work() {
  std::unique_lock lock(mutex_);
  try {
    while (true) {
      changed_.wait(lock, [&] { return leaving_ || !queue_.empty(); });
      if (leaving_) return;
      const Operation& operation = queue_.front();  // stays where it is while others are added
      lock.unlock();
      run(operation);
      lock.lock();
      if (staged_ && operation.kind() != Kind::Barrier) staged_done_.push_back(std::move(queue_.front()));
      queue_.pop_front();
      ++done_;
      changed_.notify_all();
    }
  } catch (const Exchange::Stopped&) {
    return;  // the destructor waits
  } catch (const std::exception& error) {
    control_.abort(error.what());  // unless the run has failed already: that is what was thrown
    if (!lock.owns_lock()) lock.lock();
    error_ = std::current_exception();
    changed_.notify_all();
  }
}

void CpuCommunicator::exchange(const std::vector<PeerBytes>& bytes) {
  exchange_.run(bytes);
  const std::lock_guard lock(mutex_);
  for (size_t r = 0; r < bytes.size(); ++r) {
    if (r == static_cast<size_t>(rank())) continue;
    traffic_.sent_bytes[static_cast<size_t>(under_way_)] += bytes[r].send_bytes;
  }
}

void CpuCommunicator::run(const Operation& operation) {
  exchange_.begin(operation.head);
  under_way_ = operation.traffic;
  const auto self = static_cast<size_t>(rank());
  std::byte* const out = bytes_of(operation.out);
  const std::byte* const in = bytes_of(operation.in);
  const size_t element = size_of(operation.out.dtype);
  switch (operation.kind()) {
    case Kind::Barrier:
      exchange(std::vector<PeerBytes>(static_cast<size_t>(ranks())));
      break;
    case Kind::AllReduce:
      reduce(operation);
      gather_pieces(out, split(operation.out.elements(), ranks(), element));
      break;
    case Kind::ReduceScatter:
      reduce(operation);
      break;
    case Kind::AllGather: {
      const std::vector<size_t> begins = split(operation.out.elements(), ranks(), element);
      if (out + begins[self] != in) std::memcpy(out + begins[self], in, operation.in.bytes());
      gather_pieces(out, begins);
      break;
    }
    case Kind::AllToAll: {
      const size_t piece = operation.in.bytes() / static_cast<size_t>(ranks());
      std::vector<PeerBytes> bytes(static_cast<size_t>(ranks()));
      for (size_t r = 0; r < bytes.size(); ++r)
        bytes[r] = {
            .send = in + r * piece, .send_bytes = piece, .receive = out + r * piece, .receive_bytes = piece};
      std::memcpy(out + self * piece, in + self * piece, piece);
      exchange(bytes);
      break;
    }
    case Kind::Broadcast:
      broadcast_from(operation);
      break;
  }
}

// This rank's piece of the reduction: into its place in the tensor (all_reduce), or into `out`
// (reduce_scatter).
void CpuCommunicator::reduce(const Operation& operation) {
  const auto self = static_cast<size_t>(rank()), count = static_cast<size_t>(ranks());
  const size_t element = size_of(operation.in.dtype);
  std::byte* const whole = bytes_of(operation.in);
  const std::vector<size_t> begins = split(operation.in.elements(), ranks(), element);
  std::byte* const result =
      operation.kind() == Kind::AllReduce ? whole + begins[self] : bytes_of(operation.out);
  size_t longest = 0;
  for (size_t r = 0; r < count; ++r) longest = std::max(longest, begins[r + 1] - begins[r]);
  // The part of piece r that chunk [at, at + chunk_bytes) covers.
  const auto part = [&](size_t r, size_t at) {
    return std::min(begins[r + 1] - begins[r], at + chunk_bytes) - std::min(begins[r + 1] - begins[r], at);
  };
  scratch_.resize(std::max(scratch_.size(), (count - 1) * std::min(longest, chunk_bytes)));
  for (size_t at = 0; at < longest || at == 0; at += chunk_bytes) {
    const size_t mine = part(self, at);
    std::vector<PeerBytes> bytes(count);
    std::vector<const void*> sources(count, whole + begins[self] + at);
    std::byte* next = scratch_.data();
    for (size_t r = 0; r < count; ++r) {
      if (r == self) continue;
      bytes[r] = {
          .send = whole + begins[r] + at, .send_bytes = part(r, at), .receive = next, .receive_bytes = mine};
      sources[r] = next;
      next += mine;
    }
    exchange(bytes);
    if (mine > 0)
      reduce_in_rank_order(operation.in.dtype, operation.reduction(), sources, result + at,
                           static_cast<int64_t>(mine / element));
  }
}

void CpuCommunicator::gather_pieces(std::byte* whole, const std::vector<size_t>& begins, int without) {
  const auto self = static_cast<size_t>(rank());
  std::vector<PeerBytes> bytes(static_cast<size_t>(ranks()));
  for (size_t r = 0; r < bytes.size(); ++r)
    if (rank() != without && static_cast<int>(r) != without)
      bytes[r] = {.send = whole + begins[self],
                  .send_bytes = begins[self + 1] - begins[self],
                  .receive = whole + begins[r],
                  .receive_bytes = begins[r + 1] - begins[r]};
  exchange(bytes);
}

// Large: the root deals out pieces to the others, and these exchange them. The root sends the tensor once.
void CpuCommunicator::broadcast_from(const Operation& operation) {
  if (ranks() == 1) return;
  const int root = operation.head.root;
  std::byte* const data = bytes_of(operation.out);
  const size_t total = operation.out.bytes();
  const bool direct = total < direct_broadcast_bytes || ranks() == 2;
  std::vector<size_t> begins{0};  // the root's piece is empty
  for (int r = 0, other = 0; r < ranks(); ++r) {
    if (r != root) ++other;
    begins.push_back(total * static_cast<size_t>(other) / static_cast<size_t>(ranks() - 1));
  }
  std::vector<PeerBytes> bytes(static_cast<size_t>(ranks()));
  const auto self = static_cast<size_t>(rank());
  if (rank() == root) {
    for (size_t r = 0; r < bytes.size(); ++r)
      bytes[r].send = direct ? data : data + begins[r],
      bytes[r].send_bytes = direct ? total : begins[r + 1] - begins[r];
  } else {
    PeerBytes& from = bytes[static_cast<size_t>(root)];
    from.receive = direct ? data : data + begins[self];
    from.receive_bytes = direct ? total : begins[self + 1] - begins[self];
  }
  exchange(bytes);
  if (!direct) gather_pieces(data, begins, root);
}

}  // namespace octet
