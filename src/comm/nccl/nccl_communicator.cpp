#include "comm/nccl/nccl_communicator.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "comm/nccl/arguments.h"
#include "comm/nccl/handle.h"
#include "device/cuda/library.h"
#include "device/cuda/runtime.h"

namespace octet {
namespace {

constexpr auto watch_interval = std::chrono::milliseconds(50);

// A stream whose kernels go before those of others that wait for a processor: communication must not queue up
// behind the products it runs beside.
class PriorityStream {
 public:
  PriorityStream() {
    int least = 0, greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for stream priorities");
    check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest), "a CUDA stream");
  }
  ~PriorityStream() { cudaStreamDestroy(stream_); }
  PriorityStream(const PriorityStream&) = delete;
  PriorityStream& operator=(const PriorityStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

bool has_passed(cudaEvent_t event) {
  if (cudaEventQuery(event) == cudaSuccess) return true;
  cudaGetLastError();  // "not ready" is an answer; no later call must see it as an error
  return false;
}

// How long a stream stands still in waits, measured on the GPU; some waits are left out when many are under
// way.
class StreamStalls {
 public:
  ~StreamStalls() {
    for (const Pair& pair : pairs_) {
      cudaEventDestroy(pair.begin);
      cudaEventDestroy(pair.end);
    }
  }
  void wait(cudaStream_t stream, cudaEvent_t event) {
    collect();
    if (under_way_.size() == most && free_.empty()) {
      check_cuda(cudaStreamWaitEvent(stream, event, 0), "waiting for a collective");
      return;
    }
    const size_t pair = take();
    check_cuda(cudaEventRecord(pairs_[pair].begin, stream), "recording an event");
    check_cuda(cudaStreamWaitEvent(stream, event, 0), "waiting for a collective");
    check_cuda(cudaEventRecord(pairs_[pair].end, stream), "recording an event");
    under_way_.push_back(pair);
  }
  double seconds() {
    collect();
    return seconds_;
  }

 private:
  static constexpr size_t most = 256;
  struct Pair {
    cudaEvent_t begin = nullptr, end = nullptr;
  };
  size_t take() {
    if (free_.empty()) {
      Pair& pair = pairs_.emplace_back();
      check_cuda(cudaEventCreate(&pair.begin), "a CUDA event");
      check_cuda(cudaEventCreate(&pair.end), "a CUDA event");
      return pairs_.size() - 1;
    }
    const size_t pair = free_.back();
    free_.pop_back();
    return pair;
  }
  void collect() {
    while (!under_way_.empty() && has_passed(pairs_[under_way_.front()].end)) {
      const Pair& pair = pairs_[under_way_.front()];
      float milliseconds = 0;
      if (cudaEventElapsedTime(&milliseconds, pair.begin, pair.end) == cudaSuccess)
        seconds_ += milliseconds * 1e-3;
      free_.push_back(under_way_.front());
      under_way_.pop_front();
    }
  }

  std::vector<Pair> pairs_;
  std::vector<size_t> free_;
  std::deque<size_t> under_way_;
  double seconds_ = 0;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(ControlPlane& control, Device& device)
      : control_(control),
        device_stream_(static_cast<cudaStream_t>(device.queue())),
        nccl_(open_nccl()),
        handle_(nccl_, control) {
    check_cuda(cudaGetDevice(&gpu_), "asking for the GPU in use");
    watchdog_ = std::thread(&NcclCommunicator::watch, this);
  }

  ~NcclCommunicator() override {
    {
      const std::lock_guard lock(mutex_);
      leaving_ = true;
    }
    changed_.notify_all();
    watchdog_.join();
  }

  int rank() const override { return control_.rank(); }
  int ranks() const override { return control_.ranks(); }

  Ticket all_reduce(const Tensor& buffer, Reduction reduction) override {
    const ncclDataType_t type = nccl_reduced_type(buffer.dtype, reduction);
    const ncclRedOp_t op = nccl_operator(reduction);
    const Operation operation{"all_reduce", buffer.bytes(), all_reduce_traffic(buffer.bytes(), ranks())};
    return give(operation, [&](ncclComm_t comm) {
      return nccl_.ncclAllReduce(buffer.data, buffer.data, count_of(buffer), type, op, comm, stream_.get());
    });
  }
  Ticket reduce_scatter(const Tensor& part, const Tensor& whole, Reduction reduction) override {
    require_pieces(part, whole);
    const ncclDataType_t type = nccl_reduced_type(whole.dtype, reduction);
    const ncclRedOp_t op = nccl_operator(reduction);
    const Operation operation{"reduce_scatter", whole.bytes(),
                              reduce_scatter_traffic(whole.bytes(), ranks())};
    return give(operation, [&](ncclComm_t comm) {
      return nccl_.ncclReduceScatter(whole.data, part.data, count_of(part), type, op, comm, stream_.get());
    });
  }
  // What is only moved is moved as bytes: any type, on any GPU.
  Ticket all_gather(const Tensor& whole, const Tensor& part) override {
    require_pieces(part, whole);
    const Operation operation{"all_gather", whole.bytes(), reduce_scatter_traffic(whole.bytes(), ranks())};
    return give(operation, [&](ncclComm_t comm) {
      return nccl_.ncclAllGather(part.data, whole.data, part.bytes(), ncclUint8, comm, stream_.get());
    });
  }
  Ticket all_to_all(const Tensor& received, const Tensor& sent) override {
    if (received.bytes() != sent.bytes() || sent.elements() % ranks() != 0)
      throw Error(ExitCode::Internal,
                  fmt::format("all_to_all of {} elements into {}", sent.elements(), received.elements()));
    const size_t piece = sent.bytes() / static_cast<size_t>(ranks());
    const Operation operation{"all_to_all", sent.bytes(), reduce_scatter_traffic(sent.bytes(), ranks())};
    return give(operation, [&](ncclComm_t comm) {
      const auto* from = static_cast<const std::byte*>(sent.data);
      auto* to = static_cast<std::byte*>(received.data);
      ncclResult_t first = nccl_.ncclGroupStart();
      const auto keep_first = [&](ncclResult_t result) {
        if (first == ncclSuccess || first == ncclInProgress) first = result;
      };
      for (int r = 0; r < ranks(); ++r) {
        keep_first(
            nccl_.ncclSend(from + static_cast<size_t>(r) * piece, piece, ncclUint8, r, comm, stream_.get()));
        keep_first(
            nccl_.ncclRecv(to + static_cast<size_t>(r) * piece, piece, ncclUint8, r, comm, stream_.get()));
      }
      keep_first(nccl_.ncclGroupEnd());  // always: a group left open would swallow what follows
      return first;
    });
  }
  Ticket broadcast(const Tensor& buffer, int root) override {
    const Operation operation{"broadcast", buffer.bytes(), rank() == root ? buffer.bytes() : 0};
    return give(operation, [&](ncclComm_t comm) {
      return nccl_.ncclBroadcast(buffer.data, buffer.data, buffer.bytes(), ncclUint8, root, comm,
                                 stream_.get());
    });
  }

  void wait(Ticket ticket) override {
    control_.check();
    const std::lock_guard lock(mutex_);
    // Operations end in order: the newest up to this one stands for all of them. None: they have ended.
    for (auto flight = flights_.rbegin(); flight != flights_.rend(); ++flight)
      if ((*flight)->ticket <= ticket) {
        stalls_.wait(device_stream_, (*flight)->done.get());
        return;
      }
  }
  void barrier() override { control_.barrier(fmt::format("NCCL barrier {}", ++barriers_)); }

  Traffic traffic() const override {
    const std::lock_guard lock(mutex_);
    Traffic traffic = traffic_;
    traffic.waited_seconds = stalls_.seconds();
    return traffic;
  }

 private:
  struct Operation {
    const char* name;
    size_t bytes;
    uint64_t traffic;
  };
  // One that is on the streams.
  struct Flight {
    Ticket ticket = 0;
    std::string what;
    CudaEvent ready, done;        // its input is there; it has ended
    std::optional<double> began;  // the watchdog saw its input there
  };

  static size_t count_of(const Tensor& tensor) { return static_cast<size_t>(tensor.elements()); }
  void require_pieces(const Tensor& part, const Tensor& whole) const {
    if (part.dtype != whole.dtype || part.elements() * ranks() != whole.elements())
      throw Error(ExitCode::Internal,
                  fmt::format("{} elements are not {} times {}", whole.elements(), ranks(), part.elements()));
  }

  template <class Call>
  Ticket give(const Operation& operation, const Call& call) {
    control_.check();
    const Ticket ticket = ++given_;
    if (operation.bytes == 0) return ticket;
    std::unique_ptr<Flight> flight = take_flight();
    flight->ticket = ticket;
    flight->what = fmt::format("operation {}, {} of {} bytes", ticket, operation.name, operation.bytes);
    flight->began.reset();
    flight->ready.record(device_stream_);
    check_cuda(cudaStreamWaitEvent(stream_.get(), flight->ready.get(), 0), "a collective's input");
    handle_.issue(flight->what, call);
    flight->done.record(stream_.get());
    const std::lock_guard lock(mutex_);
    flights_.push_back(std::move(flight));
    traffic_.sent_bytes[static_cast<size_t>(traffic_kind())] += operation.traffic;
    return ticket;
  }
  std::unique_ptr<Flight> take_flight() {
    const std::lock_guard lock(mutex_);
    if (landed_.empty()) return std::make_unique<Flight>();
    std::unique_ptr<Flight> flight = std::move(landed_.back());
    landed_.pop_back();
    return flight;
  }

  void watch() {
    // A thread begins with GPU 0, on which this rank's calls would make a context.
    if (const cudaError_t error = cudaSetDevice(gpu_); error != cudaSuccess) {
      control_.abort(fmt::format("NCCL's watchdog cannot use GPU {}: {}", gpu_, cudaGetErrorString(error)),
                     ExitCode::Hardware);
      handle_.abort();
      return;
    }
    std::optional<ControlPlane::Waiting> waiting;
    Ticket waits_for = 0;
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, watch_interval, [&] { return leaving_; })) {
      lock.unlock();
      const bool failed = control_.failure().has_value() || has_failed();
      lock.lock();
      if (failed) {
        lock.unlock();
        waiting.reset();
        handle_.abort();
        return;
      }
      land();
      // The rank waits for others while the oldest operation has its input and does not end.
      Flight* const oldest = flights_.empty() ? nullptr : flights_.front().get();
      const bool waits = oldest != nullptr && is_stuck(*oldest);
      const std::string what = waits ? oldest->what : std::string();
      const Ticket ticket = waits ? oldest->ticket : 0;
      if (ticket == waits_for) continue;
      waits_for = ticket;
      lock.unlock();
      waiting.reset();
      if (waits) waiting.emplace(control_, what);
      lock.lock();
    }
    lock.unlock();
    waiting.reset();
  }

