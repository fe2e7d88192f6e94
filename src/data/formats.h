// What each family of shard formats offers to the detection in shard.cpp. Nothing here trusts a count in a
// header: a size is computed with checked 64-bit arithmetic and compared with the file before it is used.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include "base/files.h"
#include "data/dataset.h"

namespace octet {

inline constexpr uint64_t shard_header_bytes = 1024;  // llm.c and llmq

// The beginning of a file, zero-filled past its end.
struct ShardHead {
  std::array<unsigned char, 64> bytes{};
  uint64_t file_bytes = 0;

  uint32_t word(size_t offset) const {
    uint32_t value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
  }
};

// Each: nothing when the magic is another family's; Error(Data) when the magic is its own and the rest is
// wrong.
std::optional<ShardInfo> inspect_llmc(const std::string& path, const ShardHead& head);
std::optional<ShardInfo> inspect_llmq(const std::string& path, const ShardHead& head);
std::optional<ShardInfo> inspect_megatron(const std::string& path, const ShardHead& head);
ShardInfo inspect_raw(const std::string& path, const ShardHead& head, const std::string& raw_width);

// The .bin of a .idx path and the other way round; empty when the path ends in neither.
std::string megatron_sibling(const std::string& path);
bool is_megatron_index(const ShardHead& head);

ShardHead read_head(const std::string& path);

// Error(Data) unless header_bytes + tokens * token_bytes + trailer_bytes is the size of the file (F08).
void require_shard_size(const ShardInfo& info, uint64_t trailer_bytes);

}  // namespace octet
