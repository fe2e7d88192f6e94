// What the CPU device keeps between operations: threads, scratch memory and oneDNN's primitives.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "device/cpu/cpu_device.h"
#include "device/device.h"

namespace octet {

// Memory that is handed in (planned) or, when none was, grown and kept. 256-byte aligned.
class ScratchMemory {
 public:
  ScratchMemory() = default;
  ~ScratchMemory();
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;

  void use(const Tensor& planned);  // its bytes, from now on; an empty tensor goes back to own memory
  // Contents are lost with the next call. Error(Internal) when more is wanted than was planned.
  std::byte* reserve(size_t bytes);

 private:
  std::byte* planned_ = nullptr;
  size_t planned_bytes_ = 0;
  std::byte* own_ = nullptr;
  size_t own_bytes_ = 0;
};

class OneDnnGemm;  // onednn_gemm.h

// The matrix products of the CPU device, usable without one (the tests do).
class GemmEngine {
 public:
  GemmEngine(const DeviceOptions& options, int threads);
  ~GemmEngine();

  // Checks types, shapes and scales (Error(Internal) naming the key), then runs. Returns the implementation's
  // name.
  const char* run(const Matmul& matmul);
  size_t workspace_bytes(std::span<const Matmul> matmuls) const;  // of the hungriest; prepares all
  void set_workspace(const Tensor& workspace) { workspace_.use(workspace); }

  int threads() const { return threads_; }
  ScratchMemory& workspace() { return workspace_; }

 private:
  void reduce_values(const SmallFloat& format, const Tensor& from, const Tensor& to) const;

  bool deterministic_;
  int threads_;
  ScratchMemory workspace_;
  std::unique_ptr<OneDnnGemm> onednn_;  // null: not built in, switched off or without gain on this machine
};

struct CpuDevice::GemmState : GemmEngine {
  using GemmEngine::GemmEngine;
};

}  // namespace octet
