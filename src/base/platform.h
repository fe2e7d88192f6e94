// Compiler switches: code shared with CUDA device code, and functions compiled for several instruction sets.
#pragma once

#if defined(__CUDACC__)
#define OCTET_HD __host__ __device__ __forceinline__
#else
#define OCTET_HD inline __attribute__((always_inline))
#endif

// A leaf function with a hot loop: the compiler makes one clone per instruction set and picks one at load
// time. OpenMP regions must stay outside (their bodies are outlined before cloning). All clones give the same
// bits: -ffp-contract=off forbids fused multiply-adds that are not written out.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(OCTET_SANITIZED) && \
    !defined(__CUDACC__)
#if __GNUC__ >= 12
#define OCTET_VECTORIZED \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), optimize("O3")))
#else
#define OCTET_VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#endif
#else
#define OCTET_VECTORIZED
#endif
