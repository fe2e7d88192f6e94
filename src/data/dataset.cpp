#include "data/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <list>
#include <mutex>
#include <set>
#include <unordered_map>

#include "base/files.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/random.h"
#include "data/formats.h"
#include "data/shard_reader.h"

namespace octet {
namespace {

// Open shards, the most recently used ones: a corpus can have more files than a process may open.
class OpenShards {
 public:
  std::shared_ptr<const ShardReader> open(const ShardInfo& info) {
    const std::lock_guard lock(mutex_);
    if (const auto known = entries_.find(&info); known != entries_.end()) {
      order_.splice(order_.begin(), order_, known->second.place);
      return known->second.reader;
    }
    auto reader = std::make_shared<const ShardReader>(info);
    if (entries_.size() >= limit) {
      entries_.erase(order_.back());
      order_.pop_back();
    }
    order_.push_front(&info);
    entries_.emplace(&info, Entry{reader, order_.begin()});
    return reader;
  }

 private:
  static constexpr size_t limit = 128;
  struct Entry {
    std::shared_ptr<const ShardReader> reader;
    std::list<const ShardInfo*>::iterator place;
  };
  std::mutex mutex_;
  std::list<const ShardInfo*> order_;
  std::unordered_map<const ShardInfo*, Entry> entries_;
};

// One Error out of many: the first hint that differs from file to file is the most useful one.
class Problems {
 public:
  void add(const Error& error) {
    causes_.emplace_back(error.what());
    if (hint_.empty()) hint_ = error.hint();
  }
  void throw_if_any() const {
    if (causes_.empty()) return;
    if (causes_.size() == 1) throw Error(ExitCode::Data, causes_[0], hint_);
    std::string all = fmt::format("{} problems with the data", causes_.size());
    for (const std::string& cause : causes_) all += "\n  " + cause;
    throw Error(ExitCode::Data, all, hint_);
  }

 private:
  std::vector<std::string> causes_;
  std::string hint_;
};

// The files of a source in the order of its list, patterns expanded and sorted; a Megatron pair counts once.
std::vector<std::string> list_files(const DataSource& source, Problems& problems) {
  std::vector<std::string> files;
  std::set<std::string> seen;
  for (const std::string& pattern : source.files) {
    const std::vector<std::string> matches = expand_glob(pattern);
    if (matches.empty())
      problems.add(Error(ExitCode::Data,
                         fmt::format("{}: no file matches (source \"{}\")", pattern, source.name),
                         "check the paths of the data section; they are relative to the working folder"));
    const std::set<std::string> together(matches.begin(), matches.end());
    for (const std::string& file : matches) {
      if (std::filesystem::path(file).extension() == ".idx" && together.count(megatron_sibling(file)))
        continue;
      if (!seen.insert(file).second)
        problems.add(
            Error(ExitCode::Data, fmt::format("{}: listed twice in source \"{}\"", file, source.name),
                  "let no two patterns match one file; a source's weight says how often it is read"));
      else
        files.push_back(file);
    }
  }
  return files;
}

// What decides whether a file is the one a run was started with: interpretation, size, and blocks of 4 KiB:
// the first and last 16 and 16 drawn from between.
void add_fingerprint(StreamHash& hash, const ShardInfo& info) {
  const uint64_t identity[] = {static_cast<uint64_t>(info.format), static_cast<uint64_t>(info.type),
                               info.file_bytes};
  hash.update(identity, sizeof identity);
  constexpr uint64_t block = 4096, edge = 16 * block;
  const FileReader file(info.path, ExitCode::Data);
  if (const uint64_t size = file.size(); size != info.file_bytes)
    throw Error(ExitCode::Data,
                fmt::format("{}: the shard changed while it was in use: {} bytes now, {} when it was opened",
                            info.path, size, info.file_bytes),
                "restore the shard");
  std::vector<unsigned char> bytes(edge);
  const auto add = [&](uint64_t offset, uint64_t length) {
    file.read(offset, bytes.data(), length);
    hash.update(bytes.data(), length);
  };
  const uint64_t size = info.file_bytes;
  add(0, std::min(edge, size));
  if (size <= edge) return;
  const uint64_t tail = std::max(edge, size - std::min(edge, size));
  add(tail, size - tail);
  if (tail <= edge + block) {
    if (tail > edge) add(edge, tail - edge);
    return;
  }
  const uint64_t key = random_key(size, Purpose::DataOrder);
  for (uint64_t i = 0; i < 16; ++i) {
    const Random4 r = philox(key, i);
    add(edge + ((static_cast<uint64_t>(r.y) << 32) | r.x) % (tail - edge - block + 1), block);
  }
}

}  // namespace

struct Dataset::Implementation {
  struct Source {
    std::vector<ShardInfo> shards;
    std::vector<int64_t> windows_before;  // [shards + 1] running sum
  };
  std::vector<DataSource> options;
  std::vector<Source> sources;
  int64_t context = 0, vocabulary = 0;
  mutable OpenShards open;

