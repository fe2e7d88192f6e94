// Causal attention as cuDNN graphs, forward and backward. The shapes of the operations are those by which
// cuDNN recognises flash attention; nothing of [B, H, S, S] reaches memory.
//
// Q, K and V are views into the packed rows [H | K | K] x Dh, and so are their gradients. In FP8 they have
// one scale, and so have their gradients.
#pragma once
#include <cstdint>
#include <memory>

#include "device/cuda/cudnn_graph.h"
#include "device/nvidia/attention_key.h"

namespace octet {

// Addresses that a plan is executed with.
enum class AttentionTensor : int64_t {
  Query = 1,
  Key,
  Value,
  Out,
  LogSumExp,
  SoftmaxScale,  // numbers in host memory
  Masked,
  One,
  OutGradient,
  QueryGradient,
  KeyGradient,
  ValueGradient,
  OutProducts,       // scratch: sum over a head of out * out_gradient, FP32 [B, H, S]
  QueryAccumulator,  // scratch: FP32 [B, H, S, Dh], when not deterministic
  // In FP8: numbers in device memory. Inverse scales of what comes in,
  QueryInverse,
  KeyInverse,
  ValueInverse,
  OutInverse,
  OutGradientInverse,
  ProbabilityInverse,
  ScoreGradientInverse,
  // scales and amaxes of what is made.
  ProbabilityScale,
  OutScale,
  ScoreGradientScale,
  QueryGradientScale,
  KeyGradientScale,
  ValueGradientScale,
  ProbabilityAmax,
  OutAmax,
  ScoreGradientAmax,
  QueryGradientAmax,
  KeyGradientAmax,
  ValueGradientAmax,
};

std::unique_ptr<CudnnGraph> attention_graph(const Cudnn& library, const AttentionKey& key);

}  // namespace octet
