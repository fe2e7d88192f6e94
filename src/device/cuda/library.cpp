#include "device/cuda/library.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "base/log.h"

namespace octet {

namespace {

void* open(const std::string& file) { return dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL); }

// "libcublasLt.so.13" for the toolkit of the build, then the other version this source works with.
std::vector<std::string> cublaslt_files() {
  std::vector<std::string> files{fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR)};
  for (const int major : {13, 12})
    if (major != CUBLAS_VER_MAJOR) files.push_back(fmt::format("libcublasLt.so.{}", major));
  return files;
}

LibrarySearch cublaslt_search() {
  return {
      .title = "cuBLASLt",
      .files = cublaslt_files(),
      .folders = cuda_library_folders(),
      .hint =
          "install the CUDA libraries (apt: libcublas-13-0, pip: nvidia-cublas) and put their folder into "
          "LD_LIBRARY_PATH or CUDA_HOME"};
}

LibrarySearch cudnn_search() {
  return {.title = "cuDNN",
          .files = {fmt::format("libcudnn.so.{}", CUDNN_MAJOR)},
          .folders = cuda_library_folders(),
          .hint =
              "install cuDNN (apt: libcudnn9-cuda-13, pip: nvidia-cudnn-cu13) and put its folder into "
              "LD_LIBRARY_PATH or CUDA_HOME"};
}

// cuDNN opens these two by name when it needs them, in the loader's path only. Once they are loaded from
// wherever they are, it finds them; when they are nowhere, it says so itself.
void open_what_cudnn_needs(int cuda_major) {
  for (const char* name : {"libcublasLt.so", "libnvrtc.so"}) {
    LibrarySearch search = cudnn_search();
    search.files = {fmt::format("{}.{}", name, cuda_major)};
    try {
      const SharedLibrary library(search);
    } catch (const Error& error) {
      log_debug("cuDNN may miss it: {}", error.what());
    }
  }
}

}  // namespace

std::vector<std::string> cuda_library_folders() {
  std::vector<std::string> folders;
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    const char* root = std::getenv(variable);
    if (root == nullptr || *root == '\0') continue;
    for (const char* folder : {"lib64", "lib"}) folders.push_back(fmt::format("{}/{}", root, folder));
  }
  for (const char* folder : {OCTET_CUBLASLT_FOLDER, OCTET_CUDNN_FOLDER})
    if (*folder != '\0' && (folders.empty() || folders.back() != folder)) folders.emplace_back(folder);
  return folders;
}

SharedLibrary::SharedLibrary(const LibrarySearch& search) : title_(search.title) {
  std::string broken;  // one that is there, and why it does not load
  for (const std::string& name : search.files) {
    std::vector<std::string> places{name};
    for (const std::string& folder : search.folders) places.push_back(folder + "/" + name);
    for (const std::string& place : places) {
      handle_ = open(place);
      if (handle_ != nullptr) {
        file_ = place;
        return;
      }
      const char* why = dlerror();
      std::error_code ignored;
      if (broken.empty() && why != nullptr && std::filesystem::exists(place, ignored)) broken = why;
    }
  }
  if (!broken.empty())
    throw Error(ExitCode::Hardware, fmt::format("{} cannot be loaded: {}", title_, broken), search.hint);
  throw Error(ExitCode::Hardware,
              fmt::format("{} not found: looked for {} in the loader's path{}{}", title_,
                          fmt::join(search.files, " and "), search.folders.empty() ? "" : " and in ",
                          fmt::join(search.folders, ", ")),
              search.hint);
}

void* SharedLibrary::symbol(const char* name) const {
  if (void* found = dlsym(handle_, name)) return found;
  throw Error(ExitCode::Hardware, fmt::format("{} ({}) has no {}: it is too old", title_, file_, name),
              fmt::format("install a newer {}", title_));
}

std::string version_text(size_t version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

// 12.8 is the first with scale modes, which every product of codes names.
void check_cublaslt_version(size_t version, const std::string& file) {
  constexpr size_t least = 120800;
  if (version >= least) return;
  throw Error(ExitCode::Hardware,
              fmt::format("cuBLASLt {} in {}: at least {} is needed", version_text(version), file,
                          version_text(least)),
              "install a newer CUDA toolkit, or put its lib folder first in LD_LIBRARY_PATH");
}

// Up to 9.15 the backward pass of attention is wrong for contexts that are not multiples of 128 unless it is
// given a padding mask.  [cudnn-frontend, scaled_dot_product_flash_attention.h]
void check_cudnn_version(size_t version, const std::string& file) {
  constexpr size_t least = 91600;
  if (version >= least) return;
  throw Error(
      ExitCode::Hardware,
      fmt::format("cuDNN {} in {}: at least {} is needed", version_text(version), file, version_text(least)),
      "install a newer cuDNN 9, or put its lib folder first in LD_LIBRARY_PATH");
}

CublasLt open_cublaslt() {
  const SharedLibrary library(cublaslt_search());
  CublasLt table;
#define OCTET_BIND(name) library.bind(table.name, #name);
  OCTET_CUBLASLT_FUNCTIONS(OCTET_BIND)
  table.file = library.file();
  check_cublaslt_version(table.cublasLtGetVersion(), table.file);
  return table;
}

Cudnn open_cudnn() {
  const SharedLibrary library(cudnn_search());
  Cudnn table;
  OCTET_CUDNN_FUNCTIONS(OCTET_BIND)
#undef OCTET_BIND
  table.file = library.file();
  check_cudnn_version(table.cudnnGetVersion(), table.file);
  open_what_cudnn_needs(static_cast<int>(table.cudnnGetCudartVersion() / 1000));
  return table;
}

}  // namespace octet
