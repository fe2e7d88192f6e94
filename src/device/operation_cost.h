// What an operation costs at least on any device: the floor that its time is measured against.
#pragma once
#include <cstdint>

#include "device/device.h"

namespace octet {

struct OperationCost {
  uint64_t calls = 0, bytes = 0, flops = 0;
  double seconds = 0;
};

// Bytes: every operand read once, every result written once, what is changed in place both; not counted are
// scales, and gradients of a table that only some rows of are touched. No device can do with less unless the
// operands are still in its caches.
uint64_t least_bytes(const Matmul& operation);
uint64_t least_bytes(const CastOperation& operation);
uint64_t least_bytes(const MeasureAmax& operation);
uint64_t least_bytes(const TransposeCodes& operation);
uint64_t least_bytes(const EmbeddingForward& operation);
uint64_t least_bytes(const EmbeddingBackward& operation);
uint64_t least_bytes(const RmsNormForward& operation);
uint64_t least_bytes(const RmsNormBackward& operation);
uint64_t least_bytes(const RopeForward& operation);
uint64_t least_bytes(const RopeBackward& operation);
uint64_t least_bytes(const AttentionForward& operation);
uint64_t least_bytes(const AttentionBackward& operation);
uint64_t least_bytes(const SwiGluForward& operation);
uint64_t least_bytes(const SwiGluBackward& operation);
uint64_t least_bytes(const ActivationForward& operation);
uint64_t least_bytes(const ActivationBackward& operation);
uint64_t least_bytes(const CrossEntropy& operation);
uint64_t least_bytes(const GradientSquares& operation);
uint64_t least_bytes(const GradientNorm& operation);
uint64_t least_bytes(const UpdateSquares& operation);
uint64_t least_bytes(const UpdateRms& operation);
uint64_t least_bytes(const AdamWUpdate& operation);
uint64_t least_bytes(const MuonMomentum& operation);
uint64_t least_bytes(const Normalize& operation);
uint64_t least_bytes(const WeightedSum& operation);
uint64_t least_bytes(const MuonUpdate& operation);
uint64_t least_bytes(const ReadMasters& operation);
uint64_t least_bytes(const WriteMasters& operation);
uint64_t least_bytes(const ScaleTableUpdate& operation);
uint64_t least_bytes(const EncodeBlocks& operation);
uint64_t least_bytes(const DecodeBlocks& operation);
uint64_t least_bytes(const EncodeGroups& operation);
uint64_t least_bytes(const DecodeGroups& operation);
uint64_t least_bytes(const AddInOrder& operation);
uint64_t least_bytes(const OuterDifference& operation);
uint64_t least_bytes(const OuterUpdate& operation);
uint64_t least_bytes(const TensorStatistics& operation);
uint64_t least_bytes(const ChannelAmax& operation);
uint64_t least_bytes(const RowCosines& operation);
uint64_t least_bytes(const CastError& operation);
// An operation whose floor nobody has stated: unknown.
template <class Operation>
uint64_t least_bytes(const Operation&) {
  return 0;
}

uint64_t flops(const Matmul& operation);
uint64_t flops(const AttentionForward& operation);
uint64_t flops(const AttentionBackward& operation);

}  // namespace octet
