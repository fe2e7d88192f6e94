#include "device/cuda/matmul_plan_cache.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "base/log.h"
#include "libraries.h"

using namespace octet;

namespace {

// A folder of its own that goes with the test.
struct Folder {
  Folder()
      : path(std::filesystem::temp_directory_path() / ("octet-plan-cache-test-" + std::to_string(getpid()))) {
    std::filesystem::remove_all(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

const MatmulChoice some_choice{1, 2, 3, 0xffffffffffffffffull, 0, 6, 7, 8};
const std::string machine = "NVIDIA H200, CUDA driver 13.0, cuBLASLt 13.1.0";
const std::string key = "m8 n8 k16 F8_E4M3[16x8]T tensor-scale x F8_E4M3[16x8]N tensor-scale -> BF16[8x8]N";

std::filesystem::path saved(const Folder& folder) {
  const std::filesystem::path file = folder.path / "deep" / "plans.txt";
  MatmulPlanCache cache(file, machine);
  cache.put(key, some_choice);
  cache.put("another", {});
  cache.save();
  return file;
}

std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("a kept choice is found again, by its key and machine alone") {
  const Folder folder;
  const std::filesystem::path file = saved(folder);
  const MatmulPlanCache again(file, machine);
  REQUIRE(again.find(key) != nullptr);
  CHECK(*again.find(key) == some_choice);
  CHECK(again.find("a third") == nullptr);
  CHECK(MatmulPlanCache(file, "NVIDIA H100").find(key) == nullptr);
}

TEST_CASE("a damaged file is no file") {
  const Folder folder;
  const std::filesystem::path file = saved(folder);
  const std::string good = text_of(file);
  REQUIRE(MatmulPlanCache(file, machine).find(key) != nullptr);
  int kept = 0;
  set_log_level(LogLevel::Error);                 // each one warns
  for (size_t i = 0; i < good.size(); i += 19) {  // a byte damaged, or the file cut off there
    std::string flipped = good;
    flipped[i] = static_cast<char>(flipped[i] ^ 1);
    for (const std::string& text : {flipped, good.substr(0, i)}) {
      std::ofstream(file, std::ios::binary | std::ios::trunc) << text;
      kept += MatmulPlanCache(file, machine).find(key) != nullptr;
    }
  }
  set_log_level(LogLevel::Info);
  CHECK(kept == 0);
}

TEST_CASE("a folder that cannot be written costs the file, not the run") {
  const Folder folder;
  std::filesystem::create_directories(folder.path);
  std::ofstream(folder.path / "file") << "no folder";
  MatmulPlanCache cache(folder.path / "file" / "plans.txt", machine);
  cache.put(key, some_choice);
  CHECK_NOTHROW(cache.save());
  CHECK(*cache.find(key) == some_choice);
}

TEST_CASE("the file is named after the machine, in the user's cache") {
  const char* const before = std::getenv("XDG_CACHE_HOME");
  const std::string kept = before ? before : "";
  setenv("XDG_CACHE_HOME", "/cache", 1);
  CHECK(matmul_plan_file(machine) ==
        "/cache/octet/matmul-plans-NVIDIA-H200-CUDA-driver-13.0-cuBLASLt-13.1.0.txt");
  setenv("XDG_CACHE_HOME", "relative", 1);  // the specification says to ignore it
  CHECK_FALSE(matmul_plan_file(machine).string().rfind("relative", 0) == 0);
  if (before)
    setenv("XDG_CACHE_HOME", kept.c_str(), 1);
  else
    unsetenv("XDG_CACHE_HOME");
}
