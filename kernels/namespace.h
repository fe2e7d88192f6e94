// Kernels exist twice in one program, compiled by nvcc for a GPU and by the host compiler for the
// interpreter, so each lives in its own inline namespace. OCTET_GPU says which one a translation unit means:
// the libraries octet_kernels_cuda and octet_kernels_interpreted define it for whoever links them.
#pragma once

#if !defined(OCTET_GPU)
#error "OCTET_GPU must be cuda or interpreted: link octet_kernels_cuda or octet_kernels_interpreted"
#endif

// clang-format off
#define OCTET_KERNELS_BEGIN namespace octet::kernels { inline namespace OCTET_GPU {
#define OCTET_KERNELS_END }}
// clang-format on

namespace gpu {
using Stream = void*;  // a cudaStream_t; to the interpreter a gpu::Queue*, or null: a launch runs at once
}
namespace octet::kernels {
using gpu::Stream;
}
