#include "base/version.h"

#include <fmt/format.h>
#include <spdlog/version.h>
#include <xxhash.h>

#include <nlohmann/json.hpp>

namespace octet {

std::string version() { return OCTET_VERSION; }

std::string build_summary() {
#if defined(__clang__)
  const std::string compiler =
      fmt::format("clang {}.{}.{}", __clang_major__, __clang_minor__, __clang_patchlevel__);
#else
  const std::string compiler = fmt::format("gcc {}.{}.{}", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#endif
#if defined(_OPENMP)
  const std::string openmp = fmt::format("OpenMP {}", _OPENMP);
#else
  const std::string openmp = "no OpenMP";
#endif
#if defined(OCTET_SANITIZED)
  const std::string sanitized = ", sanitized";
#else
  const std::string sanitized;
#endif
  return fmt::format("{}, {}{}; {}, fmt {}.{}.{}, spdlog {}.{}.{}, nlohmann-json {}.{}.{}, xxHash {}",
                     compiler, OCTET_BUILD_TYPE, sanitized, openmp, FMT_VERSION / 10000,
                     FMT_VERSION / 100 % 100, FMT_VERSION % 100, SPDLOG_VER_MAJOR, SPDLOG_VER_MINOR,
                     SPDLOG_VER_PATCH, NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR,
                     NLOHMANN_JSON_VERSION_PATCH, XXH_versionNumber());
}

}  // namespace octet
