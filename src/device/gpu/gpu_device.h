// A Device made of the kernels in kernels/ and a backend. Compiled twice: for CUDA and for the kernel
// interpreter; only the backend differs.
#pragma once
#include <memory>
#include <utility>

#include "device/device.h"
#include "device/gpu/backend.h"
#include "device/gpu/scratch_bytes.h"
#include "kernels/cast.h"
#include "kernels/namespace.h"
#include "kernels/output.h"

namespace octet {
inline namespace OCTET_GPU {

// Scratch of one operation, cut from the device's workspace from its beginning on. Operations follow each
// other on one stream, so each may use the same bytes, and so may the libraries' calls.
class Scratch {
 public:
  Scratch(void* base, size_t bytes) : next_(static_cast<std::byte*>(base)), end_(next_ + bytes) {}
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }
  void* take_bytes(
      size_t bytes);  // 256-byte aligned; Error(Internal) when the workspace was planned too small
  void skip_to_last(size_t bytes);  // what is taken next ends where the workspace does

 private:
  std::byte *next_, *end_;
};

// A CastTarget under way: the amaxes its producer measures, and what finish_cast() makes of them.
struct PendingCast {
  CastTarget target;
  uint32_t *amax = nullptr, *row_amax = nullptr, *column_amax = nullptr;  // null: not wanted
  uint32_t* factored_amax = nullptr;                                      // with row factors
  float *scale = nullptr, *column_scale = nullptr;                        // what codes are multiplied by
  uint32_t* encode = nullptr;  // device flag, see kernels/cast.h; null: the producer wrote no codes

  bool wanted() const { return amax != nullptr; }
  uint32_t* measured_amax() const;  // by the producer; null: not wanted, or finish_cast() measures
};

class GpuDevice final : public Device {
 public:
  GpuDevice(std::unique_ptr<GpuBackend> backend, const DeviceOptions& options);
  ~GpuDevice() override;

  // gpu_device.cpp: memory, and what belongs to no family
  DeviceInfo info() const override { return backend_->info(); }
  void* allocate(size_t bytes) override { return backend_->allocate(bytes); }
  void free(void* pointer) override { backend_->free(pointer); }
  void copy_to_host(void* host, const void* device, size_t bytes) override;
  void copy_from_host(void* device, const void* host, size_t bytes) override;
  void synchronize() override;
  void* queue() const override { return backend_->cuda_stream(); }
  void* allocate_host(size_t bytes) override { return backend_->allocate_host(bytes); }
  void free_host(void* pointer) override { backend_->free_host(pointer); }
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  uint64_t mark() override;
  void wait(uint64_t place) override;
  void copy_on_lane(Lane lane, void* to, const void* from, size_t bytes) override {
    backend_->copy_on_lane(lane, to, from, bytes);
  }
  void order(Lane waiting, Lane awaited) override { backend_->order(waiting, awaited); }
  void replay(Replay& replay, uint64_t signature, const std::function<void()>& work) override;
  void zero(const Tensor& tensor) override;
  void copy(const Tensor& to, const Tensor& from) override;
  void fill_normal(const Tensor& tensor, float deviation, uint64_t key, uint64_t first) override;
  void fill(const Tensor& tensor, float value) override;
  void accumulate_sum(const Tensor& out, const Tensor& x) override;
  size_t workspace_bytes(const DeviceWork& work) const override;
  void set_workspace(const Tensor& workspace) override;

  // Each in the file of its family: forward_backward.cpp, attention.cpp, cast.cpp, update.cpp; products,
  // which are the backend's, in gpu_device.cpp.
#define OCTET_OVERRIDE(name, Arguments) void name(const Arguments&) override;
  OCTET_DEVICE_OPERATIONS(OCTET_OVERRIDE)
#undef OCTET_OVERRIDE

 private:
  PendingCast begin_cast(const CastTarget& target, Scratch& scratch);
  // What a producer of `cast` is given.
  kernels::Output output_of(const PendingCast& cast) const;
  void finish_cast(const PendingCast& cast, const Tensor& source, const Tensor& column_factor = {});
  void finish_blocks(const PendingCast& cast, const kernels::CastSource& source);
  void cast_with_amax(const CastOperation& op);
  Matmul reduce_operands(const Matmul& m);
  void float8_attention_forward(const AttentionForward& op);
  void float8_attention_backward(const AttentionBackward& op);
  // Row codes a producer may write before it knows the amax.
  bool known_scale(const CastTarget& target) const;
  Scratch scratch(size_t bytes_without_plan);
  struct Faults {
    uint32_t token, target;  // 1 + index of a bad one; 0: none
  };
  void require_none(const Faults& faults);

  // What FP8 attention's library calls read and leave. Beside the workspace, which is the library's
  // meanwhile.
  struct Float8Numbers {
    float scale, inverse_scale, amaxes[3];  // of O; or of dQ, dK and dV, whose scale is one
    float score_scale, score_inverse_scale, score_amax;
  };

  std::unique_ptr<GpuBackend> backend_;
  bool graphs_;
  Float8Numbers* float8_numbers_ = nullptr;  // device memory
  uint32_t* faults_ = nullptr;               // device memory: Faults
  Faults* seen_faults_ = nullptr;            // host memory [marks]: as they were at the mark
  uint64_t next_mark_ = 1;                   // a backend's first mark is 1
  Tensor workspace_;                         // U8; empty: own_ grows as operations ask
  void* own_ = nullptr;
  size_t own_bytes_ = 0;
};

octet::Format format_of(
    const Tensor& tensor);  // F32, BF16, F16, E4M3 or E5M2; anything else is Error(Internal)

}  // namespace OCTET_GPU
}  // namespace octet
