// Reading and storing moments: four neighbours a thread in blocks of 128 (or none, or one scale a tensor), or
// single values in any blocks.
#pragma once
#include "kernels/moments.h"
#include "kernels/neighbours.cuh"
#include "numerics/moments.h"

OCTET_KERNELS_BEGIN

__host__ __device__ __forceinline__ bool is_coded(const MomentArguments& moment) {
  return is_coded_moment(moment.format);
}
__host__ __device__ __forceinline__ bool has_one_scale(const MomentArguments& moment) {
  return is_coded(moment) && moment.block == 0;
}
__host__ __device__ __forceinline__ bool has_block_scales(const MomentArguments& moment) {
  return is_coded(moment) && moment.block != 0;
}

__device__ __forceinline__ void load_moment(const MomentArguments& moment, Access access, int64_t i, int n,
                                            float (&v)[own]) {
  if (moment.format == octet::Format::FP32)
    return load4(access, static_cast<const float*>(moment.values) + i, n, v);
  if (moment.format == octet::Format::BF16)
    return load4(access, static_cast<const BFloat16*>(moment.values) + i, n, v);
  const int64_t block = moment.block ? i / usual_block : 0;
  const float inverse = n > 0 ? moment.inverse[block] : 1.0f;
  if (moment.format == octet::Format::FP16) {
    uint16_t codes[own];
    load_halves(access, static_cast<const uint16_t*>(moment.values) + i, n, codes);
#pragma unroll
    for (int j = 0; j < own; ++j) v[j] = decode_moment_fp16(codes[j], inverse);
    return;
  }
  const uint32_t codes = load_codes(access, static_cast<const uint8_t*>(moment.values) + i, n);
  if (moment.exponents) {
    const float k = inverse_exponent_of({inverse, n > 0 ? moment.exponents[block] : uint8_t{16}});
#pragma unroll
    for (int j = 0; j < own; ++j) v[j] = decode_expanded(moment.format, plain::code_of(codes, j), inverse, k);
    return;
  }
  const float4 four = decode_x4(moment.format, codes);
  v[0] = four.x * inverse, v[1] = four.y * inverse, v[2] = four.z * inverse, v[3] = four.w * inverse;
}

// A positive second moment never becomes zero [numerics/moments.h].
__device__ __forceinline__ uint32_t encode4(octet::Format format, Moment order, const float (&v)[own],
                                            float scale) {
  const uint32_t codes =
      encode_x4(format, make_float4(v[0] * scale, v[1] * scale, v[2] * scale, v[3] * scale));
  if (order == Moment::First) return codes;
  uint32_t floors = 0;
#pragma unroll
  for (int j = 0; j < own; ++j) floors |= (v[j] > 0.0f && plain::code_of(codes, j) == 0 ? 1u : 0u) << (8 * j);
  return codes | floors;
}

// Called by whole warps; `shared`: the largest magnitude of the tensor, when that decides.
__device__ __forceinline__ void store_moment(const MomentArguments& moment, Moment order, Access access,
                                             int64_t i, int n, const float (&v)[own],
                                             const uint32_t* shared) {
  if (moment.format == octet::Format::FP32)
    return store4(access, static_cast<float*>(moment.values) + i, n, v);
  if (moment.format == octet::Format::BF16)
    return store4(access, static_cast<BFloat16*>(moment.values) + i, n, v);
  const bool leads = threadIdx.x % 32 == 0;
  uint32_t largest = 0, rank = 0xffffffffu;
  if (moment.block == 0) {
    largest = *shared;
  } else {
#pragma unroll
    for (int j = 0; j < own; ++j) largest = j < n ? larger(largest, v[j]) : largest;
    largest = __reduce_max_sync(all_lanes, largest);
  }
  if (moment.exponents) {
#pragma unroll
    for (int j = 0; j < own; ++j) rank = j < n && nonzero_rank(v[j]) < rank ? nonzero_rank(v[j]) : rank;
    const ExpandedScale scale = expanded_scale(moment.format, __uint_as_float(largest),
                                               magnitude_of_rank(__reduce_min_sync(all_lanes, rank)));
    if (leads) {
      moment.inverse[i / usual_block] = scale.largest;
      moment.exponents[i / usual_block] = scale.sixteenths;
    }
    uint32_t codes = 0;
#pragma unroll
    for (int j = 0; j < own; ++j) {
      const uint8_t code = encode_expanded(moment.format, order, v[j], scale.largest, exponent_of(scale));
      codes |= static_cast<uint32_t>(code) << (8 * j);
    }
    store_codes(access, static_cast<uint8_t*>(moment.values) + i, n, codes);
    return;
  }
  const MomentScale scale = moment_scale(moment.format, __uint_as_float(largest));
  if (moment.block != 0 && leads) moment.inverse[i / usual_block] = scale.inverse;
  if (moment.format == octet::Format::FP16) {
    uint16_t codes[own];
#pragma unroll
    for (int j = 0; j < own; ++j) codes[j] = encode_moment_fp16(order, v[j], scale.scale);
    store_halves(access, static_cast<uint16_t*>(moment.values) + i, n, codes);
  } else {
    store_codes(access, static_cast<uint8_t*>(moment.values) + i, n,
                encode4(moment.format, order, v, scale.scale));
  }
}

