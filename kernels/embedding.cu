// Token embedding: a row look-up; its backward adds the gradients of all tokens to the rows they came from.
//
//   forward   out[t] = table[id[t]] * multiplier          reads and writes T row bytes: bound by memory,
//   floor
//                                                         2 T row bytes / bandwidth (less for repeated
//                                                         tokens)
//   backward  table_gradient[id] += sum of out_gradient[t] * multiplier over the tokens t with that id, in
//   their order
//             reads T rows, reads and writes the rows of the table that occur: bound by memory, but the row
//             of a token that occurs n times is a chain of n additions, 32 bytes (FP32) wide a thread
//
// Backward sorts (id, position) by id first: a stable radix sort from the low digit on, two launches a digit,
// about 40 bytes a token and digit: bound by the latency of its launches. No atomics, so one result.
#include "kernels/embedding.h"

#include <bit>

#include "kernels/block.h"
#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/output.cuh"
#include "numerics/sums.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256, warps = threads / 32;

// ---- forward

// Unit: the largest of 16 bytes and a value that rows and pointers are whole multiples of. Bits are copied.
struct Lookup {
  void* out;
  const int32_t* ids;
  const void* table;
  int64_t tokens, vocabulary, units;
  uint32_t* bad_token;
};

template <class Unit>
__global__ void __launch_bounds__(threads) lookup_kernel(Lookup args) {
  const int64_t lane = threadIdx.x % 32;
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32; t < args.tokens;
       t += static_cast<int64_t>(gridDim.x) * warps) {
    const int64_t id = args.ids[t];
    const bool good = id >= 0 && id < args.vocabulary;
    Unit* const out = static_cast<Unit*>(args.out) + t * args.units;
    const Unit* const row = static_cast<const Unit*>(args.table) + (good ? id : 0) * args.units;
#pragma unroll 4
    for (int64_t i = lane; i < args.units; i += 32) gpu::store(out + i, good ? gpu::load(row + i) : Unit{});
    if (!good && lane == 0 && args.bad_token) atomicMax(args.bad_token, static_cast<uint32_t>(t + 1));
  }
}

// The same times a number, rounded once.
template <class T>
__global__ void __launch_bounds__(threads)
    scaled_lookup_kernel(EmbeddingForwardArguments args, Access access) {
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32; t < args.tokens;
       t += static_cast<int64_t>(gridDim.x) * warps) {
    const int64_t id = args.ids[t], first = vector_values * static_cast<int64_t>(threadIdx.x % 32);
    const bool good = id >= 0 && id < args.vocabulary;
    const T* const row = static_cast<const T*>(args.table) + (good ? id : 0) * args.width;
    T* const out = static_cast<T*>(args.out) + t * args.width;
    for (int64_t c = first; c < args.width; c += 32 * vector_values) {
      float v[8];
      load_up_to8(access, row + c, args.width - c, v);
#pragma unroll
      for (float& x : v) x = good ? x * args.multiplier : 0.0f;
      store_up_to8(access, out + c, args.width - c, v);
    }
    if (!good && first == 0 && args.bad_token) atomicMax(args.bad_token, static_cast<uint32_t>(t + 1));
  }
}

// ---- sorting

constexpr int digit_bits = 8;
constexpr unsigned digits = 1u << digit_bits;
constexpr int rounds = 8;                      // entries a thread takes
constexpr int64_t tile = threads * rounds;     // entries a block takes
constexpr int64_t warp_entries = 32 * rounds;  // neighbours, so that warps keep their order too
static_assert(digits == threads, "a thread a digit");

// An entry is (id << 32 | position), id = vocabulary where it is out of range: these end up behind all
// others.
struct SortPass {
  const int32_t* ids;
  const uint64_t* from;  // null: the first pass, from `ids`
  uint64_t* to;
  uint32_t* counts;  // [blocks, digits]
  int64_t tokens, vocabulary;
  int shift;  // of the digit in the id

