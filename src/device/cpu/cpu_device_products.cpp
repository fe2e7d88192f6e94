// The device's side of its products, attention and RoPE: timing, casts, and the counts that prove what ran.
#include <algorithm>

#include "device/cpu/attention.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/embedding.h"
#include "device/cpu/gemm_state.h"
#include "device/cpu/rope.h"

namespace octet {

void CpuDevice::matmul(const Matmul& m) {
  const OperationTimer timer(timing_, timings_, "matmul");
  const char* implementation = gemm_->run(m);
  MatmulCount& count = counts_[{m.gemm_class, m.a.values.dtype, m.b.values.dtype, m.out.dtype}];
  ++count.calls;
  count.flops += matmul_flops(m);
  count.implementation = implementation;
}
// Operations run one after the other, so the workspace is as large as the hungriest.
size_t CpuDevice::workspace_bytes(const DeviceWork& work) const {
  size_t bytes = std::max(gemm_->workspace_bytes(work.matmuls), embedding_scratch_bytes(work.tokens));
  for (const AttentionForward& attention : work.attentions)
    bytes = std::max(bytes, attention_scratch_bytes(attention, gemm_->threads()));
  return bytes;
}
void CpuDevice::set_workspace(const Tensor& workspace) { gemm_->set_workspace(workspace); }

void CpuDevice::attention_forward(const AttentionForward& a) {
  const OperationTimer timer(timing_, timings_, "attention forward");
  octet::attention_forward(a, *gemm_);
  finish_cast(a.out);
  MatmulCount& count = counts_[{GemmClass::Attention, a.qkv.dtype, a.qkv.dtype, a.out.high.dtype}];
  ++count.calls;
  count.flops += attention_flops({a.context, a.heads, a.kv_heads, a.head_width}, a.qkv.rows(), 2);
  count.implementation = "blocked-f32";
}
void CpuDevice::attention_backward(const AttentionBackward& a) {
  const OperationTimer timer(timing_, timings_, "attention backward");
  octet::attention_backward(a, *gemm_);
  MatmulCount& count = counts_[{GemmClass::Attention, a.qkv.dtype, a.qkv.dtype, a.qkv_gradient.dtype}];
  ++count.calls;
  count.flops += attention_flops({a.context, a.heads, a.kv_heads, a.head_width}, a.qkv.rows(), 5);
  count.implementation = "blocked-f32";
}

void CpuDevice::rope_forward(const RopeForward& r) {
  const OperationTimer timer(timing_, timings_, "rope forward");
  octet::rope_forward(r, threads_);
}
void CpuDevice::rope_backward(const RopeBackward& r) {
  const OperationTimer timer(timing_, timings_, "rope backward");
  octet::rope_backward(r, threads_);
  finish_cast(r.out);
}

}  // namespace octet
