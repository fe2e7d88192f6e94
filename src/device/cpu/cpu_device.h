// The CPU device: the executable specification of every operation. One operation (or family) a file in this
// folder.
#pragma once
#include <memory>

#include "device/device.h"

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

  size_t workspace_bytes(const DeviceWork& work) const override;
  void set_workspace(const Tensor& workspace) override;

  // Each in the file of its name (or family: rmsnorm.cpp, gradient_norm.cpp, block_codes.cpp).
#define OCTET_OVERRIDE(name, Arguments) void name(const Arguments&) override;
  OCTET_DEVICE_OPERATIONS(OCTET_OVERRIDE)
#undef OCTET_OVERRIDE

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
