// Masters and moments that live in the host's page-locked memory and visit the device.
#pragma once
#include <array>
#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "optimizer/states.h"

namespace octet {

// The states of matrices and embeddings visit piece by piece, in two slots: while one is updated, the next is
// fetched and the one before put back. A piece is a parameter, or a part of a larger one that may be split.
// The bits do not change.
class StatePager {
 public:
  // Which parameters may be split, by their place in the list.
  using Splits = std::function<bool(size_t parameter)>;
  struct States {
    std::span<const Parameter> parameters;
    const std::vector<OptimizerState>& moments;  // in the parameters' order
  };

  StatePager() = default;  // nothing is offloaded
  // Moments in blocks of `block` elements; 0: of a whole tensor, which is not split. Plans the slots.
  StatePager(Device* device, const States& states, int block, const Splits& splits, MemoryPlan& plan);

  bool empty() const { return pieces_.empty(); }
  bool has(const Parameter& parameter) const { return !empty() && parameter.kind != ParameterKind::Vector; }

  enum class Part : uint8_t { All, SecondMoment };
  enum class After : uint8_t { Keep, PutBack };
  // body(piece, its state on the device) for what is offloaded.
  using Body = std::function<void(const StatePiece&, const PieceState&)>;
  void visit(const States& states, Part part, After after, const Body& body) const;

 private:
  PieceState in_slot(size_t slot, const PieceState& home) const;
  void transfer(Device::Lane lane, const PieceState& to, const PieceState& from, Part part) const;

  Device* device_ = nullptr;
  std::vector<StatePiece> pieces_;  // in the order of their visits
  std::array<Tensor, 2> slots_;     // U8
};

}  // namespace octet
