// Gradients on the wire: codes with a scale a block, and the sum of decoded codes.  [numerics/block_codes.h]
#include "numerics/block_codes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/platform.h"
#include "base/random.h"
#include "device/block_codes.h"
#include "device/cpu/amax.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/unpack.h"

namespace octet {
namespace {

OCTET_VECTORIZED void scale_values(float* values, float scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] *= scale;
}
OCTET_VECTORIZED void random_words(uint64_t key, uint64_t first, uint32_t* words) {
  for (int64_t i = 0; i < code_block / 4; ++i) {
    const Random4 r = philox(key, first + static_cast<uint64_t>(i));
    words[4 * i] = r.x;
    words[4 * i + 1] = r.y;
    words[4 * i + 2] = r.z;
    words[4 * i + 3] = r.w;
  }
}
OCTET_VECTORIZED void encode_values(const float* values, const uint32_t* words, uint8_t* codes) {
  for (int64_t i = 0; i < code_block; ++i) codes[i] = encode_stochastic(Format::E4M3, values[i], words[i]);
}
OCTET_VECTORIZED uint32_t count_beyond(const float* values, float limit) {
  uint32_t count = 0;
  for (int64_t i = 0; i < code_block; ++i) count += std::abs(values[i]) > limit ? 1 : 0;
  return count;
}
OCTET_VECTORIZED void decode_values(float* values, float inverse, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] *= inverse;
}
OCTET_VECTORIZED void add_values(float* sum, const float* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += values[i];
}

}  // namespace

void CpuDevice::encode_blocks(const EncodeBlocks& op) {
  check(op);
  const int64_t piece = op.piece, blocks = code_blocks(piece), coded = coded_bytes(piece),
                stride = message_bytes(piece), total = op.messages.rows() * blocks;
  uint32_t saturated = 0;
#pragma omp parallel for num_threads(threads_) schedule(static) reduction(+ : saturated) if (total > 64)
  for (int64_t b = 0; b < total; ++b) {
    const int64_t p = b / blocks, i = b % blocks * code_block, first = p * piece + i;
    const int64_t n = std::clamp<int64_t>(std::min(piece - i, op.source.elements() - first), 0, code_block);
    float values[code_block] = {};
    if (n > 0) unpack(op.source.dtype, at(op.source, first), values, n);
    const BlockScale scale = block_scale(std::bit_cast<float>(amax_bits(values, n)), op.log2_mu);
    scale_values(values, scale.scale, code_block);
    uint32_t words[code_block];
    random_words(op.rounding_key, static_cast<uint64_t>(p * coded + i) / 4, words);
    uint8_t codes[code_block];
    encode_values(values, words, codes);
    if (scale.inverse != e8m0_nan) saturated += count_beyond(values, e4m3_max);

    uint8_t* const message = op.messages.as<uint8_t>() + p * stride;
    std::memcpy(message + i, codes, static_cast<size_t>(std::min(code_block, coded - i)));
    message[coded + b % blocks] = scale.inverse;
    if (b % blocks == blocks - 1)
      std::memset(message + coded + blocks, 0, static_cast<size_t>(stride - coded - blocks));
  }
  *op.saturated.as<uint32_t>() += saturated;
}

void CpuDevice::decode_blocks(const DecodeBlocks& op) {
  check(op);
  const int64_t piece = op.piece, blocks = code_blocks(piece), coded = coded_bytes(piece),
                stride = message_bytes(piece), sources = op.messages.shape[0], pieces = op.messages.shape[1],
                total = pieces * blocks;
#pragma omp parallel for num_threads(threads_) schedule(static) if (total > 64)
  for (int64_t b = 0; b < total; ++b) {
    const int64_t p = b / blocks, i = b % blocks * code_block, first = p * piece + i;
    const int64_t n = std::clamp<int64_t>(std::min(piece - i, op.out.elements() - first), 0, code_block);
    if (n == 0) continue;
    Tensor out = op.out;
    float sum[code_block], values[code_block];
    if (op.accumulate) unpack(out.dtype, at(op.out, first), sum, n);
    for (int64_t s = 0; s < sources; ++s) {
      const uint8_t* const message = op.messages.as<uint8_t>() + (s * pieces + p) * stride;
      const bool begins = s == 0 && !op.accumulate;
      float* const to = begins ? sum : values;
      unpack(DType::E4M3, message + i, to, n);
      decode_values(to, e8m0_value(message[coded + b % blocks]), n);
      if (!begins) add_values(sum, values, n);
    }
    pack(out.dtype, sum, at(out, first), n);
  }
}

}  // namespace octet
