#include "device/gpu/scratch_bytes.h"

#include <algorithm>

#include "kernels/activation.h"
#include "kernels/embedding.h"
#include "kernels/gradient_norm.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"

namespace octet {
inline namespace OCTET_GPU {
namespace {

size_t cast_bytes(int64_t rows, int64_t columns) {
  return scratch_size<uint32_t>(5) + scratch_size<uint32_t>(rows) + scratch_size<uint32_t>(columns);
}

}  // namespace

size_t cast_scratch_bytes(const CastTarget& target) {
  if (target.row.empty() && target.column.empty()) return 0;
  return target.row.empty() ? cast_bytes(target.column.columns(), target.column.rows())
                            : cast_bytes(target.row.rows(), target.row.columns());
}

size_t scratch_bytes(const DeviceWork& work) {
  int64_t rows = work.tokens, columns = 0, row_width = work.width;
  for (const Matmul& m : work.matmuls) {  // operands are what is cast
    for (const Tensor* tensor : {&m.a.values, &m.b.values, &m.out}) {
      rows = std::max(rows, tensor->rows());
      columns = std::max(columns, tensor->columns());
    }
  }
  kernels::RopeShape rope{};
  rope.tokens = work.tokens;
  for (const AttentionForward& a : work.attentions) {
    rope.heads = a.heads;
    rope.kv_heads = a.kv_heads;
    rope.head_width = a.head_width;
  }
  int64_t partials = std::max(kernels::rmsnorm_partial_elements(work.tokens, row_width),
                              kernels::rope_partial_elements(rope));
  if (is_trained(work.qk_norm)) partials = std::max(partials, kernels::gain_partial_elements(rope));
  if (work.activation == Activation::XIELU)
    partials = std::max(partials, kernels::activation_partial_elements(work.tokens));
  return std::max(cast_bytes(rows, columns) + scratch_size<float>(partials),
                  scratch_size<std::byte>(kernels::embedding_scratch_bytes(work.tokens)));
}

}  // namespace OCTET_GPU
}  // namespace octet
