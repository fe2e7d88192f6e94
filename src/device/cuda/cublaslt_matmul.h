// Matrix products by cuBLASLt. Every key has one plan, made before step 0: the candidates of the library's
// heuristic are timed on the device, and the fastest is kept in a file (matmul_plan_cache.h). Deterministic
// devices take the heuristic's first instead, which depends on no measurement.
#pragma once
#include <cublasLt.h>

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/cuda/cublaslt_descriptors.h"
#include "device/cuda/gpu_facts.h"
#include "device/cuda/library.h"
#include "device/cuda/matmul_plan_cache.h"
#include "device/cuda/runtime.h"
#include "device/nvidia/matmul_key.h"

namespace octet {

class CublasLtMatmul {
 public:
  CublasLtMatmul(const GpuFacts& gpu, const DeviceOptions& options, const CudaStream& stream,
                 LibraryScratch& scratch);
  ~CublasLtMatmul();
  CublasLtMatmul(const CublasLtMatmul&) = delete;
  CublasLtMatmul& operator=(const CublasLtMatmul&) = delete;

  // Plans these products, which need no data yet; bytes of scratch that the hungriest takes.
  // Error(Hardware) with the whole key for a product the library does not have.
  size_t prepare(std::span<const Matmul> matmuls);
  // Enqueues the product; the implementation's name. With planned scratch, a product that was not prepared is
  // Error(Internal): nothing is searched inside a step.
  std::string run(const Matmul& matmul);
  const GemmCapabilities& capabilities() const { return capabilities_; }

 private:
  struct Plan {
    Plan(const CublasLt& library, const MatmulPlanKey& key) : descriptors(library, key) {}
    MatmulDescriptors descriptors;
    cublasLtMatmulAlgo_t algorithm{};
    size_t workspace_bytes = 0;
  };
  struct Candidate {
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace_bytes;
  };
  struct Buffers {
    const void *first, *second;
    void *out, *workspace;
  };

  Plan& plan(const MatmulPlanKey& key);
  bool take_from_cache(const MatmulPlanKey& key, Plan& plan) const;
  std::vector<Candidate> candidates(const MatmulPlanKey& key, const Plan& plan) const;
  // Makes the fastest candidate the plan's.
  void measure(const MatmulPlanKey& key, const std::vector<Candidate>& candidates, Plan& plan);
  cublasStatus_t enqueue(const MatmulPlanKey& key, const Plan& plan, const Buffers& buffers) const;
  size_t scratch_bytes(const Plan& plan, const MatmulRoute& route) const;
  void set_scales(const Matmul& matmul, const MatmulRoute& route, float* spread, const Plan& plan) const;

  const CublasLt library_;
  const CudaStream& stream_;
  LibraryScratch& scratch_;
  const bool deterministic_;
  GemmCapabilities capabilities_;
  size_t workspace_limit_;
  cublasLtHandle_t handle_ = nullptr;
  MatmulPlanCache cache_;
  bool cache_changed_ = false;
  std::map<MatmulPlanKey, std::unique_ptr<Plan>> plans_;
};

}  // namespace octet
