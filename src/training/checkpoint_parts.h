// The tensor files of a checkpoint, written by all ranks of a group.
//
// Alone, a process writes each file front to back and hashes what it writes. Of several ranks, rank 0 makes
// the files with their headers and full sizes; each rank writes and syncs the elements it holds, at their
// places; rank 0 then reads the files once for their hashes and holds them against what every rank says it
// wrote. A tensor that ranks hold whole is written by one of them, in turn.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tensor/safetensors.h"
#include "training/checkpoint.h"

namespace octet {

// Of bytes at `offset` of a file: the sum of its 8-byte words, bytes elsewhere 0, each times an odd number
// that depends on the word's place, mod 2^64. The sums of disjoint parts add up to that of the file, however
// it was cut; a change within one word is always seen.
uint64_t place_sum(uint64_t offset, const void* data, size_t bytes);

// The pieces of one file of a checkpoint, from the file to their memory; names, types and shapes of the whole
// tensors must match, whoever wrote them.
void read_payload(const std::filesystem::path& checkpoint, const Payload& payload);

// A number for tensors in their order that does not depend on who holds which pieces of them, as 16 hex
// digits on every rank: XXH3 of one 64-bit sum a tensor, mod 2^64, of the XXH3 of every 16384 elements (the
// last piece may be shorter) with the piece's place as the seed. Pieces held begin and end at such borders.
// `numbers`: those of elements [first, first + count) of a tensor in FP32, in place of the ones it holds;
// null: the tensor's own.
using Numbers = std::function<const float*(size_t tensor, int64_t first, int64_t count)>;
std::string content_hash(const std::string& name, std::span<const TensorPiece> tensors, RankGroup& group,
                         const Numbers& numbers = {});

// Of a file, by one rank or by all.
struct Written {
  uint64_t bytes = 0, sum = 0;  // place_sum
  void add(uint64_t offset, const void* data, size_t count) {
    bytes += count;
    sum += place_sum(offset, data, count);
  }
};

class CheckpointParts {
 public:
  // Both must outlive it.
  CheckpointParts(std::span<const Payload> payloads, const RankGroup& group)
      : payloads_(payloads), group_(&group) {}

  // Who writes what, after `check` did not throw on any rank. Error(Checkpoint) when the ranks' tensors
  // differ.
  void agree(const std::string& name, const std::function<void()>& check);
  void create(const std::filesystem::path& folder) const;                    // rank 0; alone: nothing
  void write(const std::string& name, const std::filesystem::path& folder);  // every rank
  // Rank 0, after write(): name, size and hash of each file. Error(Checkpoint) when the ranks' pieces are not
  // the whole, or a file does not hold what they wrote.
  std::vector<CheckpointFile> files(const std::filesystem::path& folder) const;

 private:
  struct File {
    const Payload* payload = nullptr;
    SafetensorsLayout layout;
    std::vector<bool> mine;      // by tensor: this rank writes what it holds
    Written written;             // everybody's
    CheckpointFile result = {};  // of a process alone
  };
  void read_payloads();
  std::string own_share() const;
  void divide(const std::vector<std::string>& shares);
  Written write_pieces(const File& file, const std::filesystem::path& path) const;
  CheckpointFile read_back(const File& file, const std::filesystem::path& path) const;

  std::span<const Payload> payloads_;
  const RankGroup* group_;
  std::vector<File> files_;  // those with tensors: a run without FP8 sites has no scale table
};

}  // namespace octet
