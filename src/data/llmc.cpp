// llm.c shards: 256 little-endian int32 of header {magic, version, tokens, 0...}, then the tokens.
//   20240520, version 1: uint16 (GPT-2);  20240801, version 7: uint32 (Llama 3).
// Source: karpathy/llm.c, dev/data/data_common.py. The count is read as unsigned, so that shards of up to
// 2^32 - 1 tokens work.
#include <fmt/format.h>

#include "data/formats.h"

namespace octet {
namespace {

struct Variant {
  uint32_t magic, version;
  ShardFormat format;
  TokenType type;
};
constexpr Variant variants[] = {{20240520, 1, ShardFormat::LlmcUint16, TokenType::Uint16},
                                {20240801, 7, ShardFormat::LlmcUint32, TokenType::Uint32}};

struct Relative {
  uint32_t magic;
  const char* what;
};
// Other files of llm.c, so that a mistaken path is named for what it is.
constexpr Relative relatives[] = {{20240522, "an llm.c evaluation file (HellaSwag)"},
                                  {20240326, "an llm.c model checkpoint"},
                                  {20240527, "an llm.c training state"},
                                  {20240328, "an llm.c tokenizer"}};

constexpr const char* hint =
    "token shards of llm.c are magic 20240520 version 1 (uint16) or magic 20240801 version 7 (uint32)";

}  // namespace

std::optional<ShardInfo> inspect_llmc(const std::string& path, const ShardHead& head) {
  const uint32_t magic = head.word(0);
  for (const Relative& relative : relatives)
    if (magic == relative.magic)
      throw Error(ExitCode::Data,
                  fmt::format("{}: this is {} (magic {}), not a token shard", path, relative.what, magic),
                  hint);
  for (const Variant& variant : variants) {
    if (magic == __builtin_bswap32(variant.magic))
      throw Error(
          ExitCode::Data,
          fmt::format("{}: big-endian llm.c shard (magic {} with its bytes reversed)", path, variant.magic),
          "write the shard on a little-endian machine, or swap its bytes");
    if (magic != variant.magic) continue;
    if (head.file_bytes < shard_header_bytes)
      throw Error(ExitCode::Data,
                  fmt::format("{}: truncated llm.c shard: {} bytes, the header alone has {}", path,
                              head.file_bytes, shard_header_bytes),
                  "copy the file again");
    if (head.word(4) != variant.version)
      throw Error(ExitCode::Data,
                  fmt::format("{}: llm.c shard (magic {}) has version {}, expected {}", path, magic,
                              head.word(4), variant.version),
                  hint);
    ShardInfo info{.path = path,
                   .format = variant.format,
                   .type = variant.type,
                   .tokens = head.word(8),
                   .file_bytes = head.file_bytes,
                   .payload_offset = shard_header_bytes,
                   .token_bytes = bytes_of(variant.type)};
    require_shard_size(info, 0);
    return info;
  }
  return std::nullopt;
}

}  // namespace octet
