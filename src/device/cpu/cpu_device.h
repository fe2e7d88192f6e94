// The CPU device: the executable specification of every operation. One operation (or family) a file in this
// folder.
#pragma once
#include <memory>

#include "device/device.h"
#include "device/operation_timer.h"

namespace octet {

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const DeviceOptions& options);
  ~CpuDevice() override;

  // cpu_device.cpp
  DeviceInfo info() const override;
  void* allocate(size_t bytes) override;
  void free(void* pointer) override;
  void copy_to_host(void* host, const void* device, size_t bytes) override;
  void copy_from_host(void* device, const void* host, size_t bytes) override;
  void synchronize() override {}
  void zero(const Tensor& tensor) override;
  void copy(const Tensor& to, const Tensor& from) override;
  void fill_normal(const Tensor& tensor, float deviation, uint64_t key, uint64_t first) override;
  void fill(const Tensor& tensor, float value) override;
  void accumulate_sum(const Tensor& out, const Tensor& x) override;

  void matmul(const Matmul&) override;  // cpu_device_products.cpp (matmul.cpp ...)
  size_t workspace_bytes(const DeviceWork& work) const override;
  void set_workspace(const Tensor& workspace) override;

  void cast(const CastOperation&) override;                  // cast.cpp
  void embedding_forward(const EmbeddingForward&) override;  // embedding.cpp
  void embedding_backward(const EmbeddingBackward&) override;
  void rmsnorm_forward(const RmsNormForward&) override;  // rmsnorm.cpp
  void rmsnorm_backward(const RmsNormBackward&) override;
  void rope_forward(const RopeForward&) override;  // cpu_device_products.cpp (rope.cpp)
  void rope_backward(const RopeBackward&) override;
  void attention_forward(const AttentionForward&) override;  // idem (attention.cpp)
  void attention_backward(const AttentionBackward&) override;
  void swiglu_forward(const SwiGluForward&) override;  // swiglu.cpp
  void swiglu_backward(const SwiGluBackward&) override;
  void cross_entropy(const CrossEntropy&) override;        // cross_entropy.cpp
  void gradient_squares(const GradientSquares&) override;  // gradient_norm.cpp
  void gradient_norm(const GradientNorm&) override;
  void adamw(const AdamWUpdate&) override;                    // adamw.cpp
  void scale_table_update(const ScaleTableUpdate&) override;  // scale_table.cpp
  void encode_blocks(const EncodeBlocks&) override;           // block_codes.cpp
  void decode_blocks(const DecodeBlocks&) override;

 private:
  // Fills out.row and out.column (and the scales, amax and counters) from out.high; nothing to do when there
  // are no codes to make. [cast.cpp]
  void finish_cast(const CastTarget& out);

  DeviceOptions options_;
  int threads_ = 1;
  struct GemmState;  // oneDNN primitives by shape, and the workspace all operations share
  std::unique_ptr<GemmState> gemm_;
};

}  // namespace octet
