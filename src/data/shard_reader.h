// Reads ids out of one shard of any format, by token index.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "base/files.h"
#include "data/dataset.h"

namespace octet {

class ShardReader {
 public:
  explicit ShardReader(ShardInfo info);
  const ShardInfo& info() const { return info_; }
  // Tokens [first, first + out.size()). Error(Data) when the file no longer has the size it was inspected
  // with (F12). Several threads may read at once.
  void read(int64_t first, std::span<int64_t> out) const;

 private:
  ShardInfo info_;
  FileReader file_;
};

// The error of an id that is none: file, token index, byte offset, id, vocabulary (F10).
Error token_out_of_range(const ShardInfo& info, int64_t token, int64_t id, int64_t vocabulary);

}  // namespace octet
