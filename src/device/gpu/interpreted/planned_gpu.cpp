#include "device/gpu/interpreted/planned_gpu.h"

#include <algorithm>

#include "device/gpu/interpreted/interpreted_backend.h"
#include "device/gpu/scratch_bytes.h"
#include "device/products.h"

namespace octet {

namespace {

void take_larger(AttentionScratchEstimate& most, const AttentionScratchEstimate& one) {
  if (one.bytes() > most.bytes()) most = one;
}

}  // namespace

size_t GpuWorkspace::bytes() const {
  const size_t libraries = std::max(products, attention.bytes());
  return std::max(kernels, operands > 0 ? align_workspace(libraries) + operands : libraries);
}

PlannedGpu plan_gpu(const GpuModel& gpu, const DeviceOptions& options) {
  auto workspace = std::make_shared<GpuWorkspace>();
  const GemmCapabilities gemm{.capability = gpu.capability};
  auto library_bytes = [=](const DeviceWork& work) {
    *workspace = {};
    workspace->kernels = scratch_bytes(work);
    for (const Matmul& m : work.matmuls)
      workspace->operands = std::max(workspace->operands, reduced_operand_bytes(m));
    workspace->products = products_scratch_bound(work.matmuls, gemm);
    for (const AttentionForward& attention : work.attentions) {
      take_larger(workspace->attention,
                  attention_scratch_estimate(backward_of(attention_key(attention), options), gpu.capability));
      const AttentionKey ordered = backward_of(attention_key(attention), {.deterministic = true});
      if (!ordered.float8 || float8_attention_obstacle(ordered, gpu.capability).empty())
        take_larger(workspace->deterministic, attention_scratch_estimate(ordered, gpu.capability));
    }
    return std::max(workspace->products, workspace->attention.bytes());
  };
  return {make_interpreted_device(options, std::move(library_bytes)), workspace};
}

}  // namespace octet
