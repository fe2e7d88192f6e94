// The CUDA runtime, thinly: every call checked, every handle owned.
#pragma once
#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <functional>
#include <string>

#include "base/error.h"
#include "tensor/tensor.h"

namespace octet {

// Error(Hardware): "WHAT: cudaErrorX (explanation)". Errors of kernels surface at a later call than theirs.
void check_cuda(cudaError_t error, const std::string& what);

class CudaStream {
 public:
  CudaStream();
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  cudaStream_t get() const { return stream_; }
  void synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

// Device memory of its own, for what is measured before step 0.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes);  // not cleared
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// Error(Usage) with the size and what is free when it does not fit.
void* allocate_on_device(size_t bytes);

// Zeroed host memory the GPU copies from and to without the host. Error(Usage) when there is none.
void* allocate_page_locked(size_t bytes);

class CudaEvent {
 public:
  CudaEvent();
  ~CudaEvent();
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  void record(cudaStream_t stream);
  void wait() const;  // the host; at once when never recorded
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Copies to the GPU whose source may be reused at once: the bytes wait for their turn in page-locked slots,
// as large as the largest copy so far.
class UploadRing {
 public:
  UploadRing() = default;
  ~UploadRing();
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;
  void upload(cudaStream_t stream, void* device, const void* host, size_t bytes);

 private:
  struct Slot {
    CudaEvent copied;
    void* data = nullptr;
    size_t bytes = 0;
  };
  std::array<Slot, 8> slots_;
  size_t next_ = 0;
};

// What a function enqueues on a stream, captured once and launched any number of times.
class CudaGraph {
 public:
  CudaGraph() = default;
  ~CudaGraph();
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  void capture(cudaStream_t stream, const std::function<void()>& work);
  void launch(cudaStream_t stream);  // which outlives the graph

 private:
  cudaGraphExec_t executable_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

// Seconds between two points of a stream.
class StreamTimer {
 public:
  explicit StreamTimer(cudaStream_t stream);
  ~StreamTimer();
  StreamTimer(const StreamTimer&) = delete;
  StreamTimer& operator=(const StreamTimer&) = delete;
  void start();
  double stop();  // waits for the stream

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// Scratch memory of the libraries: the planned workspace, or, on a device without a plan, memory that grows.
class LibraryScratch {
 public:
  explicit LibraryScratch(const CudaStream& stream) : stream_(stream) {}
  ~LibraryScratch();
  LibraryScratch(const LibraryScratch&) = delete;
  LibraryScratch& operator=(const LibraryScratch&) = delete;
  void use(const Tensor& planned) { planned_ = planned; }  // empty: none
  bool is_planned() const { return !planned_.empty(); }
  // From the beginning on: calls follow each other on one stream. Error(Internal) when fewer were planned.
  std::byte* reserve(size_t bytes);

 private:
  const CudaStream& stream_;
  Tensor planned_;
  void* own_ = nullptr;
  size_t own_bytes_ = 0;
};

}  // namespace octet
