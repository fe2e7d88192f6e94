#include "device/cuda/runtime.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

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

void* allocate_page_locked(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaHostAlloc(&data, std::max<size_t>(bytes, 1), cudaHostAllocDefault);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error(ExitCode::Usage, fmt::format("no {} of page-locked host memory", human_bytes(bytes)),
                "raise the limit of locked memory (ulimit -l), free host memory, or choose a smaller model");
  }
  check_cuda(error, fmt::format("allocating {} of page-locked host memory", human_bytes(bytes)));
  return std::memset(data, 0, std::max<size_t>(bytes, 1));
}

CudaEvent::CudaEvent() {
  check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "a CUDA event");
}
CudaEvent::~CudaEvent() { cudaEventDestroy(event_); }
void CudaEvent::record(cudaStream_t stream) {
  check_cuda(cudaEventRecord(event_, stream), "recording an event");
}
void CudaEvent::wait() const { check_cuda(cudaEventSynchronize(event_), "waiting for the GPU"); }

UploadRing::~UploadRing() {
  for (const Slot& slot : slots_) {
    cudaEventSynchronize(slot.copied.get());
    cudaFreeHost(slot.data);
  }
}

void UploadRing::upload(cudaStream_t stream, void* device, const void* host, size_t bytes) {
  if (bytes == 0) return;
  Slot& slot = slots_[next_++ % slots_.size()];
  slot.copied.wait();
  if (bytes > slot.bytes) {
    cudaFreeHost(slot.data);
    slot.data = nullptr;
    slot.bytes = 0;
    slot.data = allocate_page_locked(bytes);
    slot.bytes = bytes;
  }
  std::memcpy(slot.data, host, bytes);
  check_cuda(cudaMemcpyAsync(device, slot.data, bytes, cudaMemcpyHostToDevice, stream), "copying to the GPU");
  slot.copied.record(stream);
}

CudaGraph::~CudaGraph() {
  if (stream_) cudaStreamSynchronize(stream_);  // it may still run
  if (executable_) cudaGraphExecDestroy(executable_);
}

void CudaGraph::capture(cudaStream_t stream, const std::function<void()>& work) {
  // Only this thread's calls may disturb the capture: others (data parallelism, saving) go on.
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording a CUDA graph");
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream, &graph), "recording a CUDA graph");
  const cudaError_t error = cudaGraphInstantiate(&executable_, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(error, "making a CUDA graph ready");
}

void CudaGraph::launch(cudaStream_t stream) {
  stream_ = stream;
  check_cuda(cudaGraphLaunch(executable_, stream), "launching a CUDA graph");
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
