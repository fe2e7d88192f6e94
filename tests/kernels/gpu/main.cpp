// Runs the kernels' foundations on a GPU: instructions against their plain paths on every input, reductions
// and fill against the interpreter, bit for bit. Exit status: 0 equal, 1 different, 77 there is no GPU
// (nothing was checked).
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

// Both builds of checks.cu; kernels/namespace.h shows a translation unit one of them only.
#define OCTET_DECLARE_CHECKS(side)                                   \
  namespace octet::kernels::side {                                   \
  void count_mismatches(uint64_t patterns, unsigned long long* out); \
  void reduce_blocks(const float* in, float* out);                   \
  void fill_floats(float* out, int64_t count, float value);          \
  }
OCTET_DECLARE_CHECKS(cuda)
OCTET_DECLARE_CHECKS(interpreted)

namespace {

void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
template <class T>
class OnGpu {
 public:
  explicit OnGpu(const std::vector<T>& values) : count_(values.size()) {
    require(cudaMalloc(&memory_, count_ * sizeof(T)));
    require(cudaMemcpy(memory_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~OnGpu() { cudaFree(memory_); }
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;
  T* data() const { return static_cast<T*>(memory_); }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    require(cudaMemcpy(values.data(), memory_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  void* memory_ = nullptr;
  size_t count_;
};

int failed = 0;
void report(const char* what, unsigned long long different) {
  std::printf("%-48s %s", what, different ? "DIFFERENT: " : "equal\n");
  if (different) std::printf("%llu\n", different);
  failed += different != 0;
}
unsigned long long differences(const std::vector<float>& a, const std::vector<float>& b) {
  unsigned long long count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += std::memcmp(&a[i], &b[i], sizeof(float)) != 0;
  return count;
}

void check() {
  const OnGpu<unsigned long long> counts(std::vector<unsigned long long>(5, 0));
  octet::kernels::cuda::count_mismatches(uint64_t{1} << 32, counts.data());
  const std::vector<unsigned long long> mismatches = counts.read();
  const char* const names[] = {
      "encode_e4m3x4 == numerics, all floats", "encode_e5m2x4 == numerics, all floats",
      "pack_bfloat16x2 == numerics, all floats", "decode_e4m3x4 == numerics, all codes",
      "decode_e5m2x4 == numerics, all codes"};
  for (size_t i = 0; i < 5; ++i) report(names[i], mismatches[i]);

  std::vector<float> in(8 * 256), interpreted(4 * in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = std::sin(static_cast<float>(i * i % 1009));
  const OnGpu<float> in_gpu(in), out_gpu(interpreted);
  octet::kernels::cuda::reduce_blocks(in_gpu.data(), out_gpu.data());
  octet::kernels::interpreted::reduce_blocks(in.data(), interpreted.data());
  report("warp and block reductions == interpreter", differences(out_gpu.read(), interpreted));

  std::vector<float> filled(100003, 1.0f);
  const OnGpu<float> filled_gpu(filled);
  octet::kernels::cuda::fill_floats(filled_gpu.data() + 1, 100001, 2.0f);
  octet::kernels::interpreted::fill_floats(filled.data() + 1, 100001, 2.0f);
  report("fill == interpreter", differences(filled_gpu.read(), filled));
}

}  // namespace

int main() {
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess || devices == 0) {
    std::printf("no GPU, nothing checked: %s\n",
                error == cudaSuccess ? "none found" : cudaGetErrorString(error));
    return 77;
  }
  try {
    check();
  } catch (const std::exception& error) {
    std::printf("failed: %s\n", error.what());
    return 1;
  }
  return failed ? 1 : 0;
}
