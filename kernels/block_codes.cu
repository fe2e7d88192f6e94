// Gradients on the wire.
//
// encode: code = E4M3(value * scale of its block of 256), rounded stochastically; one pass, a warp a block.
//   Bytes: 4 (BF16: 2) a value read, 1 + 1/256 written. Floor 5 n / bandwidth. Philox and stochastic rounding
//   are some 40 integer instructions a value, which may bound it instead.
// decode: out = sum over sources of code * inverse scale, in FP32 in their order; eight values a thread.
//   Bytes: 1 + 1/256 a value and source read, 4 (2) written, as many read when it accumulates. Bound by
//   memory: floor (sources + 4) n / bandwidth.
#include "kernels/block_codes.h"

#include "base/random.h"
#include "kernels/block.h"
#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/values.cuh"
#include "numerics/block_codes.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256, warps = threads / 32;
constexpr int own = vector_values;  // neighbours a thread has
static_assert(code_block == 32 * own, "a warp has a block in its registers");

// Messages and their parts, in bytes.
struct Layout {
  int64_t pieces, piece, blocks, coded, stride;
};
Layout layout_of(int64_t pieces, int64_t piece) {
  return {.pieces = pieces,
          .piece = piece,
          .blocks = code_blocks(piece),
          .coded = coded_bytes(piece),
          .stride = message_bytes(piece)};
}

// How many of the eight values from value i of message p on are there, of `count` in all.
__device__ __forceinline__ int present(const Layout& layout, int64_t p, int64_t i, int64_t count) {
  const int64_t in_piece = layout.piece - i, in_all = count - (p * layout.piece + i);
  const int64_t left = in_piece < in_all ? in_piece : in_all;
  return static_cast<int>(left < 0 ? 0 : left < own ? left : own);
}

struct Encode {
  Layout layout;
  int64_t count;
  uint8_t* messages;
  int log2_mu;
  uint64_t key;
  uint32_t* saturated;
};

template <class T, bool vectors>
__global__ void __launch_bounds__(threads) encode_kernel(const T* __restrict__ source, Encode encode) {
  const Layout layout = encode.layout;
  const int64_t lane = threadIdx.x % 32, total = layout.pieces * layout.blocks;
  unsigned saturated = 0;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32; b < total;
       b += static_cast<int64_t>(gridDim.x) * warps) {
    const int64_t p = b / layout.blocks, block = b % layout.blocks, i = block * code_block + own * lane;
    const int n = present(layout, p, i, encode.count);
    float v[own];
    if (vectors && n == own) {
      load8_streaming(source + p * layout.piece + i, v);
    } else {
      load_some(source + (n ? p * layout.piece + i : 0), n, v);
    }
    float largest = 0.0f;
#pragma unroll
    for (int j = 0; j < own; ++j) largest = max_magnitude(largest, v[j]);
    const BlockScale scale = block_scale(warp_max_magnitude(largest), encode.log2_mu);

    const uint64_t draw = static_cast<uint64_t>(p * layout.coded + i) / 4;
    const Random4 low = philox(encode.key, draw), high = philox(encode.key, draw + 1);
    const uint32_t words[own] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    uint8_t codes[own];
#pragma unroll
    for (int j = 0; j < own; ++j) {
      v[j] *= scale.scale;
      codes[j] = encode_stochastic(octet::Format::E4M3, v[j], words[j]);
      saturated += scale.inverse != e8m0_nan && fabsf(v[j]) > e4m3_max ? 1 : 0;
    }

    uint8_t* const message = encode.messages + p * layout.stride;
    if (i < layout.coded)
      gpu::store_streaming(reinterpret_cast<uint2*>(message + i),
                           make_uint2(plain::join(codes[0], codes[1], codes[2], codes[3]),
                                      plain::join(codes[4], codes[5], codes[6], codes[7])));
    if (lane == 0) message[layout.coded + block] = scale.inverse;
    const int64_t beyond = layout.coded + layout.blocks + lane;  // less than 16 bytes
    if (block == layout.blocks - 1 && beyond < layout.stride) message[beyond] = 0;
  }
  saturated = __reduce_add_sync(all_lanes, saturated);
  if (lane == 0 && saturated != 0) atomicAdd(encode.saturated, saturated);
}

struct Decode {
  Layout layout;
  const uint8_t* messages;
  int64_t sources, count;
  bool accumulate;
};

template <class T, bool vectors>
__global__ void __launch_bounds__(threads) decode_kernel(T* __restrict__ out, Decode decode) {
  const Layout layout = decode.layout;
  const int64_t each = layout.coded / own, total = layout.pieces * each;
  const int64_t between = layout.pieces * layout.stride;  // one source and the next
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; e < total;
       e += static_cast<int64_t>(gridDim.x) * threads) {
    const int64_t p = e / each, i = e % each * own;
    const int n = present(layout, p, i, decode.count);
    if (n == 0) continue;
    const uint8_t* message = decode.messages + p * layout.stride;
    T* const to = out + p * layout.piece + i;
    float sum[own] = {};
    if (decode.accumulate) load_some(to, n, sum);
#pragma unroll 4
    for (int64_t s = 0; s < decode.sources; ++s, message += between) {
      const uint2 codes = gpu::load_streaming(reinterpret_cast<const uint2*>(message + i));
      const float inverse = e8m0_value(message[layout.coded + i / code_block]);
      float v[own];
      unpack8(decode_e4m3x4(codes.x), decode_e4m3x4(codes.y), v);
#pragma unroll
      for (int j = 0; j < own; ++j)
        sum[j] = s == 0 && !decode.accumulate ? v[j] * inverse : sum[j] + v[j] * inverse;
    }
    if (vectors && n == own) {
      store8_streaming(to, sum);
    } else {
      store_some(to, n, sum);
    }
  }
}

}  // namespace

void encode_blocks(const EncodeBlocksArguments& args) {
  if (args.pieces <= 0) return;
  const Encode encode{.layout = layout_of(args.pieces, args.piece),
                      .count = args.count,
                      .messages = args.messages,
                      .log2_mu = args.log2_mu,
                      .key = args.rounding_key,
                      .saturated = args.saturated};
  const gpu::Launch launch{.grid = walking_grid(encode.layout.pieces * encode.layout.blocks, warps),
                           .block = threads,
                           .stream = args.stream};
  const bool vectors = in_vectors(args.piece, args.source);
  with_storage(args.storage, [&](auto value) {
    using T = decltype(value);
    gpu::launch(vectors ? encode_kernel<T, true> : encode_kernel<T, false>, launch,
                static_cast<const T*>(args.source), encode);
  });
}

void decode_blocks(const DecodeBlocksArguments& args) {
  if (args.count <= 0) return;
  const Decode decode{.layout = layout_of(args.pieces, args.piece),
                      .messages = args.messages,
                      .sources = args.sources,
                      .count = args.count,
                      .accumulate = args.accumulate};
  const gpu::Launch launch{.grid = walking_grid(args.pieces * decode.layout.coded / own, threads),
                           .block = threads,
                           .stream = args.stream};
  const bool vectors = in_vectors(args.piece, args.out);
  with_storage(args.storage, [&](auto value) {
    using T = decltype(value);
    gpu::launch(vectors ? decode_kernel<T, true> : decode_kernel<T, false>, launch, static_cast<T*>(args.out),
                decode);
  });
}

OCTET_KERNELS_END
