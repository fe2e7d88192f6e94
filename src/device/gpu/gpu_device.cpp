#include "device/gpu/gpu_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "device/products.h"
#include "kernels/convert.h"
#include "kernels/fill.h"
#include "kernels/gradient_norm.h"
#include "kernels/reduce_values.h"

namespace octet {
inline namespace OCTET_GPU {

GpuDevice::GpuDevice(std::unique_ptr<GpuBackend> backend, const DeviceOptions& options)
    : backend_(std::move(backend)), graphs_(options.graphs) {
  faults_ = static_cast<uint32_t*>(backend_->allocate(sizeof(Faults)));
  float8_numbers_ = static_cast<Float8Numbers*>(backend_->allocate(sizeof(Float8Numbers)));
  seen_faults_ = static_cast<Faults*>(backend_->allocate_host(marks * sizeof(Faults)));
}

GpuDevice::~GpuDevice() {
  backend_->free(faults_);
  backend_->free(float8_numbers_);
  backend_->free_host(seen_faults_);
  if (own_) backend_->free(own_);
}

octet::Format format_of(const Tensor& tensor) {
  switch (tensor.dtype) {
    case DType::F32:
      return Format::FP32;
    case DType::BF16:
      return Format::BF16;
    case DType::F16:
      return Format::FP16;
    case DType::E4M3:
      return Format::E4M3;
    case DType::E5M2:
      return Format::E5M2;
    default:
      throw Error(ExitCode::Internal,
                  fmt::format("{} is not a number format of kernels", name_of(tensor.dtype)));
  }
}

// ---- memory

void GpuDevice::copy_to_host(void* host, const void* device, size_t bytes) {
  backend_->copy_to_host(host, device, bytes);
}
void GpuDevice::copy_from_host(void* device, const void* host, size_t bytes) {
  backend_->copy_from_host(device, host, bytes);
}
void GpuDevice::synchronize() {
  backend_->synchronize();
  Faults faults;
  backend_->copy_to_host(&faults, faults_, sizeof faults);
  require_none(faults);
}

// The kernels cannot throw: they leave a mark, and the host looks at it when it waits for them anyway.
void GpuDevice::require_none(const Faults& faults) {
  if (faults.token == 0 && faults.target == 0) return;
  backend_->clear(faults_, sizeof faults);
  throw Error(ExitCode::Internal,
              faults.token
                  ? fmt::format("embedding: token {} is not in the table", faults.token - 1)
                  : fmt::format("cross entropy: target {} is not in the vocabulary", faults.target - 1));
}

void GpuDevice::upload(void* device, const void* host, size_t bytes) {
  backend_->upload(device, host, bytes);
}
void GpuDevice::download(void* host, const void* device, size_t bytes) {
  backend_->download(host, device, bytes);
}

uint64_t GpuDevice::mark() {
  // Marks rise by one, so the next is known; its slot was last used `marks` marks ago.
  backend_->download(seen_faults_ + next_mark_ % marks, faults_, sizeof(Faults));
  next_mark_ = backend_->mark() + 1;
  return next_mark_ - 1;
}
void GpuDevice::wait(uint64_t place) {
  backend_->wait(place);
  require_none(seen_faults_[place % marks]);
}

// A signature that comes once is enqueued as it is, which also loads what its first use has to load; one that
// comes again, at once or after one other, is worth a recording. A run has two kinds of steps, with
// statistics and without, and keeps both.
void GpuDevice::replay(Replay& replay, uint64_t signature, const std::function<void()>& work) {
  if (!graphs_) return work();
  const bool again = std::find(replay.seen.begin(), replay.seen.end(), signature) != replay.seen.end();
  replay.seen.push_back(signature);
  if (replay.seen.size() > Replay::most) replay.seen.pop_front();
  auto& known = replay.recordings;
  auto found = std::find_if(known.begin(), known.end(),
                            [&](const Replay::Recorded& one) { return one.signature == signature; });
  if (found == known.end()) {
    if (!again) return work();
    if (known.size() == Replay::most) known.erase(known.begin());
    const MatmulCounts before = std::exchange(counts_, {});
    std::unique_ptr<Replay::Recording> recording = backend_->record(work);
    known.push_back({signature, std::move(recording), std::exchange(counts_, before)});
  } else {
    std::rotate(found, found + 1, known.end());
  }
  backend_->play(*known.back().recording);
  for (const auto& [key, count] : known.back().counts) {
    MatmulCount& total = counts_[key];
    total.implementation = count.implementation;
    total.calls += count.calls;
    total.flops += count.flops;
  }
}

void GpuDevice::zero(const Tensor& tensor) { backend_->clear(tensor.data, tensor.bytes()); }

void GpuDevice::copy(const Tensor& to, const Tensor& from) {
  if (to.elements() != from.elements()) {
    throw Error(ExitCode::Internal, fmt::format("copy: {} elements into {}", from.elements(), to.elements()));
  }
  if (to.dtype == from.dtype) {
    backend_->copy_on_device(to.data, from.data, to.bytes());
    return;
  }
  kernels::convert({.to = to.data,
                    .to_storage = format_of(to),
                    .from = from.data,
                    .from_storage = format_of(from),
                    .count = to.elements(),
                    .stream = backend_->stream()});
}

// On the host: random_normal() is FP64 arithmetic of the host's library, and initial weights must not depend
// on the device.
void GpuDevice::fill_normal(const Tensor& tensor, float deviation, uint64_t key, uint64_t first) {
  const int64_t count = tensor.elements(), piece = std::min<int64_t>(count, 1 << 20);
  std::vector<float> values(static_cast<size_t>(piece));
  for (int64_t begin = 0; begin < count; begin += piece) {
    const int64_t n = std::min(piece, count - begin);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      values[static_cast<size_t>(i)] = static_cast<float>(
          static_cast<double>(deviation) * random_normal(key, first + static_cast<uint64_t>(begin + i)));
    }
    backend_->copy_from_host(tensor.as<float>() + begin, values.data(),
                             static_cast<size_t>(n) * sizeof(float));
  }
}

void GpuDevice::fill(const Tensor& tensor, float value) {
  kernels::fill({.out = tensor.data,
                 .storage = format_of(tensor),
                 .count = tensor.elements(),
                 .value = value,
                 .stream = backend_->stream()});
}

void GpuDevice::accumulate_sum(const Tensor& out, const Tensor& x) {
  kernels::accumulate_sum(
      {.out = out.as<double>(), .x = x.as<float>(), .count = x.elements(), .stream = backend_->stream()});
}

// ---- workspace

void Scratch::skip_to_last(size_t bytes) {
  const size_t left = static_cast<size_t>(end_ - next_);
  if (left > bytes) next_ += (left - bytes) / 256 * 256;
}

void* Scratch::take_bytes(size_t bytes) {
  std::byte* const taken = next_;
  next_ += (bytes + 255) / 256 * 256;
  if (next_ > end_) {
    throw Error(ExitCode::Internal, fmt::format("scratch: {} bytes too few were planned", next_ - end_));
  }
  return taken;
}

size_t GpuDevice::workspace_bytes(const DeviceWork& work) const {
  size_t copies = 0;
  for (const Matmul& m : work.matmuls) copies = std::max(copies, reduced_operand_bytes(m));
  const size_t library = backend_->workspace_bytes(work);
  return std::max(scratch_bytes(work), copies > 0 ? (library + 255) / 256 * 256 + copies : library);
}

void GpuDevice::set_workspace(const Tensor& workspace) {
  workspace_ = workspace;
  backend_->set_workspace(workspace);
}

Scratch GpuDevice::scratch(size_t bytes_without_plan) {
  if (!workspace_.empty()) return {workspace_.data, workspace_.bytes()};
  if (bytes_without_plan > own_bytes_) {
    backend_->synchronize();
    if (own_) backend_->free(own_);
    own_ = backend_->allocate(bytes_without_plan);
    own_bytes_ = bytes_without_plan;
  }
  return {own_, own_bytes_};
}

// ---- library calls

void GpuDevice::matmul(const Matmul& m) {
  check(m);
  MatmulCount& count = counts_[{m.gemm_class, m.a.values.dtype, m.b.values.dtype, m.out.dtype, m.simulate}];
  count.implementation = backend_->matmul(m.simulate.reduces() ? reduce_operands(m) : m);
  ++count.calls;
  count.flops += matmul_flops(m);
}

// The copies lie at the end of the workspace: the library has its beginning.
Matmul GpuDevice::reduce_operands(const Matmul& m) {
  const size_t bytes = reduced_operand_bytes(m);
  Scratch memory = scratch(bytes);
  memory.skip_to_last(bytes);
  const Matmul copies = on_reduced_operands(m, memory.take_bytes(bytes));
  const auto reduce = [&](const Operand& from, const Operand& to) {
    kernels::reduce_values({.in = from.values.data,
                            .out = to.values.data,
                            .count = from.values.elements(),
                            .format = m.simulate,
                            .stream = backend_->stream()});
  };
  reduce(m.a, copies.a);
  reduce(m.b, copies.b);
  return copies;
}

}  // namespace OCTET_GPU
}  // namespace octet
