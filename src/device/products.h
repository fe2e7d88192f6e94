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
template <class Attention>
AttentionShape shape_of(const Attention& a) {
  return {a.context, a.heads, a.kv_heads, a.head_width};
}
inline bool is_float8(DType type) { return type == DType::E4M3 || type == DType::E5M2; }
// Whether its products are of codes.
inline bool in_float8(const AttentionForward& attention) { return is_float8(attention.qkv.dtype); }
inline bool in_float8(const AttentionBackward& attention) { return is_float8(attention.qkv.dtype); }
// Types and scales; Error(Internal) when they are neither all storage nor those of FP8.
void check(const AttentionForward& attention);
void check(const AttentionBackward& attention);
// 2 * head_width for each (query, visible key) pair of each product: 2 products forward, 5 backward.
uint64_t attention_flops(const AttentionShape& shape, int64_t tokens, int products);

// Counts the products of an attention that `implementation` ran, by the operands that each had.
void count_products(const AttentionForward& attention, const std::string& implementation,
                    MatmulCounts& counts);
void count_products(const AttentionBackward& attention, const std::string& implementation,
                    MatmulCounts& counts);

}  // namespace octet
