// Matmul: which implementation runs.
#include <algorithm>
#include <new>

#include "base/error.h"
#include "base/platform.h"
#include "device/cpu/blocked_gemm.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/gemm_state.h"
#include "device/cpu/onednn_gemm.h"
#include "device/products.h"
#include "fmt/format.h"
#include "numerics/small_float.h"

namespace octet {

// ---- scratch memory

ScratchMemory::~ScratchMemory() { ::operator delete (own_, std::align_val_t{256}); }

void ScratchMemory::use(const Tensor& planned) {
  planned_ = static_cast<std::byte*>(planned.data);
  planned_bytes_ = planned_ ? planned.bytes() : 0;
}

std::byte* ScratchMemory::reserve(size_t bytes) {
  if (bytes <= planned_bytes_) return planned_;
  if (planned_)
    throw Error(
        ExitCode::Internal,
        fmt::format("an operation needs {} bytes of workspace, {} were planned", bytes, planned_bytes_),
        "report this as a bug with the run's configuration");
  if (bytes > own_bytes_) {
    ::operator delete (own_, std::align_val_t{256});
    own_ = nullptr;
    own_bytes_ = 0;
    own_ = static_cast<std::byte*>(::operator new (bytes, std::align_val_t{256}));
    own_bytes_ = bytes;
  }
  return own_;
}

// ---- engine

namespace {

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

OCTET_VECTORIZED void reduce_row(const SmallFloatBits& format, const BFloat16* from, BFloat16* to,
                                 int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_small_float(format, from[i]);
}

}  // namespace

GemmEngine::GemmEngine(const DeviceOptions& options, int threads)
    : deterministic_(options.deterministic), threads_(std::max(1, threads)) {
  if (!deterministic_) onednn_ = OneDnnGemm::create({threads_});
}
GemmEngine::~GemmEngine() = default;

// Which implementation runs, by measurement. GFLOP/s of one Zen 4 core (peaks 118 in FP32, 236 in BF16),
// oneDNN 2.6.3 beside the own kernel; decoding of codes included:
//   M x N x K, operands                        oneDNN   own
//   512 / 1024 / 2048 square, F32              103 / 101 / 101    84 / 80 / 78
//   512 / 1024 / 2048 square, BF16             217 / 207 / 202   186 / 171 / 158
//   4096 x  512 x  512, BF16 (fprop)           203    169
//   4096 x 2048 x  512, BF16 (fprop)           198    171
//   4096 x  512 x 2048, BF16, b^T (dgrad)      202    153
//   2048 x  512 x 4096, BF16, a^T b^T (wgrad)  179    135
//   1024 x 32000 x 512, BF16 (head fprop)      197    156
//   4096 x 2048 x  512, codes                   -     156..164
//   2048 x  512 x 4096, codes                   -     168..183
// So oneDNN has the values; transposed operands do not slow it much, and need no help. Codes stay with the
// own kernel, which decodes them in cache, unless the machine has matrix instructions (AMX), which only
// oneDNN uses.
const char* GemmEngine::run(const Matmul& asked) {
  check(asked);
  const bool onednn = onednn_ && onednn_->suits(asked);
  const size_t bytes = aligned(onednn ? onednn_->workspace_bytes(asked) : blocked_gemm_bytes(threads_));
  std::byte* const scratch = workspace_.reserve(bytes + reduced_operand_bytes(asked));
  Matmul m = asked;
  if (asked.simulate.reduces()) {
    m = on_reduced_operands(asked, scratch + bytes);
    reduce_values(asked.simulate, asked.a.values, m.a.values);
    reduce_values(asked.simulate, asked.b.values, m.b.values);
  }
  if (onednn) {
    onednn_->run(m, scratch);
    return onednn_->name(m);
  }
  blocked_gemm(m, threads_, scratch);
  return blocked_gemm_name(m);
}

void GemmEngine::reduce_values(const SmallFloat& format, const Tensor& from, const Tensor& to) const {
  constexpr int64_t together = 1 << 14;
  const int64_t count = from.elements();
  const SmallFloatBits bits = bits_of(format);
  auto* const out = static_cast<BFloat16*>(to.data);
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int64_t i = 0; i < count; i += together)
    reduce_row(bits, from.as<BFloat16>() + i, out + i, std::min(together, count - i));
}

size_t GemmEngine::workspace_bytes(std::span<const Matmul> matmuls) const {
  const size_t own = blocked_gemm_bytes(threads_);
  size_t bytes = own;
  for (const Matmul& m : matmuls) {
    const size_t copies = reduced_operand_bytes(m);
    if (copies > 0) bytes = std::max(bytes, aligned(own) + copies);
    if (onednn_ && onednn_->may_suit(m))
      bytes = std::max(bytes, aligned(onednn_->workspace_bytes(m)) + copies);
  }
  return bytes;
}

void CpuDevice::matmul(const Matmul& m) {
  const char* implementation = gemm_->run(m);
  MatmulCount& count = counts_[{m.gemm_class, m.a.values.dtype, m.b.values.dtype, m.out.dtype, m.simulate}];
  ++count.calls;
  count.flops += matmul_flops(m);
  count.implementation = implementation;
}

}  // namespace octet
