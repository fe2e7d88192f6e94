// Attention by cuDNN, with a plan for each shape.
#pragma once
#include <limits>
#include <map>
#include <span>
#include <string>

#include "device/cuda/attention_plan.h"
#include "device/cuda/gpu_facts.h"
#include "device/cuda/runtime.h"

namespace octet {

class CudnnAttention {
 public:
  CudnnAttention(const GpuFacts& gpu, const DeviceOptions& options, const CudaStream& stream,
                 LibraryScratch& scratch);
  ~CudnnAttention();
  CudnnAttention(const CudnnAttention&) = delete;
  CudnnAttention& operator=(const CudnnAttention&) = delete;

  // Plans both directions of each shape (half a second each: cuDNN compiles for the shape); bytes of scratch
  // that the hungriest takes. Deterministic ones take 2 B H S^2 more bytes on most GPUs.
  size_t prepare(std::span<const AttentionForward> attentions);
  // Enqueued; the implementation's name. With planned scratch, a shape that was not prepared is
  // Error(Internal).
  std::string forward(const AttentionForward& attention);
  std::string backward(const AttentionBackward& attention);

 private:
  struct Plan {
    CudnnDescriptor plan;
    size_t workspace_bytes;
    AttentionScratch scratch;
    size_t bytes() const;
  };
  struct Address {
    AttentionTensor tensor;
    void* data;
  };
  const Plan& plan(const AttentionKey& key);
  const Plan& planned(const AttentionKey& key);
  std::string float8_forward(const AttentionForward& attention);
  std::string float8_backward(const AttentionBackward& attention);
  void execute(const Plan& plan, std::span<const Address> addresses, std::byte* workspace);

  const Cudnn library_;
  const DeviceOptions options_;
  LibraryScratch& scratch_;
  int capability_;
  cudnnHandle_t handle_ = nullptr;
  std::map<AttentionKey, Plan> plans_;
  // Numbers that a plan reads from host memory, through pointers to what is not const.
  float masked_ = -std::numeric_limits<float>::infinity(), one_ = 1;
  // In FP8 a masked score stays finite, as cuDNN's own graphs have it.
  float float8_masked_ = std::numeric_limits<float>::lowest();
  // Device memory: what does not change of FP8's numbers, and what nobody asks for.
  struct ProbabilityNumbers {
    float scale, inverse_scale, amax;
  };
  ProbabilityNumbers* probability_ = nullptr;
};

}  // namespace octet
