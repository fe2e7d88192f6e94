#include "training/checkpoint_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/files.h"
#include "base/hash.h"
#include "base/text.h"

namespace octet {
namespace {

namespace fs = std::filesystem;

constexpr size_t chunk_bytes = size_t{16} << 20;  // a multiple of 8

// The mixer of SplitMix64.  [Steele, Lea, Flood 2014]
uint64_t factor(uint64_t word) {
  word += 0x9e3779b97f4a7c15u;
  word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9u;
  word = (word ^ word >> 27) * 0x94d049bb133111ebu;
  return (word ^ word >> 31) | 1;
}

void report_progress(const RankGroup& group) {
  if (group.progress) group.progress();
}

uint64_t number_in(const std::string& text, size_t index) {
  uint64_t value = 0;
  if (text.size() < (index + 1) * sizeof(value))
    throw Error(ExitCode::Internal, "checkpoint: a rank's message is too short");
  std::memcpy(&value, text.data() + index * sizeof(value), sizeof(value));
  return value;
}

void append_number(std::string& text, uint64_t value) {
  text.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

}  // namespace

uint64_t place_sum(uint64_t offset, const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  uint64_t sum = 0, place = offset / 8, word = 0;
  const auto edge = [&](size_t at, size_t count) {
    word = 0;
    std::memcpy(reinterpret_cast<char*>(&word) + at, from, count);
    sum += word * factor(place++);
    from += count;
    bytes -= count;
  };
  if (const size_t at = offset % 8; at != 0 && bytes > 0) edge(at, std::min(bytes, 8 - at));
  for (; bytes >= 8; bytes -= 8, from += 8) {
    std::memcpy(&word, from, 8);
    sum += word * factor(place++);
  }
  if (bytes > 0) edge(0, bytes);
  return sum;
}

void read_payload(const fs::path& checkpoint, const Payload& payload) {
  const fs::path path = checkpoint / payload.file;
  const SafetensorsReader reader(path, ExitCode::Checkpoint);
  if (reader.entries().size() != payload.tensors.size())
    throw Error(ExitCode::Checkpoint,
                fmt::format("{}: {} tensors, this run has {}", path.string(), reader.entries().size(),
                            payload.tensors.size()),
                "the checkpoint belongs to another model or recipe");
  for (const TensorPiece& t : payload.tensors) {
    const SafetensorsEntry& entry = reader.find(t.name);
    if (entry.dtype != t.values.dtype || !(entry.shape == t.shape))
      throw Error(
          ExitCode::Checkpoint,
          fmt::format("{}: {} is {} {}, this run has {} {}", path.string(), t.name, name_of(entry.dtype),
                      to_string(entry.shape), name_of(t.values.dtype), to_string(t.shape)),
          "the checkpoint belongs to another model or recipe; resume with its own configuration");
  }
  for (const TensorPiece& t : payload.tensors)
    reader.read_part(reader.find(t.name), static_cast<uint64_t>(t.begin) * size_of(t.values.dtype),
                     t.values.bytes(), t.values.data);
}

std::string content_hash(const std::string& name, std::span<const TensorPiece> tensors, RankGroup& group,
                         const Numbers& numbers) {
  constexpr int64_t border = 1 << 14;
  const auto told = together(group, fmt::format("hash/{}/{}", name, group.exchanges++), [&] {
    std::string wholes, sums;
    for (size_t tensor = 0; tensor < tensors.size(); ++tensor) {
      const TensorPiece& t = tensors[tensor];
      const int64_t count = t.values.elements();
      if (count > 0 &&
          (t.begin % border != 0 || (count % border != 0 && t.begin + count != t.shape.elements())))
        throw Error(ExitCode::Internal, fmt::format("elements [{}, {}) of {} are not whole pieces of {}",
                                                    t.begin, t.begin + count, t.name, border));
      uint64_t sum = 0;
      for (int64_t i = 0; i < count; i += border) {
        const auto place = static_cast<uint64_t>((t.begin + i) / border);
        const auto n = static_cast<size_t>(std::min(border, count - i)), size = size_of(t.values.dtype);
        if (const float* own = numbers ? numbers(tensor, t.begin + i, static_cast<int64_t>(n)) : nullptr)
          sum += hash64(own, n * sizeof(float), place);
        else
          sum += hash64(static_cast<const char*>(t.values.data) + static_cast<size_t>(i) * size, n * size,
                        place);
      }
      wholes.push_back(t.whole() ? 1 : 0);
      append_number(sums, sum);
    }
    return sums + wholes;
  });
  std::string sums;
  for (size_t i = 0; i < tensors.size(); ++i) {
    uint64_t sum = 0;
    for (const std::string& one : told) {
      const uint64_t held = number_in(one, i);
      if (one.at(tensors.size() * sizeof(uint64_t) + i) == 1) {
        sum = held;
        break;
      }
      sum += held;
    }
    append_number(sums, sum);
  }
  return hex(hash64(sums.data(), sums.size()));
}

void CheckpointParts::read_payloads() {
  for (const Payload& payload : payloads_) {
    if (payload.tensors.empty()) continue;
    std::vector<NamedTensor> shapes;
    for (const TensorPiece& t : payload.tensors) {
      const int64_t end = t.begin + t.values.elements();
      if (t.begin < 0 || end > t.shape.elements() || (group_->alone() && !t.whole()))
        throw Error(ExitCode::Internal, fmt::format("checkpoint: elements [{}, {}) of {} {}", t.begin, end,
                                                    t.name, to_string(t.shape)));
      shapes.push_back({t.name, {nullptr, t.values.dtype, t.shape}});
    }
    files_.push_back({&payload, safetensors_layout(shapes, {}), {}, {}, {}});
  }
}

// The hash of the files' headers, then a bit a tensor: this rank holds all of it.
std::string CheckpointParts::own_share() const {
  std::string share;
  StreamHash headers;
  for (const File& file : files_) headers.update(file.layout.header.data(), file.layout.header.size());
  append_number(share, headers.digest());
  size_t tensor = 0;
  for (const File& file : files_)
    for (const TensorPiece& t : file.payload->tensors) {
      if (tensor % 8 == 0) share.push_back('\0');
      if (t.whole()) share.back() = static_cast<char>(share.back() | 1 << tensor % 8);
      ++tensor;
    }
  return share;
}

// Of those who hold a tensor whole one writes it; where nobody does, everybody writes the piece it holds.
void CheckpointParts::divide(const std::vector<std::string>& shares) {
  for (size_t rank = 1; rank < shares.size(); ++rank)
    if (number_in(shares[rank], 0) != number_in(shares[0], 0))
      throw Error(ExitCode::Checkpoint, fmt::format("rank {} has other tensors to save than rank 0", rank),
                  "all ranks need the same configuration and the same binary");
  size_t tensor = 0;
  for (File& file : files_)
    for (size_t i = 0; i < file.payload->tensors.size(); ++i, ++tensor) {
      std::vector<int> holders;
      for (size_t rank = 0; rank < shares.size(); ++rank)
        if (shares[rank].at(sizeof(uint64_t) + tensor / 8) >> tensor % 8 & 1)
          holders.push_back(static_cast<int>(rank));
      file.mine.push_back(holders.empty() || holders[tensor % holders.size()] == group_->rank);
    }
}

void CheckpointParts::agree(const std::string& name, const std::function<void()>& check) {
  const std::vector<std::string> shares = together(*group_, name + "/begun", [&]() -> std::string {
    check();
    read_payloads();
    return own_share();
  });
  divide(shares);
}

void CheckpointParts::create(const fs::path& folder) const {
  if (group_->alone()) return;
  for (const File& file : files_)
    create_safetensors(folder / file.payload->file, file.layout, ExitCode::Checkpoint);
  sync_folder(folder, ExitCode::Checkpoint);
}

void CheckpointParts::write(const std::string& name, const fs::path& folder) {
  if (group_->alone()) {
    for (File& file : files_) {
      std::vector<NamedTensor> tensors;
      for (const TensorPiece& t : file.payload->tensors)
        tensors.push_back({t.name, {t.values.data, t.values.dtype, t.shape}});
      const fs::path path = folder / file.payload->file;
      const uint64_t hash = write_safetensors(path, tensors, {}, ExitCode::Checkpoint);
      file.result = {file.payload->file, fs::file_size(path), hex(hash)};
    }
    return;
  }
  const std::vector<std::string> told = together(*group_, name + "/written", [&] {
    std::error_code ignored;
    if (!fs::is_directory(folder, ignored))
      throw Error(ExitCode::Checkpoint,
                  fmt::format("{}: not here, although rank 0 has made it", folder.string()),
                  "run.output must name the same folder on every rank, on a disk that all share");
    std::string message;
    for (const File& file : files_) {
      const Written written = write_pieces(file, folder / file.payload->file);
      append_number(message, written.bytes);
      append_number(message, written.sum);
    }
    return message;
  });
  for (size_t i = 0; i < files_.size(); ++i) {
    const std::string& header = files_[i].layout.header;
    files_[i].written = {};
    files_[i].written.add(0, header.data(), header.size());
    for (const std::string& message : told) {
      files_[i].written.bytes += number_in(message, 2 * i);
      files_[i].written.sum += number_in(message, 2 * i + 1);
    }
  }
}

Written CheckpointParts::write_pieces(const File& file, const fs::path& path) const {
  Written written;
  RegionWriter writer(path, ExitCode::Checkpoint);
  for (size_t i = 0; i < file.mine.size(); ++i) {
    const TensorPiece& t = file.payload->tensors[i];
    if (!file.mine[i]) continue;
    const uint64_t begin = file.layout.offsets[i] + static_cast<uint64_t>(t.begin) * size_of(t.values.dtype);
    const char* data = static_cast<const char*>(t.values.data);
    for (size_t at = 0; at < t.values.bytes(); at += chunk_bytes) {
      const size_t count = std::min(chunk_bytes, t.values.bytes() - at);
      writer.write(begin + at, data + at, count);
      written.add(begin + at, data + at, count);
      report_progress(*group_);
    }
  }
  writer.close();
  return written;
}

std::vector<CheckpointFile> CheckpointParts::files(const fs::path& folder) const {
  std::vector<CheckpointFile> files;
  for (const File& file : files_)
    files.push_back(group_->alone() ? file.result : read_back(file, folder / file.payload->file));
  return files;
}

CheckpointFile CheckpointParts::read_back(const File& file, const fs::path& path) const {
  if (file.written.bytes != file.layout.bytes)
    throw Error(ExitCode::Internal, fmt::format("{}: the ranks wrote {} bytes of {}", path.string(),
                                                file.written.bytes, file.layout.bytes));
  const FileReader reader(path, ExitCode::Checkpoint);
  std::vector<char> buffer(static_cast<size_t>(std::min<uint64_t>(chunk_bytes, file.layout.bytes)));
  StreamHash hash;
  Written found;
  for (uint64_t at = 0; at < file.layout.bytes; at += buffer.size()) {
    const size_t count = static_cast<size_t>(std::min<uint64_t>(buffer.size(), file.layout.bytes - at));
    reader.read(at, buffer.data(), count);
    hash.update(buffer.data(), count);
    found.add(at, buffer.data(), count);
    report_progress(*group_);
  }
  if (found.sum != file.written.sum)
    throw Error(ExitCode::Checkpoint,
                fmt::format("{}: rank 0 does not read what the ranks wrote", path.string()),
                "run.output must lie on a file system that keeps what several hosts write into one file");
  return {file.payload->file, file.layout.bytes, hex(hash.digest())};
}

}  // namespace octet
