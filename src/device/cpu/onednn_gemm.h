// BF16 matrix products by oneDNN, where the machine has instructions for them.
#pragma once
#include <cstddef>
#include <memory>

#include "device/device.h"

namespace octet {

class OneDnnGemm {
 public:
  // Null when the program was built without oneDNN or the machine has no BF16 instructions.
  static std::unique_ptr<OneDnnGemm> create(int threads);
  virtual ~OneDnnGemm() = default;

  virtual bool suits(const Matmul& matmul) const = 0;
  virtual size_t workspace_bytes(const Matmul& matmul) const = 0;
  virtual void run(const Matmul& matmul, std::byte* workspace) = 0;
  virtual const char* name(const Matmul& matmul) const = 0;
};

}  // namespace octet
