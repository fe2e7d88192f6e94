#include "cli/synthetic_shards.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <span>
#include <sstream>

#include "base/error.h"
#include "base/random.h"
#include "data/shard_writer.h"

namespace octet {

SyntheticShards::SyntheticShards(int64_t vocabulary, int64_t tokens) {
  std::error_code unknown;
  std::filesystem::path parent = std::filesystem::temp_directory_path(unknown);
  if (unknown) parent = "/tmp";
  std::string name = (parent / "octet-bench-XXXXXX").string();
  if (!mkdtemp(name.data())) throw Error(ExitCode::Usage, name + ": cannot be created", "check TMPDIR");
  folder_ = name;
  ShardWriterOptions o;
  o.folder = folder_;
  o.vocabulary = vocabulary;
  o.total_tokens = tokens;
  o.shard_tokens = (tokens + 3) / 4;
  ShardWriter writer(o);
  constexpr int64_t piece = 1 << 20;
  std::vector<int32_t> ids(static_cast<size_t>(std::min(piece, tokens)));
  const uint64_t key = random_key(1, Purpose::Test);
  for (int64_t begin = 0; begin < tokens; begin += piece) {
    const int64_t count = std::min(piece, tokens - begin);
    for (int64_t i = 0; i < count; ++i)
      ids[static_cast<size_t>(i)] = static_cast<int32_t>(random_bits(key, static_cast<uint64_t>(begin + i)) %
                                                         static_cast<uint64_t>(vocabulary));
    writer.write(std::span<const int32_t>(ids).first(static_cast<size_t>(count)));
  }
  writer.close();
  files_ = writer.files();
}

SyntheticShards::~SyntheticShards() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

std::string SyntheticShards::pattern() const { return (folder_ / "train_*.bin").string(); }

// The mount with the longest path above the folder. A line of mountinfo: numbers, root, mount point, options,
// "-", type, source.  [proc(5)]
std::string SyntheticShards::filesystem() const {
  std::error_code unknown;
  const std::string folder = std::filesystem::canonical(folder_, unknown).string() + "/";
  std::ifstream mounts("/proc/self/mountinfo");
  std::string type = "unknown";
  size_t longest = 0;
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream words(line);
    std::string word, at;
    for (int i = 0; i < 5 && words >> word; ++i) at = word;
    if (at.empty() || at.back() != '/') at += '/';
    if (at.size() < longest || folder.rfind(at, 0) != 0) continue;
    while (words >> word && word != "-") continue;
    if (words >> word) {
      type = word;
      longest = at.size();
    }
  }
  return type;
}

void SyntheticShards::leave_page_cache() const {
  for (const std::filesystem::path& file : files_) {
    const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) continue;
    ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
    ::close(descriptor);
  }
}

uint64_t storage_read_bytes() {
  std::ifstream file("/proc/self/io");
  std::string field;
  for (uint64_t bytes = 0; file >> field >> bytes;)
    if (field == "read_bytes:") return bytes;
  return 0;
}

}  // namespace octet
