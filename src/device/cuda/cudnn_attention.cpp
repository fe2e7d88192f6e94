#include "device/cuda/cudnn_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "device/nvidia/library_scratch.h"
#include "device/products.h"
#include "numerics/float8_attention.h"

namespace octet {

namespace {

constexpr const char *implementation = "cudnn-bf16", *float8_implementation = "cudnn-fp8";

}  // namespace

size_t CudnnAttention::Plan::bytes() const {
  return align_workspace(workspace_bytes) + align_workspace(scratch.out_products) +
         align_workspace(scratch.query_accumulator);
}

CudnnAttention::CudnnAttention(const GpuFacts& gpu, const DeviceOptions& options, const CudaStream& stream,
                               LibraryScratch& scratch)
    : library_(open_cudnn()), options_(options), scratch_(scratch), capability_(gpu.capability) {
  check_cudnn(library_, library_.cudnnCreate(&handle_), fmt::format("starting cuDNN ({})", library_.file));
  try {
    check_cudnn(library_, library_.cudnnSetStream(handle_, stream.get()), "giving cuDNN its stream");
    const ProbabilityNumbers numbers{probability_scale, 1 / probability_scale, 0};
    probability_ = static_cast<ProbabilityNumbers*>(allocate_on_device(sizeof numbers));
    check_cuda(cudaMemcpy(probability_, &numbers, sizeof numbers, cudaMemcpyHostToDevice),
               "copying to the GPU");
  } catch (...) {
    cudaFree(probability_);
    library_.cudnnDestroy(handle_);
    throw;
  }
}

CudnnAttention::~CudnnAttention() {
  plans_.clear();
  cudaFree(probability_);
  library_.cudnnDestroy(handle_);
}

const CudnnAttention::Plan& CudnnAttention::plan(const AttentionKey& key) {
  if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
  CudnnDescriptor made = attention_plan(library_, key, {.handle = handle_, .capability = capability_});
  const auto bytes = static_cast<size_t>(made.get_integer(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE));
  return plans_.emplace(key, Plan{std::move(made), bytes, attention_scratch(key)}).first->second;
}

const CudnnAttention::Plan& CudnnAttention::planned(const AttentionKey& key) {
  if (scratch_.is_planned() && plans_.count(key) == 0)
    throw Error(ExitCode::Internal, fmt::format("{} was not planned", to_string(key)),
                "report this as a bug with the run's configuration");
  return plan(key);
}

size_t CudnnAttention::prepare(std::span<const AttentionForward> attentions) {
  size_t bytes = 0;
  for (const AttentionForward& attention : attentions) {
    const AttentionKey forward = attention_key(attention);
    for (const AttentionKey& key : {forward, backward_of(forward, options_)})
      bytes = std::max(bytes, plan(key).bytes());
  }
  return bytes;
}

void CudnnAttention::execute(const Plan& plan, std::span<const Address> addresses, std::byte* workspace) {
  std::vector<int64_t> ids;
  std::vector<void*> data;
  for (const Address& address : addresses) {
    ids.push_back(static_cast<int64_t>(address.tensor));
    data.push_back(address.data);
  }
  void* const space = workspace;
  CudnnDescriptor pack(library_, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, ids);
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, static_cast<int64_t>(data.size()),
           data.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &space);
  pack.finalize("the addresses of an attention");
  check_cudnn(library_, library_.cudnnBackendExecute(handle_, plan.plan.get(), pack.get()), "attention");
}

std::string CudnnAttention::forward(const AttentionForward& a) {
  if (in_float8(a)) return float8_forward(a);
  const AttentionKey key = attention_key(a);
  const Plan& chosen = planned(key);
  std::byte* const workspace = scratch_.reserve(chosen.bytes());
  auto* const qkv = static_cast<std::byte*>(a.qkv.data);
  const PackedOffsets offsets = packed_offsets(key);
  float scale = a.softmax_scale;
  const Address addresses[] = {{AttentionTensor::Query, qkv},
                               {AttentionTensor::Key, qkv + offsets.key},
                               {AttentionTensor::Value, qkv + offsets.value},
                               {AttentionTensor::Out, a.out.high.data},
                               {AttentionTensor::LogSumExp, a.log_sum_exp.data},
                               {AttentionTensor::SoftmaxScale, &scale},
                               {AttentionTensor::Masked, &masked_}};
  execute(chosen, addresses, workspace);
  return implementation;
}

