// A pass over one shard: ids, documents, checksum.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>

#include "base/error.h"
#include "data/dataset.h"

namespace octet {

struct ScanOptions {
  int64_t limit = INT64_MAX;  // tokens read, from the first on
  int64_t vocabulary = 0;     // 0: unknown, any id below 2^31 - 1 will do
  int64_t end_of_text = -1;   // counted as documents; -1: none
  std::function<void(int64_t tokens)> progress = {};
};

struct ScanResult {
  int64_t tokens = 0, smallest = 0, largest = 0, documents = 0;
  int64_t out_of_range = 0;      // ids outside the vocabulary
  std::optional<Error> problem;  // names the first of them
  uint64_t hash = 0;             // XXH3 of the tokens' bytes as int64: equal for equal ids in any format
};

ScanResult scan_shard(const ShardInfo& info, const ScanOptions& options);

// The id that most likely separates documents: 256 of the byte tokenizer when no id of a sample is larger,
// else 50256 for 16-bit ids (GPT-2), 128000 for wider ones (Llama 3).
int64_t likely_end_of_text(const ShardInfo& info, int64_t largest_id);

}  // namespace octet
