// What precision the GEMMs really ran in, from the counts matmul itself keeps.
#pragma once
#include <string>

#include "device/device.h"
#include "model/spec.h"
#include "training/metrics.h"

namespace octet {

// FLOPs of GEMMs that read FP8 codes on both sides, over all GEMM FLOPs (block linears, head and attention;
// not the optimizer's).
double fp8_flop_share(const MatmulCounts& counts);

// One row per class and operand types: {"class", "a", "b", "out", "implementation", "calls", "flops"}.
// Operands of a simulation are called what they are: "BF16 truncated to E8M3".
Json gemm_table(const MatmulCounts& counts);
std::string format_gemm_table(const MatmulCounts& counts);

// The share of FP8 FLOPs the recipe promises for one class of GEMM, of the blocks or of the head, or for
// attention.
double promised_fp8_share(const TransformerSpec& spec, const Recipe& recipe, GemmClass gemm_class);
// Error(Internal) when what was counted is not what the recipe promises: the share of FP8, and that operands
// of the blocks, and no others, were reduced as a simulation says.
void require_promised_precision(const MatmulCounts& counts, const TransformerSpec& spec,
                                const Recipe& recipe);

}  // namespace octet
