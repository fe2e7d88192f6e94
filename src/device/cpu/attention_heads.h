// The heads of an attention as the CPU device's products read them: geometry, copies of heads in FP32, one
// query a lane, and tasks with scratch of their own.
#pragma once
#include <algorithm>
#include <cstdint>

#include "device/cpu/micro_kernel.h"
#include "device/cpu/softmax_lanes.h"
#include "device/products.h"

namespace octet {

inline constexpr int64_t key_block = 256;

// The sizes both directions share.
struct Geometry {
  int64_t windows, context, heads, kv_heads, width;
  int64_t padded_width;    // of a head, in the FP32 copies: a multiple of 32, the rest zero
  int64_t padded_context;  // a multiple of 8
  MicroKernel kernel;
  MicroKernel stored_kernel;  // for products of two stored operands: pairs of BF16 where possible
  bool pairs;

  // Of an operand of stored_kernel, in its elements: pitch of a row, length of the inner dimension.
  int64_t stored_pitch() const { return pairs ? padded_width / 2 : padded_width; }
  int64_t stored_inner() const { return pairs ? width / 2 : width; }
  int64_t keys_floats() const { return padded_context * padded_width; }
  int64_t block_floats() const { return query_lanes * padded_width; }
  // Keys that the query block from `first_query` on may see, padded.
  int64_t visible_keys(int64_t first_query, int64_t queries) const {
    return (first_query + queries + 7) / 8 * 8;
  }
};
// Error(Internal) when qkv does not hold these heads.
Geometry geometry(const AttentionShape& shape, const Tensor& qkv);

// c [rows, columns] (+)= a b with the micro-kernel; rows and columns are multiples of the kernel's.
struct Product {
  const float* a;
  int64_t a_row_stride, a_inner_stride;
  const float* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t rows, columns, inner;
  MicroTile::Write write;
};
void multiply(const MicroKernel& kernel, const Product& product);

// `count` rows of one head, from column `column` of a matrix, as FP32 [padded_rows, padded_width]. Codes are
// decoded, without their scale.
struct HeadRows {
  const Tensor& from;
  int64_t first, count, column, padded_rows;
};
void load_head(const Geometry& g, const HeadRows& rows, float* to);
void store_head(const Geometry& g, const float* from, const HeadRows& rows);  // storage only
// The same rows as elements of stored_kernel [padded_rows, stored_pitch]. Callers read stored_inner of them.
void load_stored(const Geometry& g, const HeadRows& rows, float* to);
// 32 rows of stored_kernel's elements, one row a lane.
void stored_to_lanes(const Geometry& g, const float* rows, float* lanes);
// [32, padded_width] to [padded_width, 32] and back.
void to_lanes(const Geometry& g, const float* rows, float* lanes);
void from_lanes(const Geometry& g, const float* lanes, float* rows);

// What a task of forward and of backward works in, cut from one allocation.
struct ForwardScratch {
  float *keys, *values;         // [padded_context, padded_width]
  float *rows, *queries, *out;  // [32, padded_width], [padded_width, 32] twice
  float* scores;                // [key_block, 32]
};
int64_t forward_floats(const Geometry& g);
ForwardScratch forward_scratch(const Geometry& g, float* base);

struct BackwardScratch {
  float *keys, *stored_keys, *stored_values, *key_gradient,
      *value_gradient;                   // [padded_context, padded_width]
  float *queries, *out_gradient, *rows;  // [32, padded_width]
  float *query_lanes_, *out_gradient_lanes, *out_lanes, *query_gradient_lanes;  // [padded_width, 32]
  float *scores, *score_gradient;                                               // [key_block, 32]
};
int64_t backward_floats(const Geometry& g);
BackwardScratch backward_scratch(const Geometry& g, float* base);

// A head of a context window: a query head, or a key/value head.
struct WindowHead {
  int64_t window, head;
};
// One block of 32 queries of one head against every key it sees.
struct QueryBlock {
  int64_t window, head, first;
};

// Threads that work on independent tasks, each with scratch of its own.
struct Team {
  int64_t tasks;
  int threads;
  int64_t floats;  // of scratch, a thread
  size_t bytes() const { return static_cast<size_t>(floats * threads) * sizeof(float); }
};
Team forward_team(const Geometry& g, int threads);   // a task: a window's query head
Team backward_team(const Geometry& g, int threads);  // a task: a window's key/value head

}  // namespace octet
