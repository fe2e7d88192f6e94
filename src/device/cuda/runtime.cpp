#include "device/cuda/runtime.h"

#include <fmt/format.h>

#include "base/text.h"

namespace octet {

void check_cuda(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  throw Error(
      ExitCode::Hardware,
      fmt::format("{}: {} ({})", what, cudaGetErrorName(error), cudaGetErrorString(error)),
      "run octet doctor; if the GPU looks healthy, CUDA_LAUNCH_BLOCKING=1 names the call that failed");
}

CudaStream::CudaStream() {
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a CUDA stream");
}
CudaStream::~CudaStream() { cudaStreamDestroy(stream_); }
void CudaStream::synchronize() const { check_cuda(cudaStreamSynchronize(stream_), "waiting for the GPU"); }

void* allocate_on_device(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error != cudaErrorMemoryAllocation) {
    check_cuda(error, fmt::format("allocating {} on the GPU", human_bytes(bytes)));
    return data;
  }
  cudaGetLastError();  // this one is answered; the next call must not see it
  size_t free_bytes = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total), "asking for the GPU's free memory");
  throw Error(
      ExitCode::Usage,
      fmt::format("the GPU has {} free of {}, {} are needed", human_bytes(free_bytes), human_bytes(total),
                  human_bytes(bytes)),
      "octet plan shows what takes the memory; fewer sequences a micro-batch or a recompute policy need "
      "less, and nvidia-smi shows who else uses the GPU");
}

DeviceMemory::DeviceMemory(size_t bytes) : data_(allocate_on_device(bytes)) {}
DeviceMemory::~DeviceMemory() { cudaFree(data_); }

StreamTimer::StreamTimer(cudaStream_t stream) : stream_(stream) {
  check_cuda(cudaEventCreate(&begin_), "a CUDA event");
  check_cuda(cudaEventCreate(&end_), "a CUDA event");
}
StreamTimer::~StreamTimer() {
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
}
void StreamTimer::start() { check_cuda(cudaEventRecord(begin_, stream_), "recording an event"); }
double StreamTimer::stop() {
  check_cuda(cudaEventRecord(end_, stream_), "recording an event");
  check_cuda(cudaEventSynchronize(end_), "waiting for the GPU");
  float milliseconds = 0;
  check_cuda(cudaEventElapsedTime(&milliseconds, begin_, end_), "the time between two events");
  return milliseconds * 1e-3;
}

LibraryScratch::~LibraryScratch() { cudaFree(own_); }

std::byte* LibraryScratch::reserve(size_t bytes) {
  if (is_planned()) {
    if (bytes > planned_.bytes())
      throw Error(ExitCode::Internal,
                  fmt::format("a library call needs {} bytes of workspace, {} were planned", bytes,
                              planned_.bytes()));
    return static_cast<std::byte*>(planned_.data);
  }
  if (bytes > own_bytes_) {
    stream_.synchronize();
    cudaFree(own_);
    own_ = nullptr;
    own_bytes_ = 0;
    own_ = allocate_on_device(bytes);
    own_bytes_ = bytes;
  }
  return static_cast<std::byte*>(own_);
}

}  // namespace octet
