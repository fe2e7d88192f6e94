// The JSON header of a safetensors file, parsed and validated without touching the data.  [docs/formats.md]
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/safetensors.h"

namespace octet {

inline constexpr uint64_t safetensors_header_limit = 100'000'000;  // bytes; the reference reader's limit

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of the data; offsets from the start of the data
  std::map<std::string, std::string> metadata;
  std::string problem;  // empty: valid. Otherwise one sentence, safe to print
};

// data_bytes: what follows the header in the file.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes);

}  // namespace octet