// One weight's moment, whatever the blocks.
__device__ __forceinline__ float load_one(const MomentArguments& moment, int64_t i) {
  if (moment.format == octet::Format::FP32) return static_cast<const float*>(moment.values)[i];
  if (moment.format == octet::Format::BF16) return to_float(static_cast<const BFloat16*>(moment.values)[i]);
  const int64_t block = moment.block ? i / moment.block : 0;
  const float inverse = moment.inverse[block];
  if (moment.format == octet::Format::FP16)
    return decode_moment_fp16(static_cast<const uint16_t*>(moment.values)[i], inverse);
  const uint8_t code = static_cast<const uint8_t*>(moment.values)[i];
  if (moment.exponents)
    return decode_expanded(moment.format, code, inverse,
                           inverse_exponent_of({inverse, moment.exponents[block]}));
  return decode_moment(moment.format, code, inverse);
}

// Weights [begin, begin + n) from memory that the warp shares; by one warp.
__device__ __forceinline__ void store_span(const MomentArguments& moment, Moment order, int64_t begin,
                                           int64_t n, const float* values, const uint32_t* shared) {
  const int64_t lane = threadIdx.x % 32;
  if (!is_coded(moment)) {
    for (int64_t k = lane; k < n; k += 32) {
      if (moment.format == octet::Format::FP32) {
        static_cast<float*>(moment.values)[begin + k] = values[k];
      } else {
        static_cast<BFloat16*>(moment.values)[begin + k] = to_bfloat16(values[k]);
      }
    }
    return;
  }
  const int64_t block = moment.block ? moment.block : n;
  for (int64_t start = 0; start < n; start += block) {
    const int64_t end = start + block < n ? start + block : n, which = (begin + start) / block;
    uint32_t largest = 0, rank = 0xffffffffu;
    if (moment.block == 0) {
      largest = *shared;
    } else {
      for (int64_t k = start + lane; k < end; k += 32) {
        largest = larger(largest, values[k]);
        rank = nonzero_rank(values[k]) < rank ? nonzero_rank(values[k]) : rank;
      }
      largest = __reduce_max_sync(all_lanes, largest);
      rank = __reduce_min_sync(all_lanes, rank);
    }
    if (moment.exponents) {
      const ExpandedScale scale =
          expanded_scale(moment.format, __uint_as_float(largest), magnitude_of_rank(rank));
      if (lane == 0) {
        moment.inverse[which] = scale.largest;
        moment.exponents[which] = scale.sixteenths;
      }
      for (int64_t k = start + lane; k < end; k += 32) {
        static_cast<uint8_t*>(moment.values)[begin + k] =
            encode_expanded(moment.format, order, values[k], scale.largest, exponent_of(scale));
      }
      continue;
    }
    const MomentScale scale = moment_scale(moment.format, __uint_as_float(largest));
    if (moment.block != 0 && lane == 0) moment.inverse[which] = scale.inverse;
    for (int64_t k = start + lane; k < end; k += 32) {
      if (moment.format == octet::Format::FP16) {
        static_cast<uint16_t*>(moment.values)[begin + k] = encode_moment_fp16(order, values[k], scale.scale);
      } else {
        static_cast<uint8_t*>(moment.values)[begin + k] =
            encode_moment(moment.format, order, values[k], scale.scale);
      }
    }
  }
}

OCTET_KERNELS_END
