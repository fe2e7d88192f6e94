// Device: the operations of a transformer (operations.h), as an interface.
//
// device/cpu is the executable specification; every other device does the same operations at the same
// rounding points. Operations are enqueued in order; host code may read results after synchronize().
#pragma once
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/operations.h"

namespace octet {

// The work a device will be given that may need scratch memory, as shapes and types without data.
struct DeviceWork {
  std::span<const Matmul> matmuls = {};
  std::span<const AttentionForward> attentions = {};  // forward and backward
  int64_t tokens = 0, width = 0;                      // of a micro-batch; of the residual stream
  QkNorm qk_norm = QkNorm::None;
  Activation activation = Activation::SwiGLU;
};

struct DeviceInfo {
  std::string name;               // "CPU (AMD EPYC ..., 2 threads)"
  double peak_flops = 0;          // dense BF16 FLOP/s the progress line's percentage refers to; 0 = unknown
  std::string peak_source;        // one sentence: where that number comes from
  bool uses_host_memory = false;  // its arena and the host's come out of the same memory
  std::string identity;           // of the hardware, where two processes should not share it; else empty
  bool asynchronous = false;      // operations are enqueued: the host runs ahead of them
  bool float8_products = true;    // multiplies FP8 codes (NVIDIA GPUs: from Ada on)
  bool block_scales = true;       // multiplies codes with scales of blocks (NVIDIA GPUs: Hopper)
  bool float8_attention = true;   // attention on codes (NVIDIA GPUs: Hopper and data-centre Blackwell)
};

struct DeviceOptions {
  bool deterministic = false;  // only implementations with a fixed summation order
  int threads = 0;             // CPU: 0 = all
  bool graphs = true;          // GPU: replay() records CUDA graphs
  int local_rank = 0;          // GPU: the one of this number, modulo those visible
};

// One piece of work that is enqueued again and again, for Device::replay(). Whoever owns its tensors owns it.
struct Replay {
  struct Recording {
    virtual ~Recording() = default;
  };
  struct Recorded {
    uint64_t signature = 0;
    std::unique_ptr<Recording> recording;
    MatmulCounts counts;  // of its products
  };
  static constexpr size_t most = 2;  // a step's work, and that of a step with statistics
  std::vector<Recorded> recordings;  // the one played last is the last
  std::deque<uint64_t> seen;         // signatures, the newest `most`
};

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceInfo info() const = 0;
  virtual void* allocate(
      size_t bytes) = 0;  // zeroed, 256-byte aligned; throws Error(Usage) with the size when it does not fit
  virtual void free(void* pointer) = 0;
  virtual void copy_to_host(void* host, const void* device, size_t bytes) = 0;    // synchronous
  virtual void copy_from_host(void* device, const void* host, size_t bytes) = 0;  // synchronous
  virtual void synchronize() = 0;
  // The CUDA stream that operations are enqueued on; null: there is none (CPU, kernel interpreter).
  virtual void* queue() const { return nullptr; }

  // Copies on the device's queue, without waiting for it. upload(): `host` may be reused at once. download():
  // `host`, of allocate_host(), has the bytes after wait() for a later mark().
  virtual void* allocate_host(size_t bytes);  // zeroed; page-locked where that matters
  virtual void free_host(void* pointer);
  virtual void upload(void* device, const void* host, size_t bytes) { copy_from_host(device, host, bytes); }
  virtual void download(void* host, const void* device, size_t bytes) { copy_to_host(host, device, bytes); }
  // A place in the queue, and the wait for everything before it. The newest `marks` places are remembered.
  static constexpr uint64_t marks = 8;
  virtual uint64_t mark() { return 0; }
  virtual void wait(uint64_t place) {
    (void)place;
    synchronize();
  }

  // Copies between device memory and allocate_host()'s on queues of their own, beside the operations' queue.
  // Lanes do not wait for each other unless told to: order() makes what `waiting` is given from now on run
  // after all that `awaited` was given so far.
  enum class Lane : uint8_t { Compute, In, Out };
  virtual void copy_on_lane(Lane lane, void* to, const void* from, size_t bytes);
  virtual void order(Lane waiting, Lane awaited) { (void)waiting, (void)awaited; }

  // Enqueues `work`. A device that can (CUDA graphs) records it when the same signature comes twice in a row
  // and from then on plays the recording, `work` not called. So equal signatures promise equal work: the same
  // operations with the same tensors and scalars. `work` waits for nothing and copies nothing from or to the
  // host.
  virtual void replay(Replay& replay, uint64_t signature, const std::function<void()>& work) {
    (void)replay, (void)signature;
    work();
  }

  virtual void zero(const Tensor& tensor) = 0;
  virtual void copy(const Tensor& to, const Tensor& from) = 0;
  // tensor[i] (F32) = deviation * normal(key, first + i): a pure function of (key, element). [base/random.h]
  virtual void fill_normal(const Tensor& tensor, float deviation, uint64_t key, uint64_t first = 0) = 0;
  virtual void fill(const Tensor& tensor, float value) = 0;

#define OCTET_DECLARE(name, Arguments) virtual void name(const Arguments&) = 0;
  OCTET_DEVICE_OPERATIONS(OCTET_DECLARE)
#undef OCTET_DECLARE
  // out[0] (F64) += sum of x (F32), in the order of numerics/sums.h.
  virtual void accumulate_sum(const Tensor& out, const Tensor& x) = 0;

  // Bytes of scratch memory the device itself wants for this work, planned like everything else: after
  // set_workspace() with as many an operation allocates no memory of its own, and throws Error(Internal) when
  // it is given more. A device without one (tests, measurements of single operations) grows its own.
  virtual size_t workspace_bytes(const DeviceWork& work) const {
    (void)work;
    return 0;
  }
  virtual void set_workspace(const Tensor& workspace) { (void)workspace; }  // 256-byte aligned; empty: none

  virtual const MatmulCounts& matmul_counts() const { return counts_; }
  virtual void reset_matmul_counts() { counts_.clear(); }

 protected:
  MatmulCounts counts_;
};

std::unique_ptr<Device> make_cpu_device(const DeviceOptions& options);

}  // namespace octet
