#include "comm/nccl/library.h"

#include <fmt/format.h>

#include <cstdlib>

#include "base/error.h"
#include "device/cuda/library.h"

namespace octet {
namespace {

LibrarySearch nccl_search() {
  LibrarySearch search{.title = "NCCL",
                       .files = {"libnccl.so.2"},
                       .folders = {},
                       .hint =
                           "install NCCL (apt: libnccl2, pip: nvidia-nccl-cu13) and put its folder into "
                           "LD_LIBRARY_PATH or NCCL_HOME"};
  if (const char* root = std::getenv("NCCL_HOME"); root != nullptr && *root != '\0')
    search.folders.push_back(fmt::format("{}/lib", root));
  for (std::string& folder : cuda_library_folders()) search.folders.push_back(std::move(folder));
  if (*OCTET_NCCL_FOLDER != '\0') search.folders.emplace_back(OCTET_NCCL_FOLDER);
  return search;
}

}  // namespace

// 2.14 is the first with communicators that do not block. Older libraries read of a newer configuration
// struct what they know.
void check_nccl_version(int version, const std::string& file) {
  constexpr int least = NCCL_VERSION(2, 14, 0);
  if (version >= least) return;
  throw Error(ExitCode::Hardware,
              fmt::format("NCCL {} in {}: at least {} is needed", version_text(static_cast<size_t>(version)),
                          file, version_text(least)),
              "install a newer NCCL, or put its lib folder first in LD_LIBRARY_PATH");
}

Nccl open_nccl() {
  const SharedLibrary library(nccl_search());
  Nccl table;
#define OCTET_BIND(name) library.bind(table.name, #name);
  OCTET_NCCL_FUNCTIONS(OCTET_BIND)
#undef OCTET_BIND
  table.file = library.file();
  int version = 0;
  table.ncclGetVersion(&version);
  check_nccl_version(version, table.file);
  return table;
}

}  // namespace octet
