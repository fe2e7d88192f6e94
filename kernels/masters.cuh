// Reading and storing masters, four neighbours a thread.
#pragma once
#include "base/random.h"
#include "kernels/masters.h"
#include "kernels/neighbours.cuh"
#include "numerics/masters.h"

OCTET_KERNELS_BEGIN

static_assert(usual_block == master_block, "a warp has one block of masters");

struct StoredFour {
  uint16_t value[own], rest[own];
};

__device__ __forceinline__ uint16_t* halves_of(const MasterArguments& master) {
  return static_cast<uint16_t*>(master.values);
}

// Numbers an update starts from (Reader: load_master) or the model sees (master_value).
template <class Reader>
__device__ __forceinline__ void read4(const MasterArguments& master, Access access, int64_t i, int n,
                                      float (&w)[own], const Reader& reader) {
  if (master.format == octet::MasterFormat::FP32)
    return load4(access, static_cast<const float*>(master.values) + i, n, w);
  StoredFour stored = {};
  load_halves(access, halves_of(master) + i, n, stored.value);
  if (master.rest) load_halves(access, master.rest + i, n, stored.rest);
  const float inverse = master.inverse && n > 0 ? master.inverse[i / master_block] : 1.0f;
#pragma unroll
  for (int j = 0; j < own; ++j)
    w[j] = reader(master.format, StoredMaster{stored.value[j], stored.rest[j]}, inverse);
}
struct LoadMaster {
  __device__ __forceinline__ float operator()(octet::MasterFormat f, StoredMaster s, float inverse) const {
    return load_master(f, s, inverse);
  }
};
struct MasterValue {
  __device__ __forceinline__ float operator()(octet::MasterFormat f, StoredMaster s, float inverse) const {
    return master_value(f, s, inverse);
  }
};

// By whole warps: the scale of the block of 128 that a warp has four numbers a lane of; `block`: its number.
// Zeros stand for what is not there.
__device__ __forceinline__ float scale_masters(const MasterArguments& master, int64_t block,
                                               const float (&w)[own]) {
  if (!master.inverse) return 1.0f;
  uint32_t largest = 0;
#pragma unroll
  for (int j = 0; j < own; ++j) largest = larger(largest, w[j]);
  const float scale = master_scale(__uint_as_float(__reduce_max_sync(all_lanes, largest)));
  if (threadIdx.x % 32 == 0) master.inverse[block] = 1.0f / scale;
  return scale;
}

// By whole warps, not before all lanes have read. w becomes what the model sees. `draws`: random bits.
__device__ __forceinline__ void store_masters(const MasterArguments& master, Access access, int64_t i, int n,
                                              float (&w)[own], Random4 draws) {
  if (master.format == octet::MasterFormat::FP32)
    return store4(access, static_cast<float*>(master.values) + i, n, w);
#pragma unroll
  for (int j = 0; j < own; ++j) w[j] = j < n ? w[j] : 0.0f;
  const float scale = scale_masters(master, i / master_block, w), inverse = 1.0f / scale;
  const uint32_t random[own] = {draws.x, draws.y, draws.z, draws.w};
  StoredFour stored;
#pragma unroll
  for (int j = 0; j < own; ++j) {
    const StoredMaster one = store_master(master.format, w[j], scale, random[j]);
    stored.value[j] = one.value, stored.rest[j] = one.rest;
    w[j] = master_value(master.format, one, inverse);
  }
  store_halves(access, halves_of(master) + i, n, stored.value);
  if (master.rest) store_halves(access, master.rest + i, n, stored.rest);
}

__device__ __forceinline__ float load_one(const MasterArguments& master, int64_t i) {
  if (master.format == octet::MasterFormat::FP32) return static_cast<const float*>(master.values)[i];
  return load_master(master.format, {halves_of(master)[i], master.rest ? master.rest[i] : uint16_t{0}},
                     master.inverse ? master.inverse[i / master_block] : 1.0f);
}
__device__ __forceinline__ float value_of_one(const MasterArguments& master, int64_t i) {
  if (master.format == octet::MasterFormat::FP32) return static_cast<const float*>(master.values)[i];
  return master_value(master.format, {halves_of(master)[i], master.rest ? master.rest[i] : uint16_t{0}},
                      master.inverse ? master.inverse[i / master_block] : 1.0f);
}
// The number that the model sees of what was stored.
__device__ __forceinline__ float store_one(const MasterArguments& master, int64_t i, float w, float scale,
                                           uint32_t random) {
  if (master.format == octet::MasterFormat::FP32) return static_cast<float*>(master.values)[i] = w;
  const StoredMaster stored = store_master(master.format, w, scale, random);
  halves_of(master)[i] = stored.value;
  if (master.rest) master.rest[i] = stored.rest;
  return master_value(master.format, stored, 1.0f / scale);
}

// The largest magnitude of masters, of all threads of a block. Rounding keeps the order, so that the largest
// is rounded instead of each.
__device__ __forceinline__ void raise_master_amax(uint32_t* amax, uint32_t largest) {
  const float of_block = block_max_magnitude(__uint_as_float(largest));
  if (threadIdx.x == 0) raise_amax(reinterpret_cast<float*>(amax), round_to_bfloat16(of_block));
}

// Host side: may four neighbours be reached at once?
inline bool is_aligned16(const MasterArguments& master) {
  return is_aligned16(master.values) && is_aligned16(master.rest);
}

OCTET_KERNELS_END
