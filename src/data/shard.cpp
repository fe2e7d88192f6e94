// Detection: the magic decides, then the sibling index, then the declared width.
#include <fmt/format.h>

#include <algorithm>

#include "data/formats.h"

namespace octet {
namespace {

constexpr const char* known_formats =
    "known: llm.c (magic 20240520 uint16, 20240801 uint32), llmq (BIN.TOK), Megatron (.bin with .idx), or "
    "raw ids "
    "of a stated width, uint16 or uint32 (data.raw_width in a configuration, --raw-width of octet data)";

struct Foreign {
  const char* magic;
  size_t bytes;
  const char* what;
  bool certain;  // long enough that no stream of ids starts like this by chance
};
constexpr Foreign foreign[] = {
    {"\x93NUMPY", 6, "a NumPy array file", true},   {"ARROW1", 6, "an Arrow file", true},
    {"PAR1", 4, "a Parquet file", false},           {"\x28\xb5\x2f\xfd", 4, "compressed with zstd", false},
    {"\x1f\x8b", 2, "compressed with gzip", false}, {"PK\x03\x04", 4, "a zip archive", false}};

const Foreign* recognise_foreign(const ShardHead& head) {
  for (const Foreign& f : foreign)
    if (head.file_bytes >= f.bytes && std::memcmp(head.bytes.data(), f.magic, f.bytes) == 0) return &f;
  return nullptr;
}

}  // namespace

const char* name_of(ShardFormat f) {
  switch (f) {
    case ShardFormat::LlmcUint16:
      return "llm.c v1 (uint16)";
    case ShardFormat::LlmcUint32:
      return "llm.c v7 (uint32)";
    case ShardFormat::LlmqBinTok:
      return "llmq BIN.TOK (int32)";
    case ShardFormat::Megatron:
      return "Megatron .bin/.idx";
    case ShardFormat::RawUint16:
      return "raw uint16";
    case ShardFormat::RawUint32:
      return "raw uint32";
  }
  return "unknown";
}

int bytes_of(TokenType t) {
  switch (t) {
    case TokenType::Uint8:
    case TokenType::Int8:
      return 1;
    case TokenType::Uint16:
    case TokenType::Int16:
      return 2;
    case TokenType::Uint32:
    case TokenType::Int32:
      return 4;
    case TokenType::Int64:
      return 8;
  }
  return 0;
}

ShardHead read_head(const std::string& path) {
  std::error_code failure;
  const auto status = std::filesystem::status(path, failure);
  if (!std::filesystem::exists(status))
    throw Error(ExitCode::Data, fmt::format("{}: no such file", path), "check the paths of the data section");
  if (!std::filesystem::is_regular_file(status))
    throw Error(ExitCode::Data, fmt::format("{}: not a regular file", path),
                "name shards, or a pattern such as FOLDER/*.bin");
  const FileReader file(path, ExitCode::Data);
  ShardHead head;
  head.file_bytes = file.size();
  file.read(0, head.bytes.data(), std::min<uint64_t>(head.bytes.size(), head.file_bytes));
  return head;
}

void require_shard_size(const ShardInfo& info, uint64_t trailer_bytes) {
  uint64_t expected = 0;
  if (!multiply(static_cast<uint64_t>(info.tokens), static_cast<uint64_t>(info.token_bytes), expected) ||
      !add(expected, info.payload_offset, expected) || !add(expected, trailer_bytes, expected))
    throw Error(
        ExitCode::Data,
        fmt::format("{}: {} tokens of {} bytes overflow 64 bits", info.path, info.tokens, info.token_bytes),
        "the header is damaged: copy or tokenize again");
  if (expected != info.file_bytes)
    throw Error(ExitCode::Data,
                fmt::format("{}: {} of {} tokens has {} bytes, expected {}", info.path, name_of(info.format),
                            info.tokens, info.file_bytes, expected),
                info.file_bytes < expected
                    ? "the file is truncated: copy or tokenize again"
                    : "the file has more than its header says: copy or tokenize again");
}

ShardInfo inspect_raw(const std::string& path, const ShardHead& head, const std::string& raw_width) {
  const bool wide = raw_width == "uint32";
  ShardInfo info{.path = path,
                 .format = wide ? ShardFormat::RawUint32 : ShardFormat::RawUint16,
                 .type = wide ? TokenType::Uint32 : TokenType::Uint16,
                 .file_bytes = head.file_bytes,
                 .payload_offset = 0,
                 .token_bytes = wide ? 4 : 2};
  if (head.file_bytes % static_cast<uint64_t>(info.token_bytes) != 0)
    throw Error(ExitCode::Data,
                fmt::format("{}: raw {} shard of {} bytes, expected a multiple of {}", path, raw_width,
                            head.file_bytes, info.token_bytes),
                "the file is truncated, or the raw width that was stated is wrong");
  info.tokens = static_cast<int64_t>(head.file_bytes / static_cast<uint64_t>(info.token_bytes));
  return info;
}

ShardInfo inspect_shard(const std::string& path, const std::string& raw_width) {
  if (!raw_width.empty() && raw_width != "uint16" && raw_width != "uint32")
    throw Error(ExitCode::Usage, fmt::format("raw_width is \"{}\"", raw_width),
                "use \"uint16\" or \"uint32\"");
  const ShardHead head = read_head(path);
  if (head.file_bytes == 0)
    throw Error(ExitCode::Data, fmt::format("{}: the file is empty", path), "copy or tokenize again");
  if (auto info = inspect_megatron(path, head)) return *info;
  if (auto info = inspect_llmc(path, head)) return *info;
  if (auto info = inspect_llmq(path, head)) return *info;
  const Foreign* other = recognise_foreign(head);
  if (!raw_width.empty() && !(other && other->certain)) return inspect_raw(path, head, raw_width);
  throw Error(
      ExitCode::Data,
      fmt::format("{}: unknown format: {}starts with bytes {:02x} {:02x} {:02x} {:02x} (as a number {})",
                  path, other ? fmt::format("looks like {}, ", other->what) : "", head.bytes[0],
                  head.bytes[1], head.bytes[2], head.bytes[3], head.word(0)),
      known_formats);
}

}  // namespace octet
