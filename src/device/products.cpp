#include "device/products.h"

#include <fmt/format.h>

#include "base/error.h"
#include "numerics/small_float.h"

namespace octet {

int64_t outer_size(const Operand& x) { return x.transposed ? x.values.columns() : x.values.rows(); }
int64_t inner_size(const Operand& x) { return x.transposed ? x.values.rows() : x.values.columns(); }

namespace {

bool allowed(DType a, DType b) {
  if (is_float8(a) && is_float8(b)) return a == DType::E4M3 || b == DType::E4M3;
  return a == b && (a == DType::F32 || a == DType::BF16);
}

std::string describe(const Operand& x) {
  return fmt::format("{} {}{}", name_of(x.values.dtype), to_string(x.values.shape),
                     x.transposed ? " transposed" : "");
}

[[noreturn]] void refuse(const Matmul& m, const std::string& why) {
  throw Error(ExitCode::Internal,
              fmt::format("matmul {}: a {}, b {}, out {} {}: {}", name_of(m.gemm_class), describe(m.a),
                          describe(m.b), name_of(m.out.dtype), to_string(m.out.shape), why),
              "report this as a bug with the run's configuration");
}

void check_operand(const Matmul& m, const Operand& x) {
  const bool code = is_float8(x.values.dtype);
  if (code && x.transposed) refuse(m, "codes must be stored [outer, inner]");
  if (code && !x.inverse_scale) refuse(m, "codes without an inverse scale");
  if (!code && x.inverse_scale) refuse(m, "an inverse scale on values that are not codes");
}

void check_granularity(const Matmul& m) {
  const ScaleGranularity a = m.a.granularity, b = m.b.granularity;
  if (!is_blocks(a) && !is_blocks(b)) return;
  if (!is_float8(m.a.values.dtype)) refuse(m, "scales of blocks on values that are not codes");
  if (!is_blocks(a) || !is_blocks(b)) refuse(m, "scales of blocks on one operand only");
  if (a == ScaleGranularity::Squares && b == a) refuse(m, "one operand may have squares, not both");
  if (m.fast_accumulation) refuse(m, "scales of blocks are applied in FP32: no fast accumulation");
}

}  // namespace

void check_shapes(const Matmul& m) {
  if (m.a.values.shape.rank() != 2 || m.b.values.shape.rank() != 2 || m.out.shape.rank() != 2)
    refuse(m, "matrices need two dimensions");
  if (m.out.dtype != DType::F32 && m.out.dtype != DType::BF16) refuse(m, "the result must be F32 or BF16");
  if (!allowed(m.a.values.dtype, m.b.values.dtype)) refuse(m, "this pair of types is not a product of ours");
  if (m.simulate.reduces() && m.a.values.dtype != DType::BF16)
    refuse(m, "only BF16 operands can be reduced to " + name_of(m.simulate));
  check_granularity(m);
  if (inner_size(m.a) != inner_size(m.b))
    refuse(m, fmt::format("inner sizes differ, {} and {}", inner_size(m.a), inner_size(m.b)));
  if (m.out.rows() != outer_size(m.a) || m.out.columns() != outer_size(m.b))
    refuse(m, fmt::format("the result must be [{}, {}]", outer_size(m.a), outer_size(m.b)));
}

void check(const Matmul& m) {
  check_shapes(m);
  check_operand(m, m.a);
  check_operand(m, m.b);
}

namespace {

size_t copy_bytes(const Operand& x) { return (x.values.bytes() + 255) / 256 * 256; }

}  // namespace

size_t reduced_operand_bytes(const Matmul& m) {
  return m.simulate.reduces() ? copy_bytes(m.a) + copy_bytes(m.b) : 0;
}

Matmul on_reduced_operands(const Matmul& m, void* memory) {
  Matmul copies = m;
  copies.simulate = {};
  copies.a.values.data = memory;
  copies.b.values.data = static_cast<std::byte*>(memory) + copy_bytes(m.a);
  return copies;
}

uint64_t matmul_flops(const Matmul& m) {
  return 2 * static_cast<uint64_t>(m.out.elements()) * static_cast<uint64_t>(inner_size(m.a));
}

uint64_t attention_flops(const AttentionShape& s, int64_t tokens, int products) {
  const uint64_t windows = static_cast<uint64_t>(tokens / s.context), context = s.context;
  return windows * static_cast<uint64_t>(s.heads) * context * (context + 1) / 2 * 2 *
         static_cast<uint64_t>(s.head_width) * static_cast<uint64_t>(products);
}

namespace {

void add(MatmulCounts& counts, const MatmulKey& key, uint64_t flops, const std::string& implementation) {
  MatmulCount& count = counts[key];
  ++count.calls;
  count.flops += flops;
  count.implementation = implementation;
}

[[noreturn]] void refuse_attention(const char* direction, const std::string& why) {
  throw Error(ExitCode::Internal, fmt::format("attention {} in FP8: {}", direction, why),
              "report this as a bug with the run's configuration");
}
void require_codes(const char* direction, const char* what, const Tensor& tensor, DType type,
                   const float* inverse_scale) {
  if (tensor.dtype != type || inverse_scale == nullptr)
    refuse_attention(direction,
                     fmt::format("{} is {} {} an inverse scale, it needs {} with one", what,
                                 name_of(tensor.dtype), inverse_scale ? "with" : "without", name_of(type)));
}
void require_codes(const char* direction, const char* what, const CodesBeforehand& made, const Shape& shape,
                   Format format) {
  if (made.cast.format != format || made.codes.dtype != dtype_of(format) || !(made.codes.shape == shape))
    refuse_attention(
        direction, fmt::format("{} is {} {}", what, name_of(made.codes.dtype), to_string(made.codes.shape)));
}

// A clip that raised probabilities of zero would uncover masked keys.
template <class Attention>
void check_clip(const char* direction, const Attention& a) {
  if (!a.clip.clips()) return;
  if (!(a.clip.low <= 0 && a.clip.high >= 1))
    throw Error(ExitCode::Internal, fmt::format("attention {}: probabilities are clipped after a stretch "
                                                "to [{}, {}], which does not hold [0, 1]",
                                                direction, a.clip.low, a.clip.high));
  if (in_float8(a)) refuse_attention(direction, "probabilities are clipped in storage precision only");
}

}  // namespace

void check(const AttentionForward& a) {
  check_clip("forward", a);
  if (!in_float8(a)) return;
  require_codes("forward", "qkv", a.qkv, DType::E4M3, a.qkv_inverse_scale);
  require_codes("forward", "out", a.out_codes, {a.qkv.rows(), static_cast<int64_t>(a.heads) * a.head_width},
                Format::E4M3);
}

void check(const AttentionBackward& a) {
  check_clip("backward", a);
  if (!in_float8(a)) {
    if (is_float8(a.out.dtype) || is_float8(a.out_gradient.dtype))
      refuse_attention("backward", "out or its gradient is codes, qkv is not");
    return;
  }
  require_codes("backward", "qkv", a.qkv, DType::E4M3, a.qkv_inverse_scale);
  require_codes("backward", "out", a.out, DType::E4M3, a.out_inverse_scale);
  require_codes("backward", "the gradient of out", a.out_gradient, DType::E5M2, a.out_gradient_inverse_scale);
  require_codes("backward", "the gradient of qkv", a.qkv_gradient_codes, a.qkv.shape, Format::E5M2);
  if (a.score_gradient.cast.format != Format::E5M2)
    refuse_attention("backward", "the gradient of the scores is not E5M2");
}

void count_products(const AttentionForward& a, const std::string& implementation, MatmulCounts& counts) {
  const DType operand = a.qkv.dtype, out = in_float8(a) ? a.out_codes.codes.dtype : a.out.high.dtype;
  add(counts, {GemmClass::Attention, operand, operand, out}, attention_flops(shape_of(a), a.qkv.rows(), 2),
      implementation);
}

// In FP8: S once more, then dP, dQ, dK and dV, each with one operand that is a gradient.
void count_products(const AttentionBackward& a, const std::string& implementation, MatmulCounts& counts) {
  const auto flops = [&](int products) { return attention_flops(shape_of(a), a.qkv.rows(), products); };
  const DType operand = a.qkv.dtype;
  if (!in_float8(a))
    return add(counts, {GemmClass::Attention, operand, operand, a.qkv_gradient.dtype}, flops(5),
               implementation);
  const DType gradient = a.out_gradient.dtype, out = a.qkv_gradient_codes.codes.dtype;
  add(counts, {GemmClass::Attention, operand, operand, out}, flops(1), implementation);
  add(counts, {GemmClass::Attention, gradient, operand, out}, flops(4), implementation);
}

}  // namespace octet
