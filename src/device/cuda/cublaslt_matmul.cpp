#include "device/cuda/cublaslt_matmul.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/log.h"
#include "device/nvidia/library_scratch.h"
#include "device/products.h"
#include "kernels/outer_scales.h"
#include "numerics/block_scales.h"

namespace octet {

namespace {

static_assert(sizeof(MatmulChoice) == sizeof(cublasLtMatmulAlgo_t),
              "a choice is the library's own description");

constexpr int most_candidates = 8;
// One run to load the kernel, then the best of some short series: other users of the machine only slow down.
constexpr int timed_series = 3, runs_in_series = 4;

std::string machine_of(const GpuFacts& gpu, size_t version) {
  return fmt::format("{}, CUDA driver {}.{}, cuBLASLt {}", gpu.name, gpu.driver_version / 1000,
                     gpu.driver_version % 1000 / 10, version_text(version));
}

std::string cannot(const MatmulPlanKey& key, const std::string& why) {
  return fmt::format("cuBLASLt cannot run the product {}: {}", to_string(key), why);
}
constexpr const char* cannot_hint =
    "octet doctor lists what this GPU has; set precision.recipe to bf16, or report the line above";

class Preference {
 public:
  explicit Preference(const CublasLt& library) : library_(library) {
    check_cublaslt(library_, library_.cublasLtMatmulPreferenceCreate(&preference_), "a cuBLASLt preference");
  }
  ~Preference() { library_.cublasLtMatmulPreferenceDestroy(preference_); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) const {
    check_cublaslt(
        library_, library_.cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof value),
        "a cuBLASLt preference");
  }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  const CublasLt& library_;
  cublasLtMatmulPreference_t preference_ = nullptr;
};

size_t bytes_of(const MatrixKey& matrix) {
  return static_cast<size_t>(matrix.rows) * static_cast<size_t>(matrix.columns) * size_of(matrix.type);
}
// The most scales that an operand may have, whatever its mode: codes lie [outer, inner].
size_t scale_bytes_of(const MatrixKey& matrix) {
  return static_cast<size_t>(matrix.columns * scale_blocks(matrix.rows)) * sizeof(float);
}

void check_addresses(const MatmulPlanKey& key, const Matmul& m) {
  const auto aligned = [](const void* data, int alignment) {
    return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(alignment) == 0;
  };
  const int of_scales = is_blocks(m.a.granularity) ? 16 : 1;
  if (aligned(m.b.values.data, key.first.alignment) && aligned(m.a.values.data, key.second.alignment) &&
      aligned(m.out.data, key.out.alignment) && aligned(m.a.inverse_scale, of_scales) &&
      aligned(m.b.inverse_scale, of_scales))
    return;
  throw Error(ExitCode::Internal,
              fmt::format("the product {}: a matrix is not aligned as it was planned", to_string(key)));
}

// The heuristic looks whether there are scales, not at them: this is no address of anything.
const float* some_scale(const MatrixKey& matrix) {
  return matrix.scale == ScaleMode::None ? nullptr : reinterpret_cast<const float*>(uintptr_t{256});
}

bool outer(const Operand& x) { return x.granularity == ScaleGranularity::Outer; }

}  // namespace

CublasLtMatmul::CublasLtMatmul(const GpuFacts& gpu, const DeviceOptions& options, const CudaStream& stream,
                               LibraryScratch& scratch)
    : library_(open_cublaslt()),
      stream_(stream),
      scratch_(scratch),
      deterministic_(options.deterministic),
      capabilities_{.capability = gpu.capability, .cublaslt_version = library_.cublasLtGetVersion()},
      workspace_limit_(product_workspace_limit(gpu.capability)),
      cache_(deterministic_ ? std::filesystem::path()
                            : matmul_plan_file(machine_of(gpu, capabilities_.cublaslt_version)),
             machine_of(gpu, capabilities_.cublaslt_version)) {
  check_cublaslt(library_, library_.cublasLtCreate(&handle_),
                 fmt::format("starting cuBLASLt ({})", library_.file));
}

CublasLtMatmul::~CublasLtMatmul() { library_.cublasLtDestroy(handle_); }

size_t CublasLtMatmul::prepare(std::span<const Matmul> matmuls) {
  size_t bytes = 0;
  for (const Matmul& m : matmuls) {
    const MatmulRoute made = route(m, capabilities_);
    bytes = std::max(bytes, scratch_bytes(plan(made.key), made));
  }
  if (cache_changed_) cache_.save();
  cache_changed_ = false;
  return bytes;
}

