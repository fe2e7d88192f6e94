// The CUDA runtime, thinly: every call checked, every handle owned.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
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
