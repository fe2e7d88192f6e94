// Real shards of ids without meaning, in a temporary folder: what a measurement of reading reads.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace octet {

class SyntheticShards {
 public:
  // Four llm.c shards under TMPDIR (or /tmp), synced. Error(Usage) when there is no place for them.
  SyntheticShards(int64_t vocabulary, int64_t tokens);
  ~SyntheticShards();  // removes them
  SyntheticShards(const SyntheticShards&) = delete;
  SyntheticShards& operator=(const SyntheticShards&) = delete;

  std::string pattern() const;     // of their files
  std::string filesystem() const;  // "ext4", "tmpfs", ...; "unknown" when /proc does not say (in a chroot)
  // The kernel gives up their pages, so that the next read comes from the disk. (On tmpfs they stay.)
  void leave_page_cache() const;

 private:
  std::filesystem::path folder_;
  std::vector<std::filesystem::path> files_;
};

// Bytes this process has made the storage layer read so far, from /proc/self/io; 0 when that does not say.
uint64_t storage_read_bytes();

}  // namespace octet