  __device__ __forceinline__ uint64_t entry(int64_t i) const {
    if (from) return from[i];
    const int64_t id = ids[i];
    return static_cast<uint64_t>(id >= 0 && id < vocabulary ? id : vocabulary) << 32 |
           static_cast<uint64_t>(i);
  }
  __device__ __forceinline__ unsigned digit(uint64_t entry) const {
    return static_cast<unsigned>(entry >> (32 + shift)) % digits;
  }
  // Entry of this thread in a round of its warp.
  __device__ __forceinline__ int64_t index(int round) const {
    return blockIdx.x * tile + threadIdx.x / 32 * warp_entries + 32 * round + threadIdx.x % 32;
  }
};

// The valid lanes whose digit is this lane's; 0 in a lane that is not valid.
__device__ __forceinline__ unsigned lanes_alike(unsigned digit, bool valid) {
  unsigned alike = __ballot_sync(all_lanes, valid);
#pragma unroll
  for (int bit = 0; bit < digit_bits; ++bit) {
    const bool set = (digit >> bit & 1u) != 0;
    const unsigned lanes = __ballot_sync(all_lanes, set);
    alike &= set ? lanes : ~lanes;
  }
  return valid ? alike : 0u;
}
__device__ __forceinline__ unsigned lanes_below() { return (1u << threadIdx.x % 32) - 1u; }

using Counters = uint32_t[warps][digits];

// counters[w][d] = entries with digit d that are warp w's.
__device__ __forceinline__ void count_tile(const SortPass& pass, Counters& counters) {
  const unsigned warp = threadIdx.x / 32;
  for (unsigned w = 0; w < warps; ++w) counters[w][threadIdx.x] = 0;
  __syncthreads();
  for (int round = 0; round < rounds; ++round) {
    const int64_t i = pass.index(round);
    const bool valid = i < pass.tokens;
    const unsigned digit = valid ? pass.digit(pass.entry(i)) : 0u, alike = lanes_alike(digit, valid);
    if (valid && (alike & lanes_below()) == 0) counters[warp][digit] += static_cast<uint32_t>(__popc(alike));
    __syncwarp();
  }
  __syncthreads();
}

__global__ void __launch_bounds__(threads) count_kernel(SortPass pass) {
  GPU_SHARED(Counters, counters, 1);
  count_tile(pass, counters[0]);
  uint32_t sum = 0;
  for (unsigned w = 0; w < warps; ++w) sum += counters[0][w][threadIdx.x];
  pass.counts[blockIdx.x * digits + threadIdx.x] = sum;
}

// The sum of the values of all threads before this one.
__device__ __forceinline__ uint32_t sum_before(uint32_t value) {
  GPU_SHARED(uint32_t, sums, warps);
  const unsigned lane = threadIdx.x % 32;
  uint32_t inclusive = value;
#pragma unroll
  for (unsigned distance = 1; distance < 32; distance *= 2) {
    const uint32_t before = __shfl_up_sync(all_lanes, inclusive, distance);
    if (lane >= distance) inclusive += before;
  }
  if (lane == 31) sums[threadIdx.x / 32] = inclusive;
  __syncthreads();
  uint32_t sum = inclusive - value;
  for (unsigned w = 0; w < threadIdx.x / 32; ++w) sum += sums[w];
  return sum;
}

__global__ void __launch_bounds__(threads) place_kernel(SortPass pass) {
  GPU_SHARED(Counters, counters, 1);
  count_tile(pass, counters[0]);
  // Where this digit's entries of the first warp go: behind all smaller digits, and behind this digit's in
  // earlier blocks.
  uint32_t all = 0, earlier = 0;
#pragma unroll 8
  for (unsigned block = 0; block < gridDim.x; ++block) {
    const uint32_t count = pass.counts[block * digits + threadIdx.x];
    all += count;
    earlier += block < blockIdx.x ? count : 0u;
  }
  uint32_t next = sum_before(all) + earlier;
  for (unsigned w = 0; w < warps; ++w) {
    const uint32_t count = counters[0][w][threadIdx.x];
    counters[0][w][threadIdx.x] = next;
    next += count;
  }
  __syncthreads();
  uint32_t(&places)[digits] = counters[0][threadIdx.x / 32];
  for (int round = 0; round < rounds; ++round) {
    const int64_t i = pass.index(round);
    const bool valid = i < pass.tokens;
    const uint64_t entry = valid ? pass.entry(i) : 0u;
    const unsigned digit = pass.digit(entry), alike = lanes_alike(digit, valid),
                   below = alike & lanes_below();
    if (valid) pass.to[places[digit] + static_cast<uint32_t>(__popc(below))] = entry;
    __syncwarp();
    if (valid && below == 0) places[digit] += static_cast<uint32_t>(__popc(alike));
    __syncwarp();
  }
}

