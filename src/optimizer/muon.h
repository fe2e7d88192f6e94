// Muon: the momentum of a matrix, made orthogonal by Newton-Schulz, is the direction of its update.
// [Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2502.16982; docs/numerics.md, "Muon"]
#pragma once
#include <span>
#include <vector>

#include "device/device.h"
#include "optimizer/states.h"
#include "tensor/memory_plan.h"
#include "tensor/parameter.h"

namespace octet {

// Its parameters are those of kind Matrix; of one that holds several matrices each is made orthogonal by
// itself.
class Muon {
 public:
  struct Options {
    float momentum;
    int steps;      // of Newton-Schulz, at least one
    DType storage;  // of the direction, and of what is multiplied: F32 or BF16
  };

  Muon() = default;
  // Plans what one update takes, for the largest parameter and the largest matrix. Error(Usage) where a
  // matrix is sharded.
  Muon(Device* device, const Options& options, std::span<const Parameter> parameters, MemoryPlan& plan);

  // `step`: all of the update but the direction. The parameter is whole.
  void update(const Parameter& parameter, const OptimizerState& state, const MuonUpdate& step) const;
  // x, of storage [rows, columns], becomes 0.2 sqrt(max(rows, columns)) times an orthogonal matrix, nearly:
  // of five steps singular values above 1 % of the norm come out in [0.68, 1.14] times that, those above
  // 0.15 % in [0.68, 1.21], and smaller ones grow by 485 at most.  [tests/optimizer/muon_test.cpp]
  void orthogonalise(const Tensor& x) const;

 private:
  Device* device_ = nullptr;
  Options options_{};
  Tensor direction_;     // storage, flat: of the largest parameter
  Tensor product_;       // storage, flat: of the largest matrix
  Tensor gram_, cubic_;  // storage, flat: of the largest smaller side, squared
  Tensor partials_;      // F64: of the largest matrix's norm
};

// The products of an update, as shapes without data.
std::vector<Matmul> muon_products(std::span<const Parameter> parameters, DType storage);

}  // namespace octet
