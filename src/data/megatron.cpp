// Megatron pairs: NAME.bin holds the tokens and nothing else, NAME.idx describes them, little-endian:
//   "MMIDIDX\0\0", u64 version 1, u8 type, u64 sequences n, u64 document entries d = documents + 1,
//   int32 length[n], int64 byte offset[n], int64 first sequence of document[d], optionally int8 mode[n].
// Source: NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py.
// Windows run over the token stream of the .bin, so the index must describe exactly that stream.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "data/formats.h"

namespace octet {
namespace {

constexpr char magic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
constexpr uint64_t header_bytes = 34;

std::optional<TokenType> type_of(unsigned char code) {
  switch (code) {
    case 1:
      return TokenType::Uint8;
    case 2:
      return TokenType::Int8;
    case 3:
      return TokenType::Int16;
    case 4:
      return TokenType::Int32;
    case 5:
      return TokenType::Int64;
    case 8:
      return TokenType::Uint16;
    default:  // 6 and 7 are float64 and float32
      return std::nullopt;
  }
}

uint64_t word64(const ShardHead& head, size_t offset) {
  uint64_t value;
  std::memcpy(&value, head.bytes.data() + offset, sizeof value);
  return value;
}

[[noreturn]] void refuse(const std::string& path, const std::string& cause) {
  throw Error(ExitCode::Data, fmt::format("{}: Megatron index: {}", path, cause),
              "rebuild the .bin/.idx pair with Megatron's preprocess_data.py");
}

// Reads `count` values of T from `offset` on in blocks and hands each to `visit(index, value)`.
template <class T, class Visit>
void for_each_value(const FileReader& file, uint64_t offset, uint64_t count, Visit visit) {
  std::vector<T> block(std::min<uint64_t>(count, 1u << 17));
  for (uint64_t first = 0; first < count; first += block.size()) {
    const uint64_t here = std::min<uint64_t>(block.size(), count - first);
    file.read(offset + first * sizeof(T), block.data(), here * sizeof(T));
    for (uint64_t i = 0; i < here; ++i) visit(first + i, block[i]);
  }
}

struct Index {
  TokenType type = TokenType::Uint16;
  uint64_t tokens = 0, documents = 0;
};

Index read_index(const std::string& path, const ShardHead& head) {
  if (head.file_bytes < header_bytes)
    refuse(path, fmt::format("truncated: {} bytes, the header alone has {}", head.file_bytes, header_bytes));
  if (const uint64_t version = word64(head, 9); version != 1)
    refuse(path, fmt::format("version {}, expected 1", version));
  const auto type = type_of(head.bytes[17]);
  if (!type)
    refuse(path, fmt::format("type code {} is no integer that can hold ids (known: 1 uint8, 2 int8, 3 int16, "
                             "4 int32, 5 int64, 8 uint16)",
                             head.bytes[17]));
  const uint64_t sequences = word64(head, 18), entries = word64(head, 26);
  uint64_t sequence_bytes, entry_bytes, expected, with_modes;
  if (!multiply(sequences, 12, sequence_bytes) || !multiply(entries, 8, entry_bytes) ||
      !add(sequence_bytes, entry_bytes, expected) || !add(expected, header_bytes, expected) ||
      !add(expected, sequences, with_modes))
    refuse(path, fmt::format("{} sequences and {} document entries overflow 64 bits", sequences, entries));
  if (head.file_bytes != expected && head.file_bytes != with_modes)
    refuse(path,
           fmt::format("{} sequences and {} document entries take {} bytes ({} with modes), the file has {}",
                       sequences, entries, expected, with_modes, head.file_bytes));
  if (entries == 0) refuse(path, "no document entries, expected documents + 1");

  const FileReader file(path, ExitCode::Data);
  const uint64_t width = bytes_of(*type), offsets_at = header_bytes + 4 * sequences;
  // Lengths and offsets side by side, a block at a time: an index can have billions of entries.
  Index index{.type = *type, .documents = entries - 1};
  std::vector<int64_t> offsets;
  constexpr uint64_t block = 1u << 17;
  uint64_t end = 0;  // bytes of .bin described so far
  for_each_value<int32_t>(file, header_bytes, sequences, [&](uint64_t i, int32_t length) {
    if (i % block == 0) {
      offsets.resize(std::min(block, sequences - i));
      file.read(offsets_at + 8 * i, offsets.data(), 8 * offsets.size());
    }
    if (length < 0) refuse(path, fmt::format("sequence {} has the length {}", i, length));
    const int64_t offset = offsets[i % block];
    if (offset < 0 || static_cast<uint64_t>(offset) != end)
      refuse(path, fmt::format("sequence {} starts at byte {} of the .bin, expected {}", i, offset, end));
    if (!add(end, static_cast<uint64_t>(length) * width, end)) refuse(path, "the lengths overflow 64 bits");
    index.tokens += static_cast<uint64_t>(length);
  });
  int64_t before = 0;
  for_each_value<int64_t>(file, header_bytes + sequence_bytes, entries, [&](uint64_t i, int64_t first) {
    if (i == 0 && first != 0)
      refuse(path, fmt::format("the first document starts at sequence {}, expected 0", first));
    if (first < before)
      refuse(path,
             fmt::format("document {} starts at sequence {}, before its predecessor's {}", i, first, before));
    before = first;
  });
  if (static_cast<uint64_t>(before) != sequences)
    refuse(path, fmt::format("the documents end at sequence {}, expected {}", before, sequences));
  return index;
}

}  // namespace

bool is_megatron_index(const ShardHead& head) {
  return head.file_bytes >= sizeof magic && std::memcmp(head.bytes.data(), magic, sizeof magic) == 0;
}

std::string megatron_sibling(const std::string& path) {
  const std::filesystem::path p(path);
  if (p.extension() == ".idx") return std::filesystem::path(p).replace_extension(".bin").string();
  if (p.extension() == ".bin") return std::filesystem::path(p).replace_extension(".idx").string();
  return "";
}

std::optional<ShardInfo> inspect_megatron(const std::string& path, const ShardHead& head) {
  std::string index_path, tokens_path;
  ShardHead index_head;
  if (is_megatron_index(head)) {
    index_path = path;
    index_head = head;
    if (std::filesystem::path(path).extension() == ".idx") tokens_path = megatron_sibling(path);
    if (tokens_path.empty() || !std::filesystem::is_regular_file(tokens_path))
      throw Error(ExitCode::Data,
                  fmt::format("{}: Megatron index without its tokens: {} does not exist", path,
                              tokens_path.empty() ? "NAME.bin beside NAME.idx" : tokens_path),
                  "keep both files of the pair in one folder under one name");
  } else if (std::filesystem::path(path).extension() == ".bin") {
    index_path = megatron_sibling(path);
    if (!std::filesystem::is_regular_file(index_path)) return std::nullopt;
    index_head = read_head(index_path);
    if (!is_megatron_index(index_head)) return std::nullopt;
    tokens_path = path;
  } else {
    return std::nullopt;
  }
  const Index index = read_index(index_path, index_head);
  ShardInfo info{.path = tokens_path,
                 .format = ShardFormat::Megatron,
                 .type = index.type,
                 .file_bytes = FileReader(tokens_path, ExitCode::Data).size(),
                 .payload_offset = 0,
                 .token_bytes = bytes_of(index.type)};
  if (index.tokens > INT64_MAX || index.documents > INT64_MAX)
    refuse(index_path, "the counts overflow 63 bits");
  info.tokens = static_cast<int64_t>(index.tokens);
  info.documents = static_cast<int64_t>(index.documents);
  require_shard_size(info, 0);
  return info;
}

}  // namespace octet
