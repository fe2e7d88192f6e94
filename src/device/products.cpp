#include "device/products.h"

#include <fmt/format.h>

#include "base/error.h"
#include "numerics/small_float.h"

namespace octet {

int64_t outer_size(const Operand& x) { return x.transposed ? x.values.columns() : x.values.rows(); }
int64_t inner_size(const Operand& x) { return x.transposed ? x.values.rows() : x.values.columns(); }

namespace {

bool is_code(DType t) { return t == DType::E4M3 || t == DType::E5M2; }

bool allowed(DType a, DType b) {
  if (is_code(a) && is_code(b)) return a == DType::E4M3 || b == DType::E4M3;
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
  const bool code = is_code(x.values.dtype);
  if (code && x.transposed) refuse(m, "codes must be stored [outer, inner]");
  if (code && !x.inverse_scale) refuse(m, "codes without an inverse scale");
  if (!code && x.inverse_scale) refuse(m, "an inverse scale on values that are not codes");
}

}  // namespace

void check_shapes(const Matmul& m) {
  if (m.a.values.shape.rank() != 2 || m.b.values.shape.rank() != 2 || m.out.shape.rank() != 2)
    refuse(m, "matrices need two dimensions");
  if (m.out.dtype != DType::F32 && m.out.dtype != DType::BF16) refuse(m, "the result must be F32 or BF16");
  if (!allowed(m.a.values.dtype, m.b.values.dtype)) refuse(m, "this pair of types is not a product of ours");
  if (m.simulate.reduces() && m.a.values.dtype != DType::BF16)
    refuse(m, "only BF16 operands can be reduced to " + name_of(m.simulate));
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

}  // namespace octet
