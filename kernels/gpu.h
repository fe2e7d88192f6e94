// The GPU language of Octet's kernels, the only such header that a kernel file includes. Under nvcc it is a
// thin veneer over CUDA. Under a host compiler it is the interpreter (interpreter/interpreter.h), which runs
// the same source on a CPU and needs no CUDA toolkit.
//
//   GPU_SHARED(T, name, N)            T name[N] shared by the block, 16-byte aligned
//   GPU_DYNAMIC_SHARED(T, name)       T* name, Launch::shared_bytes long, 16-byte aligned
//   gpu::load / load_streaming        one access of sizeof(V) = 1..16 bytes, aligned to sizeof(V);
//   gpu::store / store_streaming      streaming: read or written once, so the caches need not keep it
//   gpu::launch(kernel, {.grid = , .block = , .shared_bytes = , .stream = }, arguments...)
//                                     throws LaunchError; kernel<<<>>> is not used
//   gpu::processors()                 multiprocessors of the device
//   gpu::resident_blocks(kernel, block, shared_bytes)      blocks of it that the device runs at a time
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>

#include "kernels/launch_error.h"
#include "kernels/namespace.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define GPU_SHARED(T, name, ...) __shared__ __align__(16) T name[__VA_ARGS__]
#define GPU_DYNAMIC_SHARED(T, name)                                         \
  extern __shared__ __align__(16) unsigned char gpu_dynamic_shared_bytes[]; \
  T* const name = reinterpret_cast<T*>(gpu_dynamic_shared_bytes)
#else
#include "kernels/interpreter/interpreter.h"
#include "kernels/interpreter/queue.h"
#endif

namespace gpu {
inline namespace OCTET_GPU {

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;  // dynamic shared memory of a block
  Stream stream = nullptr;
  // The call, for messages. Leave these alone.
  const char* launcher = __builtin_FUNCTION();
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();
};

#if defined(__CUDACC__)

inline std::string to_text(dim3 d) {
  return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z);
}
inline void check_launch(cudaError_t error, const void* kernel, const Launch& launch) {
  if (error == cudaSuccess) return;
  const char* name = nullptr;
  if (cudaFuncGetName(&name, kernel) != cudaSuccess || name == nullptr) name = launch.launcher;
  throw LaunchError("kernel " + std::string(name) + " (grid " + to_text(launch.grid) + ", block " +
                    to_text(launch.block) + ", " + std::to_string(launch.shared_bytes) +
                    " bytes of dynamic shared memory), launched at " + launch.file + ":" +
                    std::to_string(launch.line) + ": " + cudaGetErrorName(error) + " (" +
                    cudaGetErrorString(error) + ")");
}

// Multiprocessors of the current device, for grids that walk over their data.
inline unsigned processors() {
  int device = 0, count = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) throw LaunchError(std::string("no CUDA device: ") + cudaGetErrorString(error));
  return static_cast<unsigned>(count);
}

inline void allow_shared(const void* kernel, const Launch& launch) {
  if (launch.shared_bytes <= shared_without_asking) return;
  check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(launch.shared_bytes)),
               kernel, launch);
}

// Blocks of a kernel that the current device has at a time, for grids that walk over their data.
template <class... Parameters>
unsigned resident_blocks(void (*kernel)(Parameters...), unsigned block, size_t shared_bytes) {
  const void* const address = reinterpret_cast<const void*>(kernel);
  const Launch launch{.grid = processors(), .block = block, .shared_bytes = shared_bytes};
  allow_shared(address, launch);
  int blocks = 0;
  check_launch(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, static_cast<int>(block), shared_bytes),
      address, launch);
  return static_cast<unsigned>(blocks) * launch.grid.x;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& launch, Arguments&&... arguments) {
  const void* const address = reinterpret_cast<const void*>(kernel);
  allow_shared(address, launch);
  cudaLaunchConfig_t config{};
  config.gridDim = launch.grid;
  config.blockDim = launch.block;
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = static_cast<cudaStream_t>(launch.stream);
  // Its own result, not the thread's last error, which may be what an earlier query left.
  check_launch(cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...), address, launch);
}

template <class V>
__device__ __forceinline__ V load(const V* address) {
  return *address;
}
template <class V>
__device__ __forceinline__ V load_streaming(const V* address) {
  return __ldcs(address);
}
template <class V>
__device__ __forceinline__ void store(V* address, std::type_identity_t<V> value) {
  *address = value;
}
template <class V>
__device__ __forceinline__ void store_streaming(V* address, std::type_identity_t<V> value) {
  __stcs(address, value);
}

#else

inline unsigned processors() { return 2; }  // few, so that small tests walk too
template <class... Parameters>
unsigned resident_blocks(void (*)(Parameters...), unsigned, size_t) {
  return 4 * processors();
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& launch, Arguments&&... arguments) {
  // Arguments are copied once, before the first thread runs, as on a GPU.
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  const auto run = [call = Call{kernel, {static_cast<Arguments&&>(arguments)...}}, launch] {
    run_grid({.grid = launch.grid,
              .block = launch.block,
              .shared_bytes = launch.shared_bytes,
              .run_thread =
                  [](const void* erased) {
                    const Call& c = *static_cast<const Call*>(erased);
                    std::apply(c.kernel, c.arguments);
                  },
              .call = &call,
              .kernel = reinterpret_cast<const void*>(call.kernel),
              .launcher = launch.launcher,
              .file = launch.file,
              .line = launch.line});
  };
  if (launch.stream)
    static_cast<Queue*>(launch.stream)->add(run);
  else
    run();
}

// A misaligned access ends the program with its place, as it ends a kernel on a GPU.
template <class V>
V load(const V* address, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  check_access<V>(address, {"gpu::load", file, line});
  return *address;
}
template <class V>
V load_streaming(const V* address, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  check_access<V>(address, {"gpu::load_streaming", file, line});
  return *address;
}
template <class V>
void store(V* address, std::type_identity_t<V> value, const char* file = __builtin_FILE(),
           int line = __builtin_LINE()) {
  check_access<V>(address, {"gpu::store", file, line});
  *address = value;
}
template <class V>
void store_streaming(V* address, std::type_identity_t<V> value, const char* file = __builtin_FILE(),
                     int line = __builtin_LINE()) {
  check_access<V>(address, {"gpu::store_streaming", file, line});
  *address = value;
}

#endif

}  // namespace OCTET_GPU
}  // namespace gpu