  // Asks NCCL and the GPU; the control plane knows afterwards.
  bool has_failed() {
    try {
      if (const std::optional<ncclResult_t> error = handle_.asynchronous_error())
        handle_.fail("an operation under way", *error);
    } catch (const Error&) {
      return true;  // of which the main thread hears by ControlPlane::check()
    }
    return false;
  }

  void land() {
    while (!flights_.empty()) {
      const cudaError_t state = cudaEventQuery(flights_.front()->done.get());
      if (state != cudaSuccess) cudaGetLastError();  // answered here; no later call must see it
      if (state == cudaErrorNotReady) return;
      if (state != cudaSuccess) {
        control_.abort(fmt::format("{}: {}", flights_.front()->what, cudaGetErrorString(state)),
                       ExitCode::Hardware);
        return;
      }
      landed_.push_back(std::move(flights_.front()));
      flights_.pop_front();
    }
  }
  bool is_stuck(Flight& flight) {
    if (!flight.began) {
      if (has_passed(flight.ready.get())) flight.began = monotonic_seconds();
      return false;
    }
    return monotonic_seconds() - *flight.began > control_.timing().heartbeat_seconds;
  }

  ControlPlane& control_;
  cudaStream_t device_stream_;
  int gpu_ = 0;
  Nccl nccl_;
  PriorityStream stream_;
  NcclHandle handle_;  // ends before its stream
  Ticket given_ = 0;
  uint64_t barriers_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Flight>> flights_;
  std::vector<std::unique_ptr<Flight>> landed_;  // their events are used again
  mutable StreamStalls stalls_;
  Traffic traffic_;
  bool leaving_ = false;
  std::thread watchdog_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(ControlPlane& control, Device& device) {
  if (device.queue() == nullptr)
    throw Error(ExitCode::Hardware, fmt::format("NCCL needs a CUDA device, not {}", device.info().name),
                "run with --device cuda, or let CPU ranks talk over sockets");
  return std::make_unique<NcclCommunicator>(control, device);
}

std::string nccl_version() {
  int version = 0;
  open_nccl().ncclGetVersion(&version);
  return version_text(static_cast<size_t>(version));
}

}  // namespace octet
