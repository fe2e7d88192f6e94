// Activations kept as codes.  [numerics/group_codes.h]
#include "numerics/group_codes.h"

#include <algorithm>
#include <bit>

#include "base/platform.h"
#include "device/cpu/amax.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/unpack.h"
#include "device/group_codes.h"
#include "numerics/bfloat16.h"

namespace octet {
namespace {

constexpr int64_t chunk = 64 * code_group;  // values a thread takes at once

// In place: values of whole groups become what is encoded, and each group's inverse scale is left.
OCTET_VECTORIZED void scale_groups(float* values, int64_t n, uint8_t* scales) {
  for (int64_t g = 0; g < n / code_group; ++g) {
    float* const group = values + g * code_group;
    for (int64_t i = 0; i < code_group; ++i) group[i] = round_to_bfloat16(group[i]);
    const BlockScale scale = block_scale(std::bit_cast<float>(amax_bits(group, code_group)), 0);
    for (int64_t i = 0; i < code_group; ++i) group[i] *= scale.scale;
    scales[g] = scale.inverse;
  }
}
OCTET_VECTORIZED void encode_values(const float* values, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_e4m3(values[i]);
}
OCTET_VECTORIZED void undo_scales(float* values, int64_t n, const uint8_t* scales) {
  for (int64_t g = 0; g < n / code_group; ++g) {
    const float inverse = e8m0_value(scales[g]);
    for (int64_t i = 0; i < code_group; ++i) values[g * code_group + i] *= inverse;
  }
}

}  // namespace

void CpuDevice::encode_groups(const EncodeGroups& op) {
  check(op);
  const int64_t count = op.source.elements(), chunks = (count + chunk - 1) / chunk;
#pragma omp parallel for num_threads(threads_) schedule(static) if (chunks > 8)
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t first = c * chunk, n = std::min(chunk, count - first);
    float values[chunk];
    unpack(op.source.dtype, at(op.source, first), values, n);
    scale_groups(values, n, op.scales.as<uint8_t>() + first / code_group);
    encode_values(values, n, op.codes.as<uint8_t>() + first);
  }
}

void CpuDevice::decode_groups(const DecodeGroups& op) {
  check(op);
  const int64_t count = op.out.elements(), chunks = (count + chunk - 1) / chunk;
#pragma omp parallel for num_threads(threads_) schedule(static) if (chunks > 8)
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t first = c * chunk, n = std::min(chunk, count - first);
    float values[chunk];
    unpack(DType::E4M3, op.codes.as<uint8_t>() + first, values, n);
    undo_scales(values, n, op.scales.as<uint8_t>() + first / code_group);
    Tensor out = op.out;
    pack(out.dtype, values, at(out, first), n);
  }
}

}  // namespace octet
