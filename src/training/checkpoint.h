// Checkpoints on disk: what is there, is it whole, and writing one so that a kill at any moment leaves the
// previous one intact.  [docs/formats.md, "Checkpoints"]
//
//   step-00000100/masters.safetensors      F32, by parameter name
//                 moments.safetensors      NAME.first, NAME.second: codes (F8_E4M3, F8_E5M2), BF16 or F32;
//                                          NAME.first.inverse_scale, ...: F32, one per block
//                 scale_table.safetensors  amax_history [window, sites], scale [sites], inverse_scale [sites]
//                 manifest.json            written last: format, step, state, config, files with size and
//                 XXH3
//
// Nothing in these files depends on the clock, the host, the folder or on whether the run was interrupted.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/gradient_reduction.h"
#include "tensor/safetensors.h"
#include "training/metrics.h"
#include "training/rank_group.h"
#include "training/segment.h"

namespace octet {

inline constexpr int checkpoint_format = 1;
inline constexpr const char* manifest_file = "manifest.json";

// What a step needs besides tensors.
struct TrainingState {
  int64_t step = 0;                      // updates asked for so far
  int64_t tokens = 0;                    // tokens read
  int64_t next_sample = 0;               // global sample index
  int64_t skipped_steps = 0;             // updates not applied
  int64_t consecutive_nonfinite = 0;     // (F28)
  int64_t rollbacks = 0;                 // (F30)
  int64_t validated_step = -1;           // of the last complete evaluation
  double loss = 0, validation_loss = 0;  // last ones seen, for the summary of a finished run
  std::string init_hash;                 // XXH3 of the masters after initialisation
  std::vector<double> spike_history;     // detector window, oldest first
  GradientReduction::State gradient_reduction;
  Json health;                      // of HealthRules; null: nothing to remember
  std::vector<Fallback> fallbacks;  // in the order they were taken
  bool fallbacks_used_up = false;   // another linear passed a limit, and the run has said so
};

struct CheckpointFile {
  std::string name;
  uint64_t bytes = 0;
  std::string hash;  // XXH3, 16 hex digits
  bool operator==(const CheckpointFile&) const = default;
};

struct Manifest {
  Json config;  // resolved, without /run/output
  std::string config_hash, data_fingerprint, version;
  TrainingState state;
  std::vector<CheckpointFile> files;
};

std::string to_text(const Manifest& manifest);  // ends with its own checksum
// Error(Checkpoint): every byte of the text is covered; a newer format is named as such (F27).
Manifest parse_manifest(const std::string& text, const std::string& source_name);
Manifest read_manifest(const std::filesystem::path& folder);

// Manifest, and size and hash of every file it lists; Error(Checkpoint) names the first that differs (F21,
// F22).
Manifest verify_checkpoint(const std::filesystem::path& folder);

struct CheckpointEntry {
  int64_t step;
  std::filesystem::path folder;
};
// Folders called step-NNNNNNNN, oldest first; anything else is foreign and ignored.
std::vector<CheckpointEntry> list_checkpoints(const std::filesystem::path& checkpoints);
std::string checkpoint_name(int64_t step);                // "step-00000100"
std::optional<int64_t> step_of(const std::string& name);  // empty: not the name of a checkpoint

struct FoundCheckpoint {
  std::filesystem::path folder;  // empty: none there
  Manifest manifest;
};
// The newest whole checkpoint. One damaged checkpoint is passed over with a loud warning; two are an error:
// going further back takes an explicit --resume PATH (F21).
FoundCheckpoint find_newest_checkpoint(const std::filesystem::path& checkpoints);

struct Retention {
  int64_t keep = 3, keep_every = 0;
};
// Which checkpoints may go. Called only once the newest of `steps` (ascending) is verified, so the one the
// run resumed from stays until there is a newer whole one (F26).
std::vector<int64_t> removable(std::span<const int64_t> steps, const Retention& retention);

// What one rank holds of a tensor: elements [begin, begin + values.elements()), in the order of the whole.
struct TensorPiece {
  std::string name;
  Tensor values;  // host memory
  Shape shape;    // of the whole tensor
  int64_t begin = 0;

  TensorPiece(std::string the_name, const Tensor& whole)
      : name(std::move(the_name)), values(whole), shape(whole.shape) {}
  TensorPiece(std::string the_name, const Tensor& piece, const Shape& whole, int64_t first)
      : name(std::move(the_name)), values(piece), shape(whole), begin(first) {}
  bool whole() const { return values.elements() == shape.elements(); }
};
// All ranks have payloads of the same files, names, types and shapes. A tensor is whole on some ranks, which
// then have the same values, or its pieces on all ranks together are the tensor, none twice.
struct Payload {
  std::string file;
  std::vector<TensorPiece> tensors;
};

// The protocol: temporary folder, files synced, manifest last and synced, folder synced, rename, parent
// synced, read back and verified. A checkpoint of this step that is there already stays until the new one is
// verified: the two change names, or, where the file system cannot do that in one operation, the old one is
// step-NNNNNNNN.former meanwhile. Throws Error(Checkpoint) after removing what was partial; ENOSPC is found
// before writing where the file system says so (F20). Refuses masters that are not finite (F33).
std::filesystem::path write_checkpoint(const std::filesystem::path& checkpoints, Manifest manifest,
                                       std::span<const Payload> payloads);
// The same by several ranks at once, to the same bytes: each writes the pieces it holds into the files that
// rank 0 makes and puts in place. A failure on any rank is an Error(Checkpoint) on all; what the group's
// all_gather throws passes through, and rank 0 then removes what was partial.
std::filesystem::path write_checkpoint(const std::filesystem::path& checkpoints, Manifest manifest,
                                       std::span<const Payload> payloads, RankGroup& group);
uint64_t checkpoint_bytes(std::span<const Payload> payloads);  // of the whole tensors, without the manifest
// Error(`code`) unless the disk has room for one checkpoint and a reserve for the manifest and what else the
// run writes meanwhile.
void require_disk(const std::filesystem::path& checkpoints, std::span<const Payload> payloads, ExitCode code);

// What a process that died while it replaced a checkpoint left as step-NNNNNNNN.former: it gets its name back
// unless the new one is there and whole. Before anything else looks at the folder.
void restore_former(const std::filesystem::path& checkpoints);

// What a process that died left in a run folder or in its checkpoints/: *.tmp* and .trash-* go; returns their
// names.
std::vector<std::string> remove_leftovers(const std::filesystem::path& folder);
// Checkpoints later than `step` belong to a future that is being replaced: renamed to superseded-*, kept.
void set_aside_later(const std::filesystem::path& checkpoints, int64_t step);

}  // namespace octet
