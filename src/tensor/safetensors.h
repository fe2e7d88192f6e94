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
// Header bytes alone (8-byte length + JSON), for the golden test and for size planning.
std::string safetensors_header(std::span<const NamedTensor> tensors,
                               const std::map<std::string, std::string>& metadata);

}  // namespace octet
