#include "device/cuda/cuda_backend.h"

#include <algorithm>

namespace octet {

CudaBackend::CudaBackend(const DeviceOptions& options)
    : options_(options),
      gpu_(open_gpu(options.local_rank)),
      scratch_(stream_),
      matmul_(gpu_, options, stream_, scratch_),
      attention_(gpu_, options, stream_, scratch_) {}

DeviceInfo CudaBackend::info() const {
  DeviceInfo info = device_info(gpu_);
  info.block_scales = has_fine_scales(matmul_.capabilities());  // of the library at hand
  AttentionKey key;
  key.head_width = 128;
  key.float8 = true;
  info.float8_attention = float8_attention_obstacle(backward_of(key, options_), gpu_.capability).empty();
  return info;
}

void* CudaBackend::allocate(size_t bytes) {
  void* const data = allocate_on_device(std::max<size_t>(bytes, 1));
  clear(data, bytes);
  synchronize();
  return data;
}

void CudaBackend::free(void* pointer) {
  if (pointer == nullptr) return;
  cudaStreamSynchronize(stream_.get());  // an operation may still use it; its error is a later call's
  cudaFree(pointer);
}

// Either side may be page-locked host memory: states that live there are tensors like others.
void CudaBackend::copy_to_host(void* host, const void* device, size_t bytes) {
  check_cuda(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDefault, stream_.get()), "copying from the GPU");
  synchronize();
}
void CudaBackend::copy_from_host(void* device, const void* host, size_t bytes) {
  check_cuda(cudaMemcpyAsync(device, host, bytes, cudaMemcpyDefault, stream_.get()), "copying to the GPU");
  synchronize();
}
void CudaBackend::copy_on_device(void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_.get()), "copying on the GPU");
}
void CudaBackend::clear(void* pointer, size_t bytes) {
  check_cuda(cudaMemsetAsync(pointer, 0, bytes, stream_.get()), "clearing memory of the GPU");
}

void* CudaBackend::allocate_host(size_t bytes) { return allocate_page_locked(bytes); }
void CudaBackend::free_host(void* pointer) {
  if (pointer == nullptr) return;
  for (const CudaStream* stream : {&stream_, &in_, &out_}) cudaStreamSynchronize(stream->get());
  cudaFreeHost(pointer);
}
void CudaBackend::upload(void* device, const void* host, size_t bytes) {
  uploads_.upload(stream_.get(), device, host, bytes);
}
void CudaBackend::download(void* host, const void* device, size_t bytes) {
  check_cuda(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_.get()),
             "copying from the GPU");
}

uint64_t CudaBackend::mark() {
  marks_[++marked_ % marks_.size()].record(stream_.get());
  return marked_;
}
void CudaBackend::wait(uint64_t place) {
  if (place + marks_.size() <= marked_)  // its event was used again: a later place is waited for
    throw Error(ExitCode::Internal, "a place in the GPU's queue is waited for too late");
  marks_[place % marks_.size()].wait();
}

namespace {
struct RecordedGraph final : Replay::Recording {
  CudaGraph graph;
};
}  // namespace

cudaStream_t CudaBackend::lane(Device::Lane lane) const {
  return lane == Device::Lane::Compute ? stream_.get() : lane == Device::Lane::In ? in_.get() : out_.get();
}
void CudaBackend::copy_on_lane(Device::Lane where, void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, lane(where)),
             "copying beside the GPU's work");
}
void CudaBackend::order(Device::Lane waiting, Device::Lane awaited) {
  // The wait is for the event as it is recorded now; recording it again later does not move it.
  reached_.record(lane(awaited));
  check_cuda(cudaStreamWaitEvent(lane(waiting), reached_.get(), 0), "ordering two of the GPU's queues");
}

std::unique_ptr<Replay::Recording> CudaBackend::record(const std::function<void()>& work) {
  auto recording = std::make_unique<RecordedGraph>();
  recording->graph.capture(stream_.get(), work);
  return recording;
}
void CudaBackend::play(Replay::Recording& recording) {
  static_cast<RecordedGraph&>(recording).graph.launch(stream_.get());
}

size_t CudaBackend::workspace_bytes(const DeviceWork& work) const {
  return std::max(matmul_.prepare(work.matmuls), attention_.prepare(work.attentions));
}

}  // namespace octet
