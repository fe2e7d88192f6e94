#include "kernels/instructions.h"

#include <cmath>
#include <vector>

#include "base/random.h"
#include "catch.h"

using namespace octet;

namespace {

// One thread a group of four.
__global__ void encode_and_decode(Format format, const float4* in, uint32_t* codes, float4* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  codes[i] = kernels::encode_x4(format, gpu::load(in + i));
  gpu::store(out + i, kernels::decode_x4(format, codes[i]));
}
__global__ void pack_and_unpack(const float4* in, uint2* pairs, float4* out) {
  const unsigned i = threadIdx.x;
  const float4 v = gpu::load(in + i);
  pairs[i] = make_uint2(kernels::pack_bfloat16x2(v.x, v.y), kernels::pack_bfloat16x2(v.z, v.w));
  const float2 low = kernels::unpack_bfloat16x2(pairs[i].x), high = kernels::unpack_bfloat16x2(pairs[i].y);
  gpu::store(out + i, make_float4(low.x, low.y, high.x, high.y));
}

// Random bit patterns, so all exponents, infinities and NaNs of both signs are among them; and the borders.
std::vector<float4> patterns() {
  std::vector<float4> groups(256);
  for (size_t i = 0; i < groups.size(); ++i) {
    const Random4 r = philox(7, i);
    groups[i] = make_float4(__uint_as_float(r.x), __uint_as_float(r.y),
                            std::ldexp(static_cast<float>(r.z >> 8), -30),  // the formats' range
                            -std::ldexp(static_cast<float>(r.w >> 8), -32));
  }
  groups[0] = make_float4(448.0f, -464.0f, INFINITY, -INFINITY);
  groups[1] = make_float4(NAN, -NAN, 0.0f, -0.0f);
  groups[2] = make_float4(57344.0f, -61440.0f, 0x1p-10f, -0x1.8p-9f);
  return groups;
}

}  // namespace

TEST_CASE("four values at a time have the codes of numerics/, the first in the lowest byte") {
  const std::vector<float4> in = patterns();
  for (const Format format : {Format::E4M3, Format::E5M2}) {
    std::vector<uint32_t> codes(in.size());
    std::vector<float4> out(in.size());
    gpu::launch(encode_and_decode, {.grid = 4, .block = 64}, format, in.data(), codes.data(), out.data());
    int wrong = 0, wrong_if_reversed = 0;
    for (size_t i = 0; i < in.size(); ++i) {
      const float values[] = {in[i].x, in[i].y, in[i].z, in[i].w},
                  decoded[] = {out[i].x, out[i].y, out[i].z, out[i].w};
      for (unsigned j = 0; j < 4; ++j) {
        const uint8_t code = encode(format, values[j]);
        wrong += static_cast<uint8_t>(codes[i] >> (8 * j)) != code;
        wrong += __float_as_uint(decoded[j]) != __float_as_uint(decode(format, code));
        wrong_if_reversed += static_cast<uint8_t>(codes[i] >> (24 - 8 * j)) != code;
      }
    }
    CHECK(wrong == 0);
    CHECK(wrong_if_reversed > 0);
  }
}

TEST_CASE("pairs of BF16 have the bits of numerics/, the first in the lower half") {
  const std::vector<float4> in = patterns();
  std::vector<uint2> pairs(in.size());
  std::vector<float4> out(in.size());
  gpu::launch(pack_and_unpack, {.grid = 1, .block = 256}, in.data(), pairs.data(), out.data());
  int wrong = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    wrong += (pairs[i].x & 0xffffu) != to_bfloat16(in[i].x).bits;
    wrong += pairs[i].x >> 16 != to_bfloat16(in[i].y).bits;
    wrong += __float_as_uint(out[i].z) != __float_as_uint(round_to_bfloat16(in[i].z));
    wrong += __float_as_uint(out[i].w) != __float_as_uint(round_to_bfloat16(in[i].w));
  }
  CHECK(wrong == 0);
}
