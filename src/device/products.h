// What every device knows about products before it runs them: which are allowed, and how many FLOPs they are.
#pragma once
#include <cstdint>

#include "device/device.h"

namespace octet {

// Types, shapes and scales of a product; Error(Internal) naming the whole key when it is not one of ours.
void check(const Matmul& matmul);
void check_shapes(const Matmul& matmul);  // the same without scales, for products that have no data yet

// Sizes of the product: out [M, N], inner K.
int64_t outer_size(const Operand& operand);
int64_t inner_size(const Operand& operand);

// Bytes for the copies of both operands that Matmul::simulate asks for, each rounded up to 256; 0 without.
size_t reduced_operand_bytes(const Matmul& matmul);
// The same product of copies that lie there.
Matmul on_reduced_operands(const Matmul& matmul, void* memory);

uint64_t matmul_flops(const Matmul& matmul);  // 2 M N K

struct AttentionShape {
  int context, heads, kv_heads, head_width;
};
// 2 * head_width for each (query, visible key) pair of each product: 2 products forward, 5 backward.
uint64_t attention_flops(const AttentionShape& shape, int64_t tokens, int products);

}  // namespace octet
