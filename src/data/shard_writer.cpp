#include "data/shard_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace octet {

ShardWriter::ShardWriter(ShardWriterOptions options)
    : options_(std::move(options)), token_bytes_(options_.vocabulary > 65536 ? 4 : 2) {
  if (options_.shard_tokens < 1 || options_.shard_tokens > INT32_MAX)
    throw Error(ExitCode::Usage, fmt::format("shards of {} tokens", options_.shard_tokens),
                "use 1 to 2147483647");
}

ShardWriter::~ShardWriter() {
  if (!file_) return;
  file_.reset();
  std::error_code ignored;
  std::filesystem::remove(partial_, ignored);
}

void ShardWriter::open_shard() {
  const std::string name = fmt::format("{}_{:06}.bin", options_.prefix, files_.size());
  files_.push_back(options_.folder / name);
  partial_ = options_.folder / fmt::format(".{}{}", name, partial_extension);
  file_ = std::make_unique<FileWriter>(partial_, ExitCode::Data);
  shard_left_ = std::min(options_.shard_tokens, options_.total_tokens - written_);
  uint32_t header[256] = {};
  header[0] = token_bytes_ == 2 ? 20240520 : 20240801;
  header[1] = token_bytes_ == 2 ? 1 : 7;
  header[2] = static_cast<uint32_t>(shard_left_);
  file_->write(header, sizeof header);
}

void ShardWriter::close_shard() {
  file_->close();
  file_.reset();
  rename_durably(partial_, files_.back(), ExitCode::Data);
}

void ShardWriter::write(std::span<const int32_t> ids) {
  if (static_cast<int64_t>(ids.size()) > options_.total_tokens - written_)
    throw Error(ExitCode::Internal,
                fmt::format("{}: more than the {} tokens announced", options_.prefix, options_.total_tokens));
  for (const int32_t id : ids)
    if (id < 0 || id >= options_.vocabulary)
      throw Error(ExitCode::Data,
                  fmt::format("id {} to be written, the vocabulary has {}", id, options_.vocabulary),
                  "the tokenizer and the vocabulary do not belong together");
  std::vector<uint16_t> narrow;
  while (!ids.empty()) {
    if (!file_) open_shard();
    const auto part = ids.first(std::min(ids.size(), static_cast<size_t>(shard_left_)));
    if (token_bytes_ == 2) {
      narrow.assign(part.begin(), part.end());
      file_->write(narrow.data(), narrow.size() * 2);
    } else {
      file_->write(part.data(), part.size() * 4);
    }
    written_ += static_cast<int64_t>(part.size());
    shard_left_ -= static_cast<int64_t>(part.size());
    ids = ids.subspan(part.size());
    if (shard_left_ == 0) close_shard();
  }
}

void ShardWriter::close() {
  if (written_ != options_.total_tokens || file_)
    throw Error(ExitCode::Internal, fmt::format("{}: {} tokens written, {} announced", options_.prefix,
                                                written_, options_.total_tokens));
}

}  // namespace octet
