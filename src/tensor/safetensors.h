// safetensors files, read and written.  [format: huggingface/safetensors; docs/formats.md]
// Reading validates before it allocates: header <= 100 MB, no holes, no overlaps, no duplicates, sizes by
// checked arithmetic.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "tensor/tensor.h"

namespace octet {

struct SafetensorsEntry {
  std::string name;
  DType dtype;
  Shape shape;
  uint64_t offset /* from the file's start */, bytes;
};

class SafetensorsReader {
 public:
  SafetensorsReader(const std::filesystem::path& path, ExitCode code);
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const SafetensorsEntry& find(const std::string& name) const;  // throws with the nearest name
  bool contains(const std::string& name) const;
  void read(const SafetensorsEntry& entry, void* to) const;
  // Bytes [first_byte, first_byte + bytes) of the tensor; Error when it has fewer.
  void read_part(const SafetensorsEntry& entry, uint64_t first_byte, size_t bytes, void* to) const;

 private:
  FileReader file_;
  std::filesystem::path path_;
  ExitCode code_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

struct NamedTensor {
  std::string name;
  Tensor tensor;
};  // host memory
// Bytes depend on names, types, shapes, data and metadata only. "format":"pt" is always in the metadata.
// Returns XXH3 of the file.
uint64_t write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                           const std::map<std::string, std::string>& metadata, ExitCode code);
// The file made in parts, by several processes: one creates it with its header and full size, then each
// writes the elements that it holds. The bytes are those of write_safetensors.
struct SafetensorsLayout {
  std::string header;
  std::vector<uint64_t> offsets;  // of the data from the file's start, in the order the tensors were given
  uint64_t bytes = 0;             // of the whole file
};
// From names, types and shapes alone; no data is looked at.
SafetensorsLayout safetensors_layout(std::span<const NamedTensor> tensors,
                                     const std::map<std::string, std::string>& metadata);
void create_safetensors(const std::filesystem::path& path, const SafetensorsLayout& layout, ExitCode code);

// Header bytes alone (8-byte length + JSON), for the golden test and for size planning.
std::string safetensors_header(std::span<const NamedTensor> tensors,
                               const std::map<std::string, std::string>& metadata);

}  // namespace octet