std::string CudnnAttention::backward(const AttentionBackward& a) {
  if (in_float8(a)) return float8_backward(a);
  const AttentionKey key = attention_key(a, options_);
  const Plan& chosen = planned(key);
  std::byte* const workspace = scratch_.reserve(chosen.bytes());
  std::byte* const out_products = workspace + align_workspace(chosen.workspace_bytes);
  std::byte* const accumulator = out_products + align_workspace(chosen.scratch.out_products);
  auto* const qkv = static_cast<std::byte*>(a.qkv.data);
  auto* const gradient = static_cast<std::byte*>(a.qkv_gradient.data);
  const PackedOffsets offsets = packed_offsets(key);
  float scale = a.softmax_scale;
  std::vector<Address> addresses = {{AttentionTensor::Query, qkv},
                                    {AttentionTensor::Key, qkv + offsets.key},
                                    {AttentionTensor::Value, qkv + offsets.value},
                                    {AttentionTensor::Out, a.out.data},
                                    {AttentionTensor::OutGradient, a.out_gradient.data},
                                    {AttentionTensor::LogSumExp, a.log_sum_exp.data},
                                    {AttentionTensor::SoftmaxScale, &scale},
                                    {AttentionTensor::Masked, &masked_},
                                    {AttentionTensor::One, &one_},
                                    {AttentionTensor::QueryGradient, gradient},
                                    {AttentionTensor::KeyGradient, gradient + offsets.key},
                                    {AttentionTensor::ValueGradient, gradient + offsets.value},
                                    {AttentionTensor::OutProducts, out_products}};
  if (!key.deterministic) addresses.push_back({AttentionTensor::QueryAccumulator, accumulator});
  execute(chosen, addresses, workspace);
  return implementation;
}

namespace {

// An address that is only read, as cuDNN takes it.
void* input(const float* number) { return const_cast<float*>(number); }

}  // namespace

std::string CudnnAttention::float8_forward(const AttentionForward& a) {
  using T = AttentionTensor;
  const AttentionKey key = attention_key(a);
  const Plan& chosen = planned(key);
  std::byte* const workspace = scratch_.reserve(chosen.bytes());
  auto* const qkv = static_cast<std::byte*>(a.qkv.data);
  const PackedOffsets offsets = packed_offsets(key);
  const Site& site = a.out_codes.site;
  float scale = a.softmax_scale;
  const Address addresses[] = {{T::Query, qkv},
                               {T::Key, qkv + offsets.key},
                               {T::Value, qkv + offsets.value},
                               {T::Out, a.out_codes.codes.data},
                               {T::LogSumExp, a.log_sum_exp.data},
                               {T::SoftmaxScale, &scale},
                               {T::Masked, &float8_masked_},
                               {T::QueryInverse, input(a.qkv_inverse_scale)},
                               {T::KeyInverse, input(a.qkv_inverse_scale)},
                               {T::ValueInverse, input(a.qkv_inverse_scale)},
                               {T::ProbabilityInverse, &probability_->inverse_scale},
                               {T::ProbabilityScale, &probability_->scale},
                               {T::ProbabilityAmax, &probability_->amax},
                               {T::OutScale, site.scale},
                               {T::OutAmax, site.amax}};
  execute(chosen, addresses, workspace);
  return float8_implementation;
}

std::string CudnnAttention::float8_backward(const AttentionBackward& a) {
  using T = AttentionTensor;
  const AttentionKey key = attention_key(a, options_);
  const Plan& chosen = planned(key);
  std::byte* const workspace = scratch_.reserve(chosen.bytes());
  auto* const qkv = static_cast<std::byte*>(a.qkv.data);
  auto* const gradient = static_cast<std::byte*>(a.qkv_gradient_codes.codes.data);
  const PackedOffsets offsets = packed_offsets(key);
  const Site &score = a.score_gradient.site, &result = a.qkv_gradient_codes.site;
  float scale = a.softmax_scale;
  const Address addresses[] = {{T::Query, qkv},
                               {T::Key, qkv + offsets.key},
                               {T::Value, qkv + offsets.value},
                               {T::Out, a.out.data},
                               {T::OutGradient, a.out_gradient.data},
                               {T::LogSumExp, a.log_sum_exp.data},
                               {T::SoftmaxScale, &scale},
                               {T::Masked, &float8_masked_},
                               {T::QueryGradient, gradient},
                               {T::KeyGradient, gradient + offsets.key},
                               {T::ValueGradient, gradient + offsets.value},
                               {T::QueryInverse, input(a.qkv_inverse_scale)},
                               {T::KeyInverse, input(a.qkv_inverse_scale)},
                               {T::ValueInverse, input(a.qkv_inverse_scale)},
                               {T::OutInverse, input(a.out_inverse_scale)},
                               {T::OutGradientInverse, input(a.out_gradient_inverse_scale)},
                               {T::ProbabilityInverse, &probability_->inverse_scale},
                               {T::ScoreGradientInverse, score.inverse_scale},
                               {T::ProbabilityScale, &probability_->scale},
                               {T::ScoreGradientScale, score.scale},
                               {T::QueryGradientScale, result.scale},
                               {T::KeyGradientScale, result.scale},
                               {T::ValueGradientScale, result.scale},
                               {T::ScoreGradientAmax, score.amax},
                               {T::QueryGradientAmax, result.amax},
                               {T::KeyGradientAmax, result.amax + 1},
                               {T::ValueGradientAmax, result.amax + 2}};
  execute(chosen, addresses, workspace);
  return float8_implementation;
}

}  // namespace octet
