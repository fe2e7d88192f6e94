#include "device/cpu/stored_master.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/random.h"
#include "device/cpu/amax.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/unpack.h"
#include "numerics/bfloat16.h"
#include "numerics/masters.h"
#include "numerics/scaling.h"

namespace octet {
namespace {

constexpr int64_t span = 1024;  // elements held on the stack at a time
static_assert(span % master_block == 0);

}  // namespace

template <class Read>
void StoredMasters::for_stored(int64_t begin, int64_t n, float* w, const Read& read) const {
  const float* inverse = code_.inverse.empty() ? nullptr : code_.inverse.as<float>();
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = begin + i;
    const StoredMaster stored{numbers()[at], code_.rest.empty() ? uint16_t{0} : rests()[at]};
    w[i] = read(code_.format, stored, inverse ? inverse[at / master_block] : 1.0f);
  }
}

void StoredMasters::load(int64_t begin, int64_t n, float* w) const {
  if (code_.format == MasterFormat::FP32) return unpack(DType::F32, at(values_, begin), w, n);
  for_stored(begin, n, w, [](auto... stored) { return load_master(stored...); });
}

void StoredMasters::values(int64_t begin, int64_t n, float* w) const {
  if (code_.is_plain()) return unpack(values_.dtype, at(values_, begin), w, n);
  for_stored(begin, n, w, [](auto... stored) { return master_value(stored...); });
}

void StoredMasters::store(int64_t begin, int64_t n, const float* w, const Draws* draws) const {
  if (code_.format == MasterFormat::FP32) {
    std::memcpy(values_.as<float>() + begin, w, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  const MasterFormat format =
      code_.format == MasterFormat::BF16Stochastic && !draws ? MasterFormat::BF16Nearest : code_.format;
  const bool draw = format == MasterFormat::BF16Stochastic;
  for (int64_t block = 0; block < n; block += master_block) {
    const int64_t end = std::min(block + master_block, n);
    float scale = 1.0f;
    if (format == MasterFormat::FP16Scaled) {
      scale = master_scale(std::bit_cast<float>(amax_bits(w + block, end - block)));
      code_.inverse.as<float>()[(begin + block) / master_block] = 1.0f / scale;
    }
    for (int64_t i = block; i < end; ++i) {
      const uint32_t random =
          draw ? random_bits(draws->key, static_cast<uint64_t>(draws->first + begin + i)) : 0;
      const StoredMaster stored = store_master(format, w[i], scale, random);
      numbers()[begin + i] = stored.value;
      if (!code_.rest.empty()) rests()[begin + i] = stored.rest;
    }
  }
}

void StoredMasters::raise_amax(int64_t n, const Tensor& amax) const {
  uint32_t largest = 0;
  for (int64_t begin = 0; begin < n; begin += span) {
    const int64_t count = std::min(span, n - begin);
    float w[span];
    values(begin, count, w);
    largest = std::max(largest, amax_bits(w, count));
  }
  raise_master_amax(amax, largest);
}

void raise_master_amax(const Tensor& tensor, uint32_t largest) {
  float& amax = *tensor.as<float>();
  amax = max_magnitude(amax, round_to_bfloat16(std::bit_cast<float>(largest)));
}

void CpuDevice::read_masters(const ReadMasters& op) {
  check(op);
  const StoredMasters masters(op.master, op.code);
  const int64_t n = op.master.elements(), spans = (n + span - 1) / span;
#pragma omp parallel for num_threads(threads_) schedule(static) if (spans > 1)
  for (int64_t s = 0; s < spans; ++s) {
    const int64_t begin = s * span, count = std::min(span, n - begin);
    float w[span];
    masters.values(begin, count, w);
    Tensor to = op.values;
    pack(to.dtype, w, at(to, begin), count);
  }
}

void CpuDevice::write_masters(const WriteMasters& op) {
  check(op);
  const StoredMasters masters(op.master, op.code);
  const int64_t n = op.master.elements(), spans = (n + span - 1) / span;
#pragma omp parallel for num_threads(threads_) schedule(static) if (spans > 1)
  for (int64_t s = 0; s < spans; ++s) {
    const int64_t begin = s * span;
    masters.store(begin, std::min(span, n - begin), op.values.as<float>() + begin, nullptr);
  }
}

}  // namespace octet
