#include "device/cpu/cpu_device.h"
#include "device/cpu/attention.h"
#include "device/cpu/embedding.h"
#include "device/cpu/rope.h"

#include <fmt/format.h>
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "base/platform.h"
#include "base/random.h"
#include "device/cpu/gemm_state.h"
#include "device/cpu/host_facts.h"
#include "device/cpu/unpack.h"
#include "numerics/bfloat16.h"
#include "numerics/sums.h"

namespace octet {

CpuDevice::CpuDevice(const DeviceOptions& options)
    : options_(options),
      threads_(options.threads > 0 ? options.threads : omp_get_max_threads()),
      gemm_(std::make_unique<GemmState>(options, threads_)) {}
CpuDevice::~CpuDevice() = default;

std::unique_ptr<Device> make_cpu_device(const DeviceOptions& options) {
  return std::make_unique<CpuDevice>(options);
}

DeviceInfo CpuDevice::info() const {
  const ProcessorFacts facts = read_processor_facts();
  DeviceInfo info;
  info.name = fmt::format("CPU ({}, {} thread{})", facts.name, threads_, threads_ == 1 ? "" : "s");
  const StatedPeak peak = stated_peak(facts, threads_);
  info.peak_flops = peak.flops;
  info.peak_source = peak.source;
  info.uses_host_memory = true;
  return info;
}

void* CpuDevice::allocate(size_t bytes) {
  constexpr size_t alignment = 256, huge_page = size_t{2} << 20;
  const size_t align = bytes >= huge_page ? huge_page : alignment;
  const size_t available = available_memory();
  const auto refuse = [&] {
    return Error(
        ExitCode::Usage,
        fmt::format("the run needs {:.2f} GiB of memory at once, {:.2f} GiB are available",
                    static_cast<double>(bytes) * 0x1p-30, static_cast<double>(available) * 0x1p-30),
        "reduce batch.micro, the context or the model (octet plan CONFIG shows what takes the memory)");
  };
  if (bytes > SIZE_MAX - align) throw refuse();
  const size_t rounded = std::max((bytes + align - 1) / align * align, align);
  if (available != 0 && rounded > available) throw refuse();
  void* memory = std::aligned_alloc(align, rounded);
  if (!memory) throw refuse();
  if (align == huge_page) madvise(memory, rounded, MADV_HUGEPAGE);  // fewer TLB misses; refusal is harmless
  // Touched by the threads that will use it: the pages are there before step 0, near their cores.
  constexpr int64_t piece = int64_t{1} << 20;
  const int64_t pieces = (static_cast<int64_t>(rounded) + piece - 1) / piece;
#pragma omp parallel for num_threads(threads_) schedule(static) if (pieces > 1)
  for (int64_t i = 0; i < pieces; ++i) {
    const size_t begin = static_cast<size_t>(i * piece);
    std::memset(static_cast<std::byte*>(memory) + begin, 0,
                std::min(static_cast<size_t>(piece), rounded - begin));
  }
  return memory;
}
void CpuDevice::free(void* pointer) { std::free(pointer); }
void CpuDevice::copy_to_host(void* host, const void* device, size_t bytes) {
  if (bytes) std::memcpy(host, device, bytes);
}
void CpuDevice::copy_from_host(void* device, const void* host, size_t bytes) {
  if (bytes) std::memcpy(device, host, bytes);
}

namespace {

constexpr int64_t piece_elements = 1 << 16;

// body(begin, count) over [0, n) in pieces of a fixed size.
template <class Body>
void for_pieces(int64_t n, int threads, const Body& body) {
  const int64_t pieces = (n + piece_elements - 1) / piece_elements;
#pragma omp parallel for num_threads(threads) schedule(static) if (pieces > 1)
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t begin = i * piece_elements;
    body(begin, std::min(piece_elements, n - begin));
  }
}

}  // namespace

void CpuDevice::zero(const Tensor& tensor) {
  const int64_t width = static_cast<int64_t>(size_of(tensor.dtype));
  for_pieces(tensor.elements(), threads_, [&](int64_t begin, int64_t count) {
    std::memset(static_cast<std::byte*>(tensor.data) + begin * width, 0, static_cast<size_t>(count * width));
  });
}

void CpuDevice::copy(const Tensor& to, const Tensor& from) {
  if (to.elements() != from.elements()) {
    throw Error(ExitCode::Internal, fmt::format("copy: {} elements into {}", from.elements(), to.elements()));
  }
  const bool same = to.dtype == from.dtype;
  const bool widening = to.dtype == DType::F32 && from.dtype == DType::BF16;
  if (!same && !widening && !(to.dtype == DType::BF16 && from.dtype == DType::F32)) {
    throw Error(ExitCode::Internal,
                fmt::format("copy: from {} to {}", name_of(from.dtype), name_of(to.dtype)));
  }
  const int64_t width = static_cast<int64_t>(size_of(to.dtype));
  for_pieces(to.elements(), threads_, [&](int64_t begin, int64_t count) {
    if (same) {
      std::memcpy(static_cast<std::byte*>(to.data) + begin * width,
                  static_cast<const std::byte*>(from.data) + begin * width,
                  static_cast<size_t>(count * width));
    } else if (widening) {
      unpack(from.dtype, at(from, begin), to.as<float>() + begin, count);
    } else {
      pack(to.dtype, from.as<float>() + begin, to.as<BFloat16>() + begin, count);
    }
  });
}

void CpuDevice::fill_normal(const Tensor& tensor, float deviation, uint64_t key, uint64_t first) {
  float* to = tensor.as<float>();
  for_pieces(tensor.elements(), threads_, [&](int64_t begin, int64_t count) {
    for (int64_t i = begin; i < begin + count; ++i) {
      to[i] = static_cast<float>(static_cast<double>(deviation) *
                                 random_normal(key, first + static_cast<uint64_t>(i)));
    }
  });
}

void CpuDevice::fill(const Tensor& tensor, float value) {
  const bool wide = tensor.dtype == DType::F32;
  if (!wide && tensor.dtype != DType::BF16) {
    throw Error(ExitCode::Internal, fmt::format("fill: {} is not a storage type", name_of(tensor.dtype)));
  }
  for_pieces(tensor.elements(), threads_, [&](int64_t begin, int64_t count) {
    if (wide) {
      std::fill_n(tensor.as<float>() + begin, count, value);
    } else {
      std::fill_n(tensor.as<BFloat16>() + begin, count, to_bfloat16(value));
    }
  });
}

void CpuDevice::accumulate_sum(const Tensor& out, const Tensor& x) {
  Lanes<double> lanes;
  add_values(lanes, x.as<float>(), x.elements());
  *out.as<double>() += sum_of(lanes);
}

// Operations run one after the other, so the workspace is as large as the hungriest.
size_t CpuDevice::workspace_bytes(const DeviceWork& work) const {
  size_t bytes = std::max(gemm_->workspace_bytes(work.matmuls), embedding_scratch_bytes(work.tokens));
  for (const AttentionForward& attention : work.attentions) {
    bytes = std::max(bytes, attention_scratch_bytes(attention, gemm_->threads()));
    if (is_trained(work.qk_norm))
      bytes = std::max(bytes, sizeof(float) * static_cast<size_t>(query_key_gain_elements(
                                                  work.tokens, attention.head_width)));
  }
  return bytes;
}
void CpuDevice::set_workspace(const Tensor& workspace) { gemm_->set_workspace(workspace); }

}  // namespace octet
