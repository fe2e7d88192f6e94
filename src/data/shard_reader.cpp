#include "data/shard_reader.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <vector>

namespace octet {
namespace {

static_assert(std::endian::native == std::endian::little,
              "shards are little-endian and read without swapping");

template <class T>
void widen(const unsigned char* bytes, std::span<int64_t> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
    out[i] = static_cast<int64_t>(value);
  }
}

}  // namespace

ShardReader::ShardReader(ShardInfo info) : info_(std::move(info)), file_(info_.path, ExitCode::Data) {}

void ShardReader::read(int64_t first, std::span<int64_t> out) const {
  const int64_t count = static_cast<int64_t>(out.size());
  if (first < 0 || first > info_.tokens || count > info_.tokens - first)
    throw Error(ExitCode::Internal, fmt::format("{}: tokens {} to {} asked for, the shard has {}", info_.path,
                                                first, first + count, info_.tokens));
  if (const uint64_t size = file_.size(); size != info_.file_bytes)
    throw Error(ExitCode::Data,
                fmt::format("{}: the shard changed while it was in use: {} bytes now, {} when it was opened",
                            info_.path, size, info_.file_bytes),
                "restore the shard, then resume from the last checkpoint");
  const uint64_t width = static_cast<uint64_t>(info_.token_bytes);
  std::vector<unsigned char> bytes(out.size() * width);
  file_.read(info_.payload_offset + static_cast<uint64_t>(first) * width, bytes.data(), bytes.size());
  switch (info_.type) {
    case TokenType::Uint8:
      return widen<uint8_t>(bytes.data(), out);
    case TokenType::Int8:
      return widen<int8_t>(bytes.data(), out);
    case TokenType::Uint16:
      return widen<uint16_t>(bytes.data(), out);
    case TokenType::Int16:
      return widen<int16_t>(bytes.data(), out);
    case TokenType::Uint32:
      return widen<uint32_t>(bytes.data(), out);
    case TokenType::Int32:
      return widen<int32_t>(bytes.data(), out);
    case TokenType::Int64:
      return widen<int64_t>(bytes.data(), out);
  }
}

Error token_out_of_range(const ShardInfo& info, int64_t token, int64_t id, int64_t vocabulary) {
  return Error(
      ExitCode::Data,
      fmt::format(
          "{}: token {} (byte {}) is id {}, the vocabulary has {} (ids 0 to {})", info.path, token,
          info.payload_offset + static_cast<uint64_t>(token) * static_cast<uint64_t>(info.token_bytes), id,
          vocabulary, vocabulary - 1),
      "set model.vocabulary to the tokenizer's size, or tokenize again; a raw file may have the other width");
}

}  // namespace octet
