// What a GPU device needs beside its kernels: memory, a stream, and the operations that a library does.
// CudaBackend (device/cuda) has cuBLASLt and cuDNN behind it; InterpretedBackend (interpreted_backend.cpp)
// the CPU device. Everything is enqueued on one stream.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>

#include "device/device.h"

namespace octet {

class GpuBackend {
 public:
  virtual ~GpuBackend() = default;
  virtual DeviceInfo info() const = 0;
  virtual void* stream() const = 0;  // what kernels are launched on
  virtual void* cuda_stream() const { return nullptr; }

  virtual void* allocate(size_t bytes) = 0;  // zeroed, 256-byte aligned
  virtual void free(void* pointer) = 0;
  virtual void copy_to_host(void* host, const void* device, size_t bytes) = 0;    // synchronous
  virtual void copy_from_host(void* device, const void* host, size_t bytes) = 0;  // synchronous
  virtual void copy_on_device(void* to, const void* from, size_t bytes) = 0;
  virtual void clear(void* pointer, size_t bytes) = 0;  // to zero
  virtual void synchronize() = 0;

  // As Device has them.
  virtual void* allocate_host(size_t bytes) = 0;
  virtual void free_host(void* pointer) = 0;
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* device, size_t bytes) = 0;
  virtual uint64_t mark() = 0;
  virtual void wait(uint64_t place) = 0;

  virtual void copy_on_lane(Device::Lane lane, void* to, const void* from, size_t bytes) = 0;
  virtual void order(Device::Lane waiting, Device::Lane awaited) = 0;

  // What `work` enqueues, recorded instead of enqueued; play() enqueues it.
  virtual std::unique_ptr<Replay::Recording> record(const std::function<void()>& work) = 0;
  virtual void play(Replay::Recording& recording) = 0;

  // Scratch memory of the library calls below.
  virtual size_t workspace_bytes(const DeviceWork& work) const = 0;
  virtual void set_workspace(const Tensor& workspace) = 0;

  // Each returns the implementation's name for the proof of precision. Attention leaves the casts of its
  // results to the caller. In FP8 it leaves codes only, made with the scales that the sites have (never 0;
  // the score gradient's inverse is there too), and writes each site's amax, which is 0 before; of dQ, dK and
  // dV there are three one after the other, of which the first may be the largest of all. Counters: if it
  // can.
  virtual std::string matmul(const Matmul&) = 0;
  virtual std::string attention_forward(const AttentionForward&) = 0;
  virtual std::string attention_backward(const AttentionBackward&) = 0;
};

}  // namespace octet
