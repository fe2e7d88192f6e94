// cuBLASLt and cuDNN, opened when a CUDA device is made: they are not linked, so the program starts without
// them, and at once. The tables' types come from NVIDIA's headers: a call that does not fit does not compile.
#pragma once
#include <cublasLt.h>
#include <cudnn.h>

#include <string>
#include <vector>

namespace octet {

// Where a shared library may be: first where the loader looks, then in the folders.
struct LibrarySearch {
  std::string title;               // "cuBLASLt"
  std::vector<std::string> files;  // in order of preference: "libcublasLt.so.13", ...
  std::vector<std::string> folders;
  std::string hint;  // the remedy when there is none
};

// An open library. It stays open until the process ends: these libraries start threads of their own.
class SharedLibrary {
 public:
  explicit SharedLibrary(const LibrarySearch& search);  // Error(Hardware) with what was looked for and where
  template <class F>
  void bind(F& function, const char* name) const {
    function = reinterpret_cast<F>(symbol(name));
  }
  const std::string& file() const { return file_; }

 private:
  void* symbol(const char* name) const;  // Error(Hardware) when the library is too old to have it

  std::string title_, file_;
  void* handle_ = nullptr;
};

// Folders that CUDA_HOME, CUDA_PATH and the build name.
std::vector<std::string> cuda_library_folders();

// Every member is the library's function of that name.
#define OCTET_CUBLASLT_FUNCTIONS(USE)       \
  USE(cublasLtGetVersion)                   \
  USE(cublasLtGetStatusName)                \
  USE(cublasLtCreate)                       \
  USE(cublasLtDestroy)                      \
  USE(cublasLtMatmul)                       \
  USE(cublasLtMatmulDescCreate)             \
  USE(cublasLtMatmulDescDestroy)            \
  USE(cublasLtMatmulDescSetAttribute)       \
  USE(cublasLtMatmulDescGetAttribute)       \
  USE(cublasLtMatrixLayoutCreate)           \
  USE(cublasLtMatrixLayoutDestroy)          \
  USE(cublasLtMatrixLayoutGetAttribute)     \
  USE(cublasLtMatmulPreferenceCreate)       \
  USE(cublasLtMatmulPreferenceDestroy)      \
  USE(cublasLtMatmulPreferenceSetAttribute) \
  USE(cublasLtMatmulAlgoGetHeuristic)       \
  USE(cublasLtMatmulAlgoCheck)

#define OCTET_CUDNN_FUNCTIONS(USE)   \
  USE(cudnnGetVersion)               \
  USE(cudnnGetCudartVersion)         \
  USE(cudnnGetErrorString)           \
  USE(cudnnGetLastErrorString)       \
  USE(cudnnCreate)                   \
  USE(cudnnDestroy)                  \
  USE(cudnnSetStream)                \
  USE(cudnnBackendCreateDescriptor)  \
  USE(cudnnBackendDestroyDescriptor) \
  USE(cudnnBackendSetAttribute)      \
  USE(cudnnBackendGetAttribute)      \
  USE(cudnnBackendFinalize)          \
  USE(cudnnBackendExecute)

#define OCTET_MEMBER(name) decltype(&::name) name = nullptr;

struct CublasLt {
  OCTET_CUBLASLT_FUNCTIONS(OCTET_MEMBER)
  std::string file;
};

struct Cudnn {
  OCTET_CUDNN_FUNCTIONS(OCTET_MEMBER)
  std::string file;
};

#undef OCTET_MEMBER

// Error(Hardware) when missing or too old.
CublasLt open_cublaslt();
Cudnn open_cudnn();

// 130100 -> "13.1.0" and 91900 -> "9.19.0": both libraries count this way.
std::string version_text(size_t version);
// Error(Hardware) when the library's version is not one Octet works with.
void check_cublaslt_version(size_t version, const std::string& file);
void check_cudnn_version(size_t version, const std::string& file);

}  // namespace octet
