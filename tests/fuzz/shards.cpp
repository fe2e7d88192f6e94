// Fuzzes everything that parses a shard. The first byte of the input chooses how it is presented: as one file
// (with no, 16-bit or 32-bit declared width), or cut in two at a 16-bit offset as a Megatron index and its
// tokens. Whatever it holds, the outcome is an Error or windows whose ids are all inside the vocabulary.
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "data/dataset.h"
#include "data/scan.h"

namespace {

struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "octet-fuzz-XXXXXX").string();
    path = ::mkdtemp(name.data());
    octet::set_log_level(octet::LogLevel::Error);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

void write(const std::filesystem::path& path, const uint8_t* data, size_t size) {
  FILE* file = std::fopen(path.c_str(), "wb");
  if (!file || std::fwrite(data, 1, size, file) != size) std::abort();
  std::fclose(file);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  if (size < 3) return 0;
  const auto tokens = folder.path / "shard.bin", index = folder.path / "shard.idx";
  std::error_code ignored;
  std::filesystem::remove(index, ignored);
  const char* widths[] = {"", "uint16", "uint32"};
  const unsigned mode = data[0] % 4;
  if (mode == 3) {
    const size_t cut = 3 + std::min<size_t>(data[1] | data[2] << 8, size - 3);
    write(index, data + 3, cut - 3);
    write(tokens, data + cut, size - cut);
  } else {
    write(tokens, data + 1, size - 1);
  }
  constexpr int64_t context = 3, vocabulary = 300;
  try {
    const octet::Dataset dataset({{.name = "fuzz", .files = {tokens.string()}}}, mode < 3 ? widths[mode] : "",
                                 context, vocabulary);
    dataset.fingerprint();
    octet::scan_shard(dataset.shards(0).at(0), {});
    std::vector<int32_t> window(context + 1);
    for (int64_t i = 0; i < dataset.windows(0); ++i) {
      dataset.read(0, i, window);
      for (const int32_t id : window)
        if (id < 0 || id >= vocabulary) std::abort();
    }
  } catch (const octet::Error& error) {
    if (error.code() != octet::ExitCode::Data || std::string(error.what()).empty()) std::abort();
  }
  return 0;
}
