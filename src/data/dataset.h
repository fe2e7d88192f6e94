// Token shards of any known format behind one interface: a dataset is a sequence of context windows.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace octet {

enum class ShardFormat : uint8_t { LlmcUint16, LlmcUint32, LlmqBinTok, Megatron, RawUint16, RawUint32 };
const char* name_of(ShardFormat f);

enum class TokenType : uint8_t { Uint8, Int8, Uint16, Int16, Uint32, Int32, Int64 };  // little-endian
int bytes_of(TokenType t);

struct DataSource {  // one entry of a mixture
  std::string name = "default";
  std::vector<std::string> files;  // paths or globs
  double weight = 1;
  bool operator==(const DataSource&) const = default;
};

struct DataOptions {
  std::vector<DataSource> train, validation;
  std::string raw_width;  // "", "uint16" or "uint32": how headerless files are read
  int64_t epochs =
      0;  // 0: any number (every epoch has its own order, the change is logged); n: more is an error
  bool shuffle = true;
  bool operator==(const DataOptions&) const = default;
};

struct ShardInfo {
  std::string path;  // the file that holds the tokens (Megatron: the .bin)
  ShardFormat format = ShardFormat::LlmcUint16;
  TokenType type = TokenType::Uint16;
  int64_t tokens = 0;
  uint64_t file_bytes = 0, payload_offset = 0;
  int token_bytes = 2;
  int64_t declared_vocabulary = 0;  // 0: the header does not say
  int64_t documents = -1;           // -1: the header does not say
  bool masks = false;               // it says which tokens to train on; not read: every token is a target
};

// Opens, checks magic, size against header. Throws Error(Data) with found versus expected (F07-F09, F14).
// Megatron pairs may be named by either half. Layouts: docs/formats.md.
ShardInfo inspect_shard(const std::string& path, const std::string& raw_width);

// A window of S+1 tokens (S inputs and their targets); windows start every S tokens and never cross a shard.
// A window may hold several documents and a document may span windows (F16): attention sees the whole window.
// The last (n - 1) mod S tokens of a shard of n fill no window and are not read.
class Dataset {
 public:
  // All problems of all files are reported in one Error(Data).
  Dataset(std::vector<DataSource> sources, std::string raw_width, int64_t context, int64_t vocabulary);
  ~Dataset();

  const std::vector<DataSource>& sources() const;
  const std::vector<ShardInfo>& shards(int source) const;
  int64_t windows(int source) const;
  int64_t tokens() const;
  int64_t context() const;
  // Reads window `index` of a source: S+1 ids. Checks every id against the vocabulary: Error(Data) with file,
  // offset, id (F10, F12).
  void read(int source, int64_t index, std::span<int32_t> out) const;
  // Size + head, tail and sampled-block hash of every file, in order (F11).
  std::string fingerprint() const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace octet
