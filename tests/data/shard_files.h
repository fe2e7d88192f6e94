// Shard files made byte by byte from the format descriptions, not through the code under test.
#pragma once
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <unistd.h>

namespace shard_files {

namespace fs = std::filesystem;

struct TemporaryFolder {
  fs::path path;
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "octet-data-XXXXXX").string();
    path = ::mkdtemp(name.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

struct Bytes {
  std::string data;
  template <class T>
  Bytes& add(T value) {
    data.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  template <class T>
  Bytes& add_all(const std::vector<int64_t>& values) {
    for (const int64_t value : values) add(static_cast<T>(value));
    return *this;
  }
  Bytes& text(const std::string& more) {
    data += more;
    return *this;
  }
  Bytes& pad_to(size_t size, char filler = '\0') {
    data.resize(size, filler);
    return *this;
  }
};

inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}
inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::string llmc16(const std::vector<int64_t>& ids) {
  return Bytes()
      .add<int32_t>(20240520)
      .add<int32_t>(1)
      .add<int32_t>(static_cast<int32_t>(ids.size()))
      .pad_to(1024)
      .add_all<uint16_t>(ids)
      .data;
}
inline std::string llmc32(const std::vector<int64_t>& ids) {
  return Bytes()
      .add<int32_t>(20240801)
      .add<int32_t>(7)
      .add<int32_t>(static_cast<int32_t>(ids.size()))
      .pad_to(1024)
      .add_all<uint32_t>(ids)
      .data;
}
inline std::string llmq(const std::vector<int64_t>& ids, int32_t vocabulary, int32_t masks) {
  Bytes bytes;
  bytes.text("BIN.TOK\n").add<int32_t>(2).add<int32_t>(4).add<int32_t>(static_cast<int32_t>(ids.size()));
  bytes.add<int32_t>(vocabulary).add<int32_t>(masks).pad_to(1023, '*').text("\n").add_all<int32_t>(ids);
  if (masks) bytes.text(std::string((ids.size() + 7) / 8, '\x5a'));
  return bytes.data;
}

struct MegatronIndex {
  uint64_t version = 1;
  unsigned char code = 8;
  std::vector<int32_t> lengths;
  std::vector<int64_t> offsets, documents;
  std::string bytes() const {
    Bytes b;
    b.text(std::string("MMIDIDX\0\0", 9)).add(version).add(code);
    b.add<uint64_t>(lengths.size()).add<uint64_t>(documents.size());
    for (int32_t v : lengths) b.add(v);
    for (int64_t v : offsets) b.add(v);
    for (int64_t v : documents) b.add(v);
    return b.data;
  }
};
// Documents of one sequence each.
inline MegatronIndex index_of(const std::vector<int32_t>& lengths, unsigned char code, int64_t width) {
  MegatronIndex index{.code = code, .lengths = lengths, .offsets = {}, .documents = {0}};
  int64_t offset = 0;
  for (const int32_t length : lengths) {
    index.offsets.push_back(offset);
    index.documents.push_back(index.documents.back() + 1);
    offset += length * width;
  }
  return index;
}

}  // namespace shard_files
