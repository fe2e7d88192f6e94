// What the GPU device needs beside its kernels, by CUDA, cuBLASLt and cuDNN.
#pragma once
#include <array>

#include "device/cuda/cublaslt_matmul.h"
#include "device/cuda/cudnn_attention.h"
#include "device/cuda/gpu_facts.h"
#include "device/cuda/runtime.h"
#include "device/gpu/backend.h"

namespace octet {

class CudaBackend final : public GpuBackend {
 public:
  explicit CudaBackend(const DeviceOptions& options);

  DeviceInfo info() const override;
  void* stream() const override { return stream_.get(); }
  void* cuda_stream() const override { return stream_.get(); }

  void* allocate(size_t bytes) override;
  void free(void* pointer) override;
  void copy_to_host(void* host, const void* device, size_t bytes) override;
  void copy_from_host(void* device, const void* host, size_t bytes) override;
  void copy_on_device(void* to, const void* from, size_t bytes) override;
  void clear(void* pointer, size_t bytes) override;
  void synchronize() override { stream_.synchronize(); }

  void* allocate_host(size_t bytes) override;
  void free_host(void* pointer) override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  uint64_t mark() override;
  void wait(uint64_t place) override;
  void copy_on_lane(Device::Lane lane, void* to, const void* from, size_t bytes) override;
  void order(Device::Lane waiting, Device::Lane awaited) override;
  std::unique_ptr<Replay::Recording> record(const std::function<void()>& work) override;
  void play(Replay::Recording& recording) override;

  // Plans all of this work: products are measured, attention is compiled. A second call for the same work
  // finds its plans.
  size_t workspace_bytes(const DeviceWork& work) const override;
  void set_workspace(const Tensor& workspace) override { scratch_.use(workspace); }

  std::string matmul(const Matmul& m) override { return matmul_.run(m); }
  std::string attention_forward(const AttentionForward& a) override { return attention_.forward(a); }
  std::string attention_backward(const AttentionBackward& a) override { return attention_.backward(a); }

 private:
  cudaStream_t lane(Device::Lane lane) const;

  const DeviceOptions options_;
  GpuFacts gpu_;  // opened first: everything below needs a device
  CudaStream stream_;
  CudaStream in_, out_;
  CudaEvent reached_;  // of order()
  std::array<CudaEvent, Device::marks> marks_;
  uint64_t marked_ = 0;
  UploadRing uploads_;
  LibraryScratch scratch_;
  mutable CublasLtMatmul matmul_;  // plans are remembered; no answer depends on which were
  mutable CudnnAttention attention_;
};

}  // namespace octet