// ---- backward

constexpr int window = 8;  // sorted entries a warp looks at for first ones of their id
static_assert(window < 32, "a lane an entry, and one for the entry before");
static_assert(sum_lanes == 32 * vector_values);

struct Accumulate {
  void* table_gradient;
  const void* out_gradient;
  const uint64_t* order;
  int64_t tokens, vocabulary, width;
  float multiplier;
};

template <bool vectors, class T>
__device__ __forceinline__ void load_piece(const T* from, int64_t count, float (&v)[8]) {
  if (vectors) {
    if (count > 0) load8(from, v);
  } else {
    load_some(from, count, v);
  }
}

// Adds the rows of the entries from `begin` on that have the id of the first, 256 columns by one warp.
template <class Gradient, class Storage, bool vectors>
__device__ __forceinline__ void add_run(const Accumulate& args, int64_t begin, uint64_t id) {
  constexpr int together = 8;  // rows in flight
  const int64_t column = blockIdx.y * sum_lanes + vector_values * static_cast<int64_t>(threadIdx.x % 32);
  const int64_t left = args.width - column;  // may be negative: such lanes only shuffle
  Gradient* const row =
      static_cast<Gradient*>(args.table_gradient) + static_cast<int64_t>(id) * args.width + column;
  const Storage* const rows = static_cast<const Storage*>(args.out_gradient) + column;
  float sums[8] = {};
  load_piece<vectors>(row, left, sums);
  for (int64_t first = begin;; first += 32) {
    const int64_t mine = first + threadIdx.x % 32;
    const uint64_t entry = mine < args.tokens ? args.order[mine] : ~uint64_t{0};
    const int count =
        __popc(__ballot_sync(all_lanes, entry >> 32 == id));  // sorted, so they are the first ones
    const uint32_t position = static_cast<uint32_t>(entry);
    for (int j = 0; j < count; j += together) {
      float v[together][8] = {};
#pragma unroll
      for (int k = 0; k < together; ++k) {
        const int64_t t = __shfl_sync(all_lanes, position, (j + k) % 32);
        if (j + k < count) load_piece<vectors>(rows + t * args.width, left, v[k]);
      }
#pragma unroll
      for (int k = 0; k < together; ++k) {
        if (j + k < count) {
#pragma unroll
          for (int c = 0; c < 8; ++c) sums[c] += v[k][c] * args.multiplier;
        }
      }
    }
    if (count < 32) break;
  }
  if (vectors) {
    if (left > 0) store8(row, sums);
  } else {
    store_some(row, left, sums);
  }
}

template <class Gradient, class Storage, bool vectors>
__global__ void __launch_bounds__(threads) accumulate_kernel(Accumulate args) {
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32) * window;
  if (begin >= args.tokens) return;
  // Lane 0 has the entry before the window, lanes 1 .. `window` those of it.
  const int64_t lane = threadIdx.x % 32, mine = begin - 1 + lane;
  const bool there = lane <= window && mine >= 0 && mine < args.tokens;
  const uint64_t id = there ? args.order[mine] >> 32 : ~uint64_t{0};
  const uint64_t before = __shfl_up_sync(all_lanes, id, 1u);
  unsigned starts = __ballot_sync(
      all_lanes, lane >= 1 && lane <= window && id != before && id < static_cast<uint64_t>(args.vocabulary));
  for (; starts; starts &= starts - 1u) {
    const int first = __ffs(static_cast<int>(starts)) - 1;
    add_run<Gradient, Storage, vectors>(args, begin - 1 + first, __shfl_sync(all_lanes, id, first));
  }
}

