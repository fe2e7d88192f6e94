// Any bytes as a safetensors file: either refused with a reason, or every tensor lies inside of the data.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "tensor/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace octet;
  if (size < 8) return 0;
  uint64_t length = 0;
  for (int i = 0; i < 8; ++i) length |= static_cast<uint64_t>(data[i]) << (8 * i);
  // A length that does not fit is refused by the reader before the header is parsed (tests/tensor); here the
  // header then takes all there is, so that the parser sees more inputs.
  if (length > size - 8) length = size - 8;
  const uint64_t data_bytes = size - 8 - length;
  const SafetensorsHeader header = parse_safetensors_header(
      {reinterpret_cast<const char*>(data) + 8, static_cast<size_t>(length)}, data_bytes);
  if (!header.problem.empty()) return 0;
  uint64_t end = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.offset != end || entry.bytes > data_bytes - entry.offset) std::abort();
    if (static_cast<uint64_t>(entry.shape.elements()) * size_of(entry.dtype) != entry.bytes) std::abort();
    end = entry.offset + entry.bytes;
  }
  if (end != data_bytes) std::abort();
  return 0;
}
