#include "tensor/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/hash.h"
#include "base/text.h"
#include "tensor/safetensors_header.h"

namespace octet {
namespace {

std::string json_string(const std::string& text, const char* what) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(ExitCode::Internal,
                fmt::format("safetensors: {} \"{}\" is not UTF-8", what, escape_control(text)));
  }
}

// Widest type first, then by name: every tensor is aligned to its type, and the order the caller used does
// not show.
std::vector<const NamedTensor*> file_order(std::span<const NamedTensor> tensors) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& t : tensors) {
    if (t.tensor.empty())
      throw Error(ExitCode::Internal,
                  fmt::format("safetensors: \"{}\" has no shape", escape_control(t.name)));
    if (t.name.empty() || t.name == "__metadata__")
      throw Error(ExitCode::Internal, fmt::format("safetensors: \"{}\" cannot name a tensor", t.name));
    order.push_back(&t);
  }
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    const size_t wide = size_of(a->tensor.dtype), other = size_of(b->tensor.dtype);
    return wide != other ? wide > other : a->name < b->name;
  });
  // Equal names of different widths are not neighbours: sort names alone.
  std::vector<std::string_view> names;
  for (const NamedTensor& t : tensors) names.push_back(t.name);
  std::sort(names.begin(), names.end());
  if (const auto twin = std::adjacent_find(names.begin(), names.end()); twin != names.end())
    throw Error(ExitCode::Internal,
                fmt::format("safetensors: \"{}\" is written twice", escape_control(*twin)));
  return order;
}

std::string header_of(std::span<const NamedTensor* const> order,
                      std::map<std::string, std::string> metadata) {
  metadata["format"] = "pt";  // readers in the Hugging Face world refuse files without it
  std::string json = "{\"__metadata__\":{";
  const char* comma = "";
  for (const auto& [key, value] : metadata) {
    json +=
        fmt::format("{}{}:{}", comma, json_string(key, "metadata key"), json_string(value, "metadata value"));
    comma = ",";
  }
  json += "}";
  uint64_t offset = 0;
  for (const NamedTensor* t : order) {
    json += fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":[", json_string(t->name, "tensor name"),
                        name_of(t->tensor.dtype));
    for (int i = 0; i < t->tensor.shape.rank(); ++i)
      json += fmt::format("{}{}", i ? "," : "", t->tensor.shape[i]);
    const uint64_t end = offset + t->tensor.bytes();
    json += fmt::format("],\"data_offsets\":[{},{}]}}", offset, end);
    offset = end;
  }
  json += "}";
  json.append((8 - json.size() % 8) % 8, ' ');
  if (json.size() > safetensors_header_limit)
    throw Error(ExitCode::Internal,
                fmt::format("safetensors: a header of {} bytes is too long", json.size()));
  std::string header(8, '\0');
  for (int i = 0; i < 8; ++i) header[i] = static_cast<char>(json.size() >> (8 * i) & 0xff);
  return header + json;
}

}  // namespace

SafetensorsReader::SafetensorsReader(const std::filesystem::path& path, ExitCode code)
    : file_(path, code), path_(path), code_(code) {
  const auto reject = [&](const std::string& why) {
    throw Error(
        code_, fmt::format("\"{}\" is not a valid safetensors file: {}", escape_control(path_.string()), why),
        "the file is damaged or of another format; restore it");
  };
  const uint64_t size = file_.size();
  if (size < 8) reject(fmt::format("{} bytes are too few for the length of the header", size));
  unsigned char prefix[8];
  file_.read(0, prefix, 8);
  uint64_t length = 0;
  for (int i = 0; i < 8; ++i) length |= static_cast<uint64_t>(prefix[i]) << (8 * i);
  if (length > safetensors_header_limit)
    reject(fmt::format("a header of {} bytes, at most {} are allowed", length, safetensors_header_limit));
  if (length > size - 8) reject(fmt::format("a header of {} bytes in a file of {}", length, size));
  std::string json(static_cast<size_t>(length), '\0');
  file_.read(8, json.data(), json.size());
  SafetensorsHeader header = parse_safetensors_header(json, size - 8 - length);
  if (!header.problem.empty()) reject(header.problem);
  for (SafetensorsEntry& entry : header.entries) entry.offset += 8 + length;
  entries_ = std::move(header.entries);
  metadata_ = std::move(header.metadata);
}

const SafetensorsEntry& SafetensorsReader::find(const std::string& name) const {
  for (const SafetensorsEntry& entry : entries_)
    if (entry.name == name) return entry;
  std::vector<std::string> names;
  for (const SafetensorsEntry& entry : entries_) names.push_back(entry.name);
  const std::string near = nearest(name, names);
  throw Error(
      code_, fmt::format("\"{}\" has no tensor \"{}\"", escape_control(path_.string()), escape_control(name)),
      near.empty() ? fmt::format("it holds {} others", names.size())
                   : fmt::format("nearest name: \"{}\"", escape_control(near)));
}

bool SafetensorsReader::contains(const std::string& name) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const SafetensorsEntry& e) { return e.name == name; });
}

void SafetensorsReader::read(const SafetensorsEntry& entry, void* to) const {
  file_.read(entry.offset, to, static_cast<size_t>(entry.bytes));
}

void SafetensorsReader::read_part(const SafetensorsEntry& entry, uint64_t first_byte, size_t bytes,
                                  void* to) const {
  uint64_t end = 0;
  if (!add(first_byte, bytes, end) || end > entry.bytes)
    throw Error(code_, fmt::format("\"{}\": \"{}\" has {} bytes, {} at {} were asked for",
                                   escape_control(path_.string()), escape_control(entry.name), entry.bytes,
                                   bytes, first_byte));
  file_.read(entry.offset + first_byte, to, bytes);
}

std::string safetensors_header(std::span<const NamedTensor> tensors,
                               const std::map<std::string, std::string>& metadata) {
  return header_of(file_order(tensors), metadata);
}

uint64_t write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                           const std::map<std::string, std::string>& metadata, ExitCode code) {
  const std::vector<const NamedTensor*> order = file_order(tensors);
  const std::string header = header_of(order, metadata);
  StreamHash hash;
  FileWriter file(path, code);
  const auto write = [&](const void* data, size_t bytes) {
    hash.update(data, bytes);
    file.write(data, bytes);
  };
  write(header.data(), header.size());
  for (const NamedTensor* t : order) write(t->tensor.data, t->tensor.bytes());
  file.close();
  return hash.digest();
}

SafetensorsLayout safetensors_layout(std::span<const NamedTensor> tensors,
                                     const std::map<std::string, std::string>& metadata) {
  const std::vector<const NamedTensor*> order = file_order(tensors);
  SafetensorsLayout layout{header_of(order, metadata), std::vector<uint64_t>(tensors.size()), 0};
  layout.bytes = layout.header.size();
  for (const NamedTensor* t : order) {
    layout.offsets[static_cast<size_t>(t - tensors.data())] = layout.bytes;
    layout.bytes += t->tensor.bytes();
  }
  return layout;
}

void create_safetensors(const std::filesystem::path& path, const SafetensorsLayout& layout, ExitCode code) {
  FileWriter file(path, code);
  file.write(layout.header.data(), layout.header.size());
  file.extend(layout.bytes);
  file.close();
}

}  // namespace octet
