// Attention as functions of an engine, so that it can be tested without a device.
#pragma once
#include <cstdint>

#include "device/cpu/gemm_state.h"
#include "device/device.h"
#include "device/products.h"

namespace octet {

// Writes out.high and log_sum_exp; casts nothing.
void attention_forward(const AttentionForward& attention, GemmEngine& engine);
void attention_backward(const AttentionBackward& attention, GemmEngine& engine);

// What both directions need of the engine's workspace, from shapes and types alone.
size_t attention_scratch_bytes(const AttentionForward& attention, int threads);

}  // namespace octet
