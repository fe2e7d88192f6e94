// llmq shards: "BIN.TOK\n", int32 {version, bytes per token = 4, tokens, vocabulary (version 2), has_masks},
// '*' up to byte 1024, int32 tokens, then with has_masks = 1 one bit a token. Version 1 has neither the
// vocabulary nor masks. Source: IST-DASLab/llmq, scripts/tokenize_data.py.
// The mask (train on this token or not) is read past: every token is a target.
#include <fmt/format.h>

#include "data/formats.h"

namespace octet {

std::optional<ShardInfo> inspect_llmq(const std::string& path, const ShardHead& head) {
  if (std::memcmp(head.bytes.data(), "BIN.TOK\n", 8) != 0) return std::nullopt;
  if (head.file_bytes < shard_header_bytes)
    throw Error(ExitCode::Data,
                fmt::format("{}: truncated llmq shard: {} bytes, the header alone has {}", path,
                            head.file_bytes, shard_header_bytes),
                "copy the file again");
  const uint32_t version = head.word(8), width = head.word(12), tokens = head.word(16);
  if (version != 1 && version != 2)
    throw Error(ExitCode::Data,
                fmt::format("{}: llmq shard (BIN.TOK) has version {}, expected 1 or 2", path, version),
                "version 3 (position ids) is not read: tokenize again with version 2");
  if (width != 4)
    throw Error(ExitCode::Data,
                fmt::format("{}: llmq shard (BIN.TOK) has {} bytes a token, expected 4", path, width),
                "the header is damaged: tokenize again");
  ShardInfo info{.path = path,
                 .format = ShardFormat::LlmqBinTok,
                 .type = TokenType::Int32,
                 .tokens = tokens,
                 .file_bytes = head.file_bytes,
                 .payload_offset = shard_header_bytes,
                 .token_bytes = 4};
  if (version == 2) {
    const uint32_t vocabulary = head.word(20);
    if (vocabulary > INT32_MAX)
      throw Error(ExitCode::Data,
                  fmt::format("{}: llmq shard (BIN.TOK) declares a vocabulary of {}", path,
                              static_cast<int32_t>(vocabulary)),
                  "the header is damaged: tokenize again");
    info.declared_vocabulary = vocabulary;
    info.masks = head.word(24) == 1;  // writers without masks left 0 or the filler here
  }
  require_shard_size(info, info.masks ? (static_cast<uint64_t>(tokens) + 7) / 8 : 0);
  return info;
}

}  // namespace octet
