// Matrix products by oneDNN, where that is faster than the own kernel and the order of sums may be its
// choice.
#pragma once
#include <cstddef>
#include <memory>
#include <optional>

#include "device/device.h"

namespace octet {

// Codes reach oneDNN as BF16 with their inverse scales multiplied in, which is exact for powers of two of
// moderate size; other scales stay with the own kernel.
class OneDnnGemm {
 public:
  enum class Codes : uint8_t { WithMatrixInstructions, Always };  // Always: tests
  struct Options {
    int threads = 1;
    Codes codes = Codes::WithMatrixInstructions;
  };
  // Null when the program was built without oneDNN.
  static std::unique_ptr<OneDnnGemm> create(const Options& options);
  virtual ~OneDnnGemm() = default;

  // By types and sizes: what planning knows.
  virtual bool may_suit(const Matmul& matmul) = 0;
  // By scales, too: they are read.
  virtual bool suits(const Matmul& matmul) = 0;
  virtual size_t workspace_bytes(const Matmul& matmul) = 0;
  virtual void run(const Matmul& matmul, std::byte* workspace) = 0;  // only what suits
  virtual const char* name(const Matmul& matmul) const = 0;
};

}  // namespace octet