size_t CublasLtMatmul::scratch_bytes(const Plan& plan, const MatmulRoute& route) const {
  return align_workspace(plan.workspace_bytes) + align_workspace(route.scratch_bytes);
}

CublasLtMatmul::Plan& CublasLtMatmul::plan(const MatmulPlanKey& key) {
  if (const auto found = plans_.find(key); found != plans_.end()) return *found->second;
  auto made = std::make_unique<Plan>(library_, key);
  made->descriptors.set_scales(some_scale(key.first), some_scale(key.second));
  if (!take_from_cache(key, *made)) {
    const std::vector<Candidate> found = candidates(key, *made);
    if (deterministic_) {
      made->algorithm = found.front().algorithm;
      made->workspace_bytes = found.front().workspace_bytes;
    } else {
      measure(key, found, *made);
      MatmulChoice choice;
      std::memcpy(choice.data(), &made->algorithm, sizeof choice);
      cache_.put(to_string(key), choice);
      cache_changed_ = true;
    }
  }
  return *plans_.emplace(key, std::move(made)).first->second;
}

// The library looks at the choice before it is taken: a file may be wrong in spite of its hash.
bool CublasLtMatmul::take_from_cache(const MatmulPlanKey& key, Plan& plan) const {
  const MatmulChoice* choice = cache_.find(to_string(key));
  if (choice == nullptr) return false;
  cublasLtMatmulAlgo_t algorithm;
  std::memcpy(&algorithm, choice->data(), sizeof algorithm);
  cublasLtMatmulHeuristicResult_t result{};
  const MatmulDescriptors& d = plan.descriptors;
  const cublasStatus_t status = library_.cublasLtMatmulAlgoCheck(handle_, d.product(), d.first(), d.second(),
                                                                 d.out(), d.out(), &algorithm, &result);
  if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > workspace_limit_) {
    log_warning("the kept algorithm of the product {} does not work: it is measured again", to_string(key));
    return false;
  }
  plan.algorithm = algorithm;
  plan.workspace_bytes = result.workspaceSize;
  return true;
}

std::vector<CublasLtMatmul::Candidate> CublasLtMatmul::candidates(const MatmulPlanKey& key,
                                                                  const Plan& plan) const {
  const Preference preference(library_);
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_limit_));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(key.first.alignment));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(key.second.alignment));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(key.out.alignment));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(key.out.alignment));
  std::array<cublasLtMatmulHeuristicResult_t, most_candidates> results{};
  int count = 0;
  const MatmulDescriptors& d = plan.descriptors;
  const cublasStatus_t status =
      library_.cublasLtMatmulAlgoGetHeuristic(handle_, d.product(), d.first(), d.second(), d.out(), d.out(),
                                              preference.get(), most_candidates, results.data(), &count);
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(ExitCode::Hardware, cannot(key, library_.cublasLtGetStatusName(status)), cannot_hint);
  std::vector<Candidate> found;
  for (int i = 0; i < count; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<size_t>(i)];
    if (result.state == CUBLAS_STATUS_SUCCESS) found.push_back({result.algo, result.workspaceSize});
  }
  if (found.empty()) throw Error(ExitCode::Hardware, cannot(key, "no algorithm"), cannot_hint);
  return found;
}

