// Scratch memory of NVIDIA's libraries, as far as it can be known without them: what a plan for a GPU that is
// not in this machine counts with.
#pragma once
#include <cstddef>
#include <span>

#include "device/nvidia/attention_key.h"
#include "device/nvidia/matmul_key.h"

namespace octet {

inline size_t align_workspace(size_t bytes) { return (bytes + 255) / 256 * 256; }

// The most workspace a product's algorithm may take, which is what NVIDIA recommends: 32 MiB from Hopper on,
// 4 MiB before.  [cuBLAS documentation, 2.1.11]
size_t product_workspace_limit(int capability);

// An upper bound of what the hungriest of these products takes: cuBLASLt's limit, and, exactly, what Octet
// needs beside it (MatmulRoute::scratch_bytes). Throws what route() throws.
size_t products_scratch_bound(std::span<const Matmul> matmuls, const GemmCapabilities& gpu);

// What cuDNN 9.19 asks for, read off the plans that it builds for descriptions of GPUs (tests/cudnn_plans
// hold it to them), and Octet's own buffers, which are exact. n = batch x heads x context x head width:
//   forward                 nothing
//   backward                4 n to reduce dK and dV where heads share keys; 4 n more before Hopper and on
//                           consumer Blackwell
//   backward, deterministic 2 B H S^2, S in whole blocks of 64, and the 4 n of shared keys; data-centre
//   Blackwell: 8 n
//                           for shared keys alone
//   FP8                     forward nothing; backward 4 n, 8 n more where heads share keys, and a number a
//   row; deterministic (data-centre Blackwell alone) a number a row instead of the first 4 n
// Error(Hardware) for a head width that this generation has no backward pass for.
struct AttentionScratchEstimate {
  size_t forward = 0, backward = 0;  // everything
  size_t score_matrix = 0;           // of backward: 2 B H S^2, or 0
  size_t bytes() const { return forward > backward ? forward : backward; }
};
AttentionScratchEstimate attention_scratch_estimate(const AttentionKey& backward, int capability);

}  // namespace octet
