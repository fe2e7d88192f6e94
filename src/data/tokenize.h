// Text files to llm.c shards with the byte tokenizer, streaming and deterministic.
//
// A document is one file: <end of text> then its bytes. Folders are searched recursively; inside them hidden
// entries, symbolic links and what is not a regular file are passed over. Documents come in the order of the
// inputs, those of a folder sorted by path, byte by byte. Passed over everywhere: empty files, and binary
// ones, which have a NUL byte among their first 8192. A file that cannot be read is an error.
//
// Validation: documents are drawn in an order keyed by their number alone until they hold the fraction of the
// bytes (at least one document, never all); a few large documents may miss it by far. A single document is
// cut in two at a line end instead, its tail is the validation document.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace octet {

enum class ExistingShards : uint8_t { Refuse, Replace };

struct TokenizeOptions {
  std::vector<std::string> inputs;  // files or folders
  std::filesystem::path output;     // made when missing
  double validation = 0;            // fraction of the bytes, [0, 1)
  int64_t shard_tokens = 100'000'000;
  // Refuse: Error(Usage) when the output folder holds anything. Replace: the shards of a former call
  // (train_*.bin, validation_*.bin) are replaced, other files are left alone.
  ExistingShards existing = ExistingShards::Refuse;
  std::function<void(uint64_t done_bytes, uint64_t all_bytes)> progress = {};
};

struct TokenizeResult {
  struct Split {
    int64_t documents = 0, tokens = 0;
    std::vector<std::filesystem::path> files;
  };
  Split train, validation;
  double validation_share = 0;                                       // of the bytes, as achieved
  int64_t skipped_empty = 0, skipped_binary = 0, skipped_other = 0;  // other: hidden entries, links, devices
};

// Error(Usage) when the output folder is, or lies in, a folder to be searched: the next call would take its
// shards for text.
//
// Shards are written to a folder inside the output folder and moved to their names at the end, so that an
// interrupted call leaves no part of a corpus behind under a name that training would read.
TokenizeResult tokenize(const TokenizeOptions& options);

}  // namespace octet