  const Source& at(int source) const {
    if (source < 0 || static_cast<size_t>(source) >= sources.size())
      throw Error(ExitCode::Internal, fmt::format("source {} of {}", source, sources.size()));
    return sources[static_cast<size_t>(source)];
  }
};

Dataset::Dataset(std::vector<DataSource> sources, std::string raw_width, int64_t context, int64_t vocabulary)
    : implementation_(std::make_unique<Implementation>()) {
  Implementation& self = *implementation_;
  self.context = context;
  self.vocabulary = vocabulary;
  Problems problems;
  if (context < 1 || vocabulary < 1 || vocabulary > std::numeric_limits<int32_t>::max())
    throw Error(ExitCode::Usage, fmt::format("context {} and vocabulary {}", context, vocabulary),
                "both are positive, the vocabulary below 2^31");
  if (sources.empty()) problems.add(Error(ExitCode::Data, "no data source", "list shards under data.train"));
  for (const DataSource& source : sources) {
    if (!(source.weight > 0) || !std::isfinite(source.weight))
      problems.add(Error(ExitCode::Data,
                         fmt::format("source \"{}\" has the weight {}", source.name, source.weight),
                         "a weight is a positive number"));
    if (source.files.empty())
      problems.add(Error(ExitCode::Data, fmt::format("source \"{}\" lists no files", source.name),
                         "list shards or patterns"));
    Implementation::Source opened;
    bool complete = true;
    for (const std::string& file : list_files(source, problems)) {
      try {
        opened.shards.push_back(inspect_shard(file, raw_width));
        const ShardInfo& info = opened.shards.back();
        if (info.declared_vocabulary > vocabulary)
          throw Error(ExitCode::Data,
                      fmt::format("{}: declares a vocabulary of {}, the model has {}", file,
                                  info.declared_vocabulary, vocabulary),
                      "set model.vocabulary to the tokenizer's size");
      } catch (const Error& error) {
        if (error.code() != ExitCode::Data) throw;
        problems.add(error);
        complete = false;
      }
    }
    const auto masked = std::find_if(opened.shards.begin(), opened.shards.end(),
                                     [](const ShardInfo& info) { return info.masks; });
    if (masked != opened.shards.end())
      log_warning("source \"{}\": {} has token masks; they are not read, every token is a target",
                  source.name, masked->path);
    opened.windows_before.push_back(0);
    for (const ShardInfo& info : opened.shards) {
      const int64_t here = info.tokens > 0 ? (info.tokens - 1) / context : 0;
      if (here == 0)
        log_warning("{}: {} tokens fill no window of {} + 1 and are not read", info.path, info.tokens,
                    context);
      opened.windows_before.push_back(opened.windows_before.back() + here);
    }
    if (complete && !opened.shards.empty() && opened.windows_before.back() == 0)
      problems.add(Error(
          ExitCode::Data,
          fmt::format("source \"{}\": no shard has the {} tokens of one window", source.name, context + 1),
          "shorten model.context or bring more data"));
    self.sources.push_back(std::move(opened));
  }
  problems.throw_if_any();
  self.options = std::move(sources);
}

Dataset::~Dataset() = default;

const std::vector<DataSource>& Dataset::sources() const { return implementation_->options; }
const std::vector<ShardInfo>& Dataset::shards(int source) const { return implementation_->at(source).shards; }
int64_t Dataset::windows(int source) const { return implementation_->at(source).windows_before.back(); }
int64_t Dataset::context() const { return implementation_->context; }

int64_t Dataset::tokens() const {
  int64_t sum = 0;
  for (const auto& source : implementation_->sources)
    for (const ShardInfo& info : source.shards) sum += info.tokens;
  return sum;
}

void Dataset::read(int source, int64_t index, std::span<int32_t> out) const {
  const Implementation& self = *implementation_;
  const auto& [shards, before] = self.at(source);
  if (index < 0 || index >= before.back() || static_cast<int64_t>(out.size()) != self.context + 1)
    throw Error(ExitCode::Internal, fmt::format("window {} of {} into {} places for {} + 1 tokens", index,
                                                before.back(), out.size(), self.context));
  const auto after = std::upper_bound(before.begin(), before.end(), index);
  const size_t shard = static_cast<size_t>(after - before.begin()) - 1;
  const int64_t first = (index - before[shard]) * self.context;
  std::vector<int64_t> ids(out.size());
  self.open.open(shards[shard])->read(first, ids);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= self.vocabulary)
      throw token_out_of_range(shards[shard], first + static_cast<int64_t>(i), ids[i], self.vocabulary);
    out[i] = static_cast<int32_t>(ids[i]);
  }
}

std::string Dataset::fingerprint() const {
  StreamHash hash;
  for (const auto& source : implementation_->sources) {
    const uint64_t count = source.shards.size();
    hash.update(&count, sizeof count);
    for (const ShardInfo& info : source.shards) add_fingerprint(hash, info);
  }
  return hex(hash.digest());
}

}  // namespace octet
