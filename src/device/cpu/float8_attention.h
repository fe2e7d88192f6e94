// Attention whose products are of codes [device.h, AttentionForward].
#pragma once
#include "device/cpu/gemm_state.h"

namespace octet {

// Where out.high (forward) or qkv_gradient (backward) is empty, the codes are all that is left.
void float8_attention_forward(const AttentionForward& attention, GemmEngine& engine);
void float8_attention_backward(const AttentionBackward& attention, GemmEngine& engine);

}  // namespace octet
