// Writes a stream of ids as llm.c shards of bounded size: uint16 (v1) up to a vocabulary of 65536, uint32
// (v7) above. Shards are FOLDER/PREFIX_000000.bin, 000001 and so on; a shard appears under its name when it
// is whole.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/files.h"

namespace octet {

struct ShardWriterOptions {
  std::filesystem::path folder;  // exists
  std::string prefix = "train";
  int64_t vocabulary = 257;
  int64_t shard_tokens = 100'000'000;  // at most 2^31 - 1, which every reader of the format can count
  int64_t total_tokens = 0;            // of all shards: a header carries its count before its tokens
};

class ShardWriter {
 public:
  explicit ShardWriter(ShardWriterOptions options);
  ~ShardWriter();  // without close(): removes the unfinished shard
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;
  // Error(Data) for an id outside the vocabulary; Error(Internal) for more than total_tokens.
  void write(std::span<const int32_t> ids);
  void close();  // Error(Internal) for fewer than total_tokens
  const std::vector<std::filesystem::path>& files() const { return files_; }
  static constexpr const char* partial_extension = ".partial";  // of a shard that is not whole yet

 private:
  void open_shard();
  void close_shard();

  ShardWriterOptions options_;
  int token_bytes_;
  std::unique_ptr<FileWriter> file_;
  std::filesystem::path partial_;
  int64_t written_ = 0, shard_left_ = 0;
  std::vector<std::filesystem::path> files_;
};

}  // namespace octet