void CublasLtMatmul::measure(const MatmulPlanKey& key, const std::vector<Candidate>& candidates, Plan& plan) {
  // Bytes of 0x3c are 1.5 in E4M3, 1 in E5M2 and 0.01 in BF16 and F32: zeros would draw less power.
  constexpr int filling = 0x3c;
  const DeviceMemory first(bytes_of(key.first)), second(bytes_of(key.second)), out(bytes_of(key.out));
  const size_t scale_bytes = std::max(scale_bytes_of(key.first), scale_bytes_of(key.second));
  const DeviceMemory scales(scale_bytes), workspace(workspace_limit_);
  for (const auto& [memory, bytes] :
       {std::pair{&first, bytes_of(key.first)}, std::pair{&second, bytes_of(key.second)},
        std::pair{&out, bytes_of(key.out)}, std::pair{&scales, scale_bytes}})
    check_cuda(cudaMemsetAsync(memory->data(), filling, bytes, stream_.get()), "filling a matrix");
  const auto scale_of = [&](const MatrixKey& matrix) {
    return matrix.scale == ScaleMode::None ? nullptr : static_cast<const float*>(scales.data());
  };
  plan.descriptors.set_scales(scale_of(key.first), scale_of(key.second));
  const Buffers buffers{first.data(), second.data(), out.data(), workspace.data()};

  StreamTimer timer(stream_.get());
  double best = std::numeric_limits<double>::infinity();
  Candidate fastest = candidates.front();
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  for (const Candidate& candidate : candidates) {
    plan.algorithm = candidate.algorithm;
    plan.workspace_bytes = candidate.workspace_bytes;
    status = enqueue(key, plan, buffers);
    if (status != CUBLAS_STATUS_SUCCESS) continue;
    for (int series = 0; series < timed_series; ++series) {
      timer.start();
      for (int run = 0; run < runs_in_series; ++run) enqueue(key, plan, buffers);
      if (const double seconds = timer.stop(); seconds < best) {
        best = seconds;
        fastest = candidate;
      }
    }
  }
  stream_.synchronize();
  if (best == std::numeric_limits<double>::infinity())
    throw Error(ExitCode::Hardware, cannot(key, library_.cublasLtGetStatusName(status)), cannot_hint);
  plan.algorithm = fastest.algorithm;
  plan.workspace_bytes = fastest.workspace_bytes;
  log_debug("product {}: {:.1f} us with the best of {}", to_string(key), 1e6 * best / runs_in_series,
            candidates.size());
}

cublasStatus_t CublasLtMatmul::enqueue(const MatmulPlanKey& key, const Plan& plan, const Buffers& b) const {
  const float alpha = 1, beta = key.accumulate ? 1.0f : 0.0f;
  const MatmulDescriptors& d = plan.descriptors;
  return library_.cublasLtMatmul(handle_, d.product(), &alpha, b.first, d.first(), b.second, d.second(),
                                 &beta, b.out, d.out(), b.out, d.out(), &plan.algorithm, b.workspace,
                                 plan.workspace_bytes, stream_.get());
}

// The library takes vectors for both operands or for none: the scale of the other one becomes a vector.
void CublasLtMatmul::set_scales(const Matmul& m, const MatmulRoute& route, float* spread,
                                const Plan& plan) const {
  const float* first = route.key.first.scale == ScaleMode::None ? nullptr : m.b.inverse_scale;
  const float* second = route.key.second.scale == ScaleMode::None ? nullptr : m.a.inverse_scale;
  if (route.outer == OuterScales::Library && outer(m.a) != outer(m.b)) {
    const Operand& one = outer(m.a) ? m.b : m.a;
    kernels::spread_scale(
        {.out = spread, .scale = one.inverse_scale, .count = outer_size(one), .stream = stream_.get()});
    (outer(m.a) ? first : second) = spread;
  }
  plan.descriptors.set_scales(first, second);
}

std::string CublasLtMatmul::run(const Matmul& m) {
  const MatmulRoute made = route(m, capabilities_);
  const MatmulPlanKey& key = made.key;
  if (scratch_.is_planned() && plans_.count(key) == 0)
    throw Error(ExitCode::Internal, fmt::format("the product {} was not planned", to_string(key)),
                "report this as a bug with the run's configuration");
  Plan& chosen = plan(key);
  check_addresses(key, m);
  std::byte* const workspace = scratch_.reserve(scratch_bytes(chosen, made));
  auto* const extra = reinterpret_cast<float*>(workspace + align_workspace(chosen.workspace_bytes));
  set_scales(m, made, extra, chosen);
  const bool factors = made.outer == OuterScales::Kernel;
  const cublasStatus_t status =
      enqueue(key, chosen, {m.b.values.data, m.a.values.data, factors ? extra : m.out.data, workspace});
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(ExitCode::Hardware, cannot(key, library_.cublasLtGetStatusName(status)), cannot_hint);
  if (factors) {
    kernels::apply_outer_scales({.product = extra,
                                 .row_scale = outer(m.a) ? m.a.inverse_scale : nullptr,
                                 .column_scale = outer(m.b) ? m.b.inverse_scale : nullptr,
                                 .out = m.out.data,
                                 .storage = m.out.dtype == DType::BF16 ? Format::BF16 : Format::FP32,
                                 .accumulate = m.accumulate,
                                 .rows = m.out.rows(),
                                 .columns = m.out.columns(),
                                 .stream = stream_.get()});
  }
  return made.implementation;
}

}  // namespace octet