int64_t sort_blocks(int64_t tokens) { return (tokens + tile - 1) / tile; }

}  // namespace

void embedding_forward(const EmbeddingForwardArguments& args) {
  if (args.tokens <= 0 || args.width <= 0) return;
  if (args.multiplier != 1.0f) {
    const Access access = in_vectors(args.width, args.out, args.table) ? Access::Vectors : Access::Single;
    return with_storage(args.storage, [&](auto storage) {
      gpu::launch(scaled_lookup_kernel<decltype(storage)>,
                  {.grid = walking_grid(args.tokens, warps), .block = threads, .stream = args.stream}, args,
                  access);
    });
  }
  const bool wide = args.storage == octet::Format::FP32;
  const int64_t bytes = args.width * (wide ? 4 : 2);
  const bool vectors = bytes % 16 == 0 && is_aligned16(args.out) && is_aligned16(args.table);
  gpu::launch(vectors ? lookup_kernel<uint4>
              : wide  ? lookup_kernel<uint32_t>
                      : lookup_kernel<uint16_t>,
              {.grid = walking_grid(args.tokens, warps), .block = threads, .stream = args.stream},
              Lookup{.out = args.out,
                     .ids = args.ids,
                     .table = args.table,
                     .tokens = args.tokens,
                     .vocabulary = args.vocabulary,
                     .units = vectors ? bytes / 16 : args.width,
                     .bad_token = args.bad_token});
}

int64_t embedding_scratch_bytes(int64_t tokens) {
  return 2 * tokens * static_cast<int64_t>(sizeof(uint64_t)) +
         sort_blocks(tokens) * static_cast<int64_t>(digits * sizeof(uint32_t));
}

void embedding_backward(const EmbeddingBackwardArguments& args) {
  if (args.tokens <= 0 || args.width <= 0) return;
  auto* const entries = static_cast<uint64_t*>(args.scratch);
  uint64_t* const buffers[2] = {entries, entries + args.tokens};
  SortPass pass{.ids = args.ids,
                .from = nullptr,
                .to = nullptr,
                .counts = reinterpret_cast<uint32_t*>(entries + 2 * args.tokens),
                .tokens = args.tokens,
                .vocabulary = args.vocabulary,
                .shift = 0};
  const gpu::Launch sort{
      .grid = static_cast<unsigned>(sort_blocks(args.tokens)), .block = threads, .stream = args.stream};
  const auto bits = static_cast<int>(
      std::bit_width(static_cast<uint64_t>(args.vocabulary)));  // of the largest id, `vocabulary`
  for (int turn = 0; turn * digit_bits < bits; ++turn) {
    pass.shift = turn * digit_bits;
    pass.to = buffers[turn % 2];
    gpu::launch(count_kernel, sort, pass);
    gpu::launch(place_kernel, sort, pass);
    pass.from = pass.to;
  }

  const Accumulate accumulate{.table_gradient = args.table_gradient,
                              .out_gradient = args.out_gradient,
                              .order = pass.from,
                              .tokens = args.tokens,
                              .vocabulary = args.vocabulary,
                              .width = args.width,
                              .multiplier = args.multiplier};
  const bool vectors = in_vectors(args.width, args.table_gradient, args.out_gradient);
  const int64_t block_entries = warps * window;
  const gpu::Launch launch{
      .grid = dim3(static_cast<unsigned>((args.tokens + block_entries - 1) / block_entries),
                   static_cast<unsigned>((args.width + sum_lanes - 1) / sum_lanes)),
      .block = threads,
      .stream = args.stream};
  with_storage(args.gradient_storage, [&](auto gradient) {
    with_storage(args.storage, [&](auto storage) {
      using Gradient = decltype(gradient);
      using Storage = decltype(storage);
      gpu::launch(
          vectors ? accumulate_kernel<Gradient, Storage, true> : accumulate_kernel<Gradient, Storage, false>,
          launch, accumulate);
    });
  });
}

OCTET_KERNELS_END
