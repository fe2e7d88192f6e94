#include "device/cuda/library.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "libraries.h"

using namespace octet;

namespace {

LibrarySearch search_for(const std::string& file) {
  return {.title = "cuBLASLt", .files = {file}, .folders = {"/nowhere/cuda/lib64"}, .hint = "install it"};
}

}  // namespace

TEST_CASE("a library that is not there is named with every place looked at and the remedy") {
  const Error error = error_of([] { SharedLibrary library(search_for("liboctet-has-no-such.so.13")); });
  CHECK(error.code() == ExitCode::Hardware);
  CHECK_THAT(error.what(), contains_text("cuBLASLt not found"));
  CHECK_THAT(error.what(), contains_text("liboctet-has-no-such.so.13"));
  CHECK_THAT(error.what(), contains_text("/nowhere/cuda/lib64"));
  CHECK(error.hint() == "install it");
}

TEST_CASE("a file that is there and does not load says why, instead of 'not found'") {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("octet-library-test-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "liboctet-text.so.1") << "no library";
  LibrarySearch search = search_for("liboctet-text.so.1");
  search.folders = {folder.string()};
  const Error error = error_of([&] { SharedLibrary library(search); });
  CHECK_THAT(error.what(), contains_text("cuBLASLt cannot be loaded"));
  CHECK_THAT(error.what(), contains_text("liboctet-text.so.1"));
  std::filesystem::remove_all(folder);
}

TEST_CASE("a library without a function is too old, and one with it is called") {
  const SharedLibrary library(search_for("libm.so.6"));
  decltype(&::cublasLtCreate) create = nullptr;
  const Error error = error_of([&] { library.bind(create, "cublasLtCreate"); });
  CHECK(error.code() == ExitCode::Hardware);
  CHECK_THAT(error.what(), contains_text("has no cublasLtCreate"));
  double (*cosine)(double) = nullptr;
  library.bind(cosine, "cos");
  CHECK(cosine(0.0) == 1.0);
}

TEST_CASE("versions are read as NVIDIA writes them, and those Octet cannot use are refused") {
  CHECK(version_text(130100) == "13.1.0");
  CHECK(version_text(91900) == "9.19.0");
  CHECK_NOTHROW(check_cublaslt_version(120800, "libcublasLt.so.12"));
  CHECK_NOTHROW(check_cudnn_version(91600, "libcudnn.so.9"));
  const Error cublaslt = error_of([] { check_cublaslt_version(120799, "libcublasLt.so.12"); });
  CHECK_THAT(cublaslt.what(), contains_text("cuBLASLt 12.7.99 in libcublasLt.so.12: at least 12.8.0"));
  const Error cudnn = error_of([] { check_cudnn_version(91501, "libcudnn.so.9"); });
  CHECK_THAT(cudnn.what(), contains_text("cuDNN 9.15.1 in libcudnn.so.9: at least 9.16.0"));
  CHECK_FALSE(cudnn.hint().empty());
}

TEST_CASE("CUDA_HOME adds its folders before the one the build found") {
  setenv("CUDA_HOME", "/somewhere", 1);
  const std::vector<std::string> folders = cuda_library_folders();
  unsetenv("CUDA_HOME");
  REQUIRE(folders.size() >= 2);
  CHECK(folders[0] == "/somewhere/lib64");
  CHECK(folders[1] == "/somewhere/lib");
}

TEST_CASE("both libraries open without a GPU") {
  if (const auto library = installed(open_cublaslt)) CHECK(library->cublasLtGetVersion() >= 120800);
  if (const auto library = installed(open_cudnn)) CHECK(library->cudnnGetVersion() >= 91600);
}
