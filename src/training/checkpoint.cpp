#include "training/checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/files.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/text.h"
#include "training/checkpoint_parts.h"

namespace octet {
namespace fs = std::filesystem;

std::string checkpoint_name(int64_t step) { return fmt::format("step-{:08}", step); }

std::optional<int64_t> step_of(const std::string& name) {
  if (name.size() < 13 || name.size() > 20 || name.rfind("step-", 0) != 0 ||
      name.find_first_not_of("0123456789", 5) != std::string::npos)
    return {};
  return std::stoll(name.substr(5));
}

std::vector<CheckpointEntry> list_checkpoints(const fs::path& checkpoints) {
  std::vector<CheckpointEntry> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(checkpoints, ignored)) {
    const std::optional<int64_t> step = step_of(entry.path().filename().string());
    if (step && entry.is_directory(ignored)) found.push_back({*step, entry.path()});
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return found;
}

FoundCheckpoint find_newest_checkpoint(const fs::path& checkpoints) {
  const std::vector<CheckpointEntry> entries = list_checkpoints(checkpoints);
  std::string first_fault;
  const size_t tries = std::min<size_t>(entries.size(), 2);
  for (size_t back = 0; back < tries; ++back) {
    const fs::path& folder = entries[entries.size() - 1 - back].folder;
    try {
      FoundCheckpoint found{folder, verify_checkpoint(folder)};
      if (back > 0)
        log_warning("RESUMING FROM AN EARLIER CHECKPOINT, {}, because the newest is damaged ({})",
                    folder.filename().string(), first_fault);
      return found;
    } catch (const Error& error) {
      if (error.code() != ExitCode::Checkpoint) throw;
      log_warning("{}", error.what());
      if (back == 0) first_fault = error.what();
    }
  }
  if (entries.empty()) return {};
  throw Error(
      ExitCode::Checkpoint,
      entries.size() == 1
          ? fmt::format("the only checkpoint is damaged: {}", first_fault)
          : fmt::format("the newest two of {} checkpoints are damaged: {}", entries.size(), first_fault),
      "choose one yourself with --resume PATH (octet checkpoint verify tells which are whole), or start "
      "again with --overwrite");
}

std::vector<int64_t> removable(std::span<const int64_t> steps, const Retention& retention) {
  std::vector<int64_t> gone;
  const int64_t keep = std::max<int64_t>(retention.keep, 1), count = static_cast<int64_t>(steps.size());
  for (int64_t i = 0; i < count - keep; ++i) {
    const int64_t step = steps[static_cast<size_t>(i)];
    const bool permanent = retention.keep_every > 0 && step % retention.keep_every == 0;
    if (!permanent) gone.push_back(step);
  }
  return gone;
}

uint64_t checkpoint_bytes(std::span<const Payload> payloads) {
  uint64_t bytes = 0;
  for (const Payload& p : payloads)
    for (const TensorPiece& t : p.tensors)  // and its line in the header
      bytes += static_cast<uint64_t>(t.shape.elements()) * size_of(t.values.dtype) + 128;
  return bytes;
}

void require_disk(const fs::path& checkpoints, std::span<const Payload> payloads, ExitCode code) {
  constexpr uint64_t reserve = 1u << 20;
  const uint64_t bytes = checkpoint_bytes(payloads), available = free_bytes(checkpoints);
  if (available < bytes + reserve)
    throw Error(
        code,
        fmt::format("{}: {} free, a checkpoint takes {} and {} more are kept in reserve",
                    checkpoints.string(), human_bytes(available), human_bytes(bytes), human_bytes(reserve)),
        "free disk space, or choose a run.output on another disk");
}

namespace {

bool is_finite(const Tensor& values, int64_t i) {
  switch (values.dtype) {
    case DType::F32:
      return std::isfinite(values.as<float>()[i]);
    case DType::BF16:
      return (values.as<uint16_t>()[i] & 0x7f80u) != 0x7f80u;
    case DType::F16:
      return (values.as<uint16_t>()[i] & 0x7c00u) != 0x7c00u;
    default:
      return true;
  }
}

void refuse_nonfinite(const Payload& masters, int64_t step) {
  for (const TensorPiece& t : masters.tensors) {
    const int64_t n = t.values.elements();
    for (int64_t i = 0; i < n; ++i)
      if (!is_finite(t.values, i))
        throw Error(ExitCode::Checkpoint,
                    fmt::format("step {}: {}[{}] is {}: a checkpoint with non-finite weights is not saved",
                                step, t.name, t.begin + i,
                                t.values.dtype == DType::F32 ? fmt::format("{}", t.values.as<float>()[i])
                                                             : std::string("infinite or NaN")),
                    "the newest checkpoint on disk is from before; resume from it");
  }
}

void write_manifest(const fs::path& folder, const Manifest& manifest) {
  const std::string text = to_text(manifest);
  FileWriter writer(folder / manifest_file, ExitCode::Checkpoint);
  writer.write(text.data(), text.size());
  writer.close();
  sync_folder(folder, ExitCode::Checkpoint);
}

constexpr const char* former_suffix = ".former";

bool is_whole(const fs::path& folder) {
  try {
    verify_checkpoint(folder);
    return true;
  } catch (const Error& error) {
    log_warning("{}", error.what());
    return false;
  }
}

// `fresh` gets the name of the checkpoint `old`, which is removed only once the new one is verified. A kill
// between any two operations leaves a whole one under that name, or one that restore_former() brings back.
void replace_checkpoint(const fs::path& fresh, const fs::path& old) {
  fs::path aside = fresh;  // *.tmp-*: a leftover as soon as the names are exchanged
  const bool exchanged = exchange_durably(fresh, old, ExitCode::Checkpoint);
  try {
    if (!exchanged) {
      aside = old.string() + former_suffix;
      rename_durably(old, aside, ExitCode::Checkpoint);
      rename_durably(fresh, old, ExitCode::Checkpoint);
    }
    verify_checkpoint(old);
  } catch (...) {
    std::error_code ignored;
    if (exchanged) {
      try {
        exchange_durably(fresh, old, ExitCode::Checkpoint);
      } catch (const Error& error) {  // no way back now: restore_former() decides between the two
        log_warning("{}", error.what());
        fs::rename(aside, old.string() + former_suffix, ignored);
      }
    } else {
      if (!fs::exists(fresh, ignored)) rename_durably(old, fresh, ExitCode::Checkpoint);
      if (fs::exists(aside, ignored)) rename_durably(aside, old, ExitCode::Checkpoint);
    }
    throw;
  }
  try {  // the new one is whole: an old one that cannot be removed costs space, not the save
    remove_durably(aside, ExitCode::Checkpoint);
  } catch (const Error& error) {
    log_warning("{}", error.what());
  }
}

}  // namespace

fs::path write_checkpoint(const fs::path& checkpoints, Manifest manifest, std::span<const Payload> payloads) {
  RankGroup alone;
  return write_checkpoint(checkpoints, std::move(manifest), payloads, alone);
}

fs::path write_checkpoint(const fs::path& checkpoints, Manifest manifest, std::span<const Payload> payloads,
                          RankGroup& group) {
  static std::atomic<unsigned> saves{0};
  const int64_t step = manifest.state.step;
  const std::string name = fmt::format("save/{}/{}", step, group.exchanges++);
  CheckpointParts parts(payloads, group);
  // Nobody touches the disk before everybody's weights are known to be worth it.
  parts.agree(name, [&] {
    for (const Payload& p : payloads)
      if (p.file == "masters.safetensors") refuse_nonfinite(p, step);
  });
  const fs::path final_path = checkpoints / checkpoint_name(step);
  fs::path made;  // by this process
  try {
    const std::vector<std::string> created = together(group, name + "/created", [&]() -> std::string {
      if (!group.leads()) return {};
      require_disk(checkpoints, payloads, ExitCode::Checkpoint);
      const fs::path folder =
          checkpoints / fmt::format("{}.tmp-{}-{}", checkpoint_name(step), getpid(), saves++);
      std::error_code error;
      if (!fs::create_directory(folder, error))
        throw Error(ExitCode::Checkpoint, fmt::format("{}: {}", folder.string(), error.message()),
                    "check permissions and free space of the run's folder");
      made = folder;
      parts.create(folder);
      return folder.filename().string();
    });
    const fs::path temporary = checkpoints / created.at(0);
    parts.write(name, temporary);
    together(group, name + "/saved", [&]() -> std::string {
      if (!group.leads()) return {};
      manifest.files = parts.files(temporary);
      write_manifest(temporary, manifest);
      restore_former(checkpoints);
      std::error_code error;
      if (fs::exists(final_path, error)) {
        replace_checkpoint(temporary, final_path);
      } else {
        rename_durably(temporary, final_path, ExitCode::Checkpoint);
        verify_checkpoint(final_path);
      }
      return {};
    });
    return final_path;
  } catch (...) {
    try {  // a partial folder only costs space: failing to remove it must not hide the first fault
      std::error_code ignored;
      if (!made.empty() && fs::exists(made, ignored)) remove_durably(made, ExitCode::Checkpoint);
    } catch (const Error& error) {
      log_warning("{}", error.what());
    }
    throw;
  }
}

void restore_former(const fs::path& checkpoints) {
  std::error_code ignored;
  std::vector<fs::path> formers;
  for (const auto& entry : fs::directory_iterator(checkpoints, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("step-", 0) == 0 && name.ends_with(former_suffix)) formers.push_back(entry.path());
  }
  for (const fs::path& former : formers) {
    fs::path name = former;
    name.replace_extension();
    if (fs::exists(name, ignored)) {
      const bool whole = is_whole(name);
      remove_durably(whole ? former : name, ExitCode::Checkpoint);
      if (whole) continue;
    }
    rename_durably(former, name, ExitCode::Checkpoint);
    log_warning("{} was being replaced when its process died: it is back", name.filename().string());
  }
}

std::vector<std::string> remove_leftovers(const fs::path& folder) {
  std::vector<std::string> removed;
  std::error_code ignored;
  std::vector<fs::path> candidates;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    const bool ours = name.rfind("step-", 0) == 0 || name.rfind("status.json", 0) == 0 ||
                      name.rfind("config.json", 0) == 0 || name.rfind("metrics.jsonl", 0) == 0;
    if ((ours && name.find(".tmp") != std::string::npos) || name.rfind(".trash-", 0) == 0)
      candidates.push_back(entry.path());
  }
  std::sort(candidates.begin(), candidates.end());
  for (const fs::path& path : candidates) {
    fs::remove_all(path, ignored);
    if (ignored)
      log_warning("{}: {}", path.string(), ignored.message());
    else
      removed.push_back(path.filename().string());
  }
  return removed;
}

void set_aside_later(const fs::path& checkpoints, int64_t step) {
  for (const CheckpointEntry& entry : list_checkpoints(checkpoints)) {
    if (entry.step <= step) continue;
    fs::path aside = checkpoints / ("superseded-" + entry.folder.filename().string());
    std::error_code ignored;
    for (int n = 2; fs::exists(aside, ignored); ++n)
      aside = checkpoints / fmt::format("superseded-{}-{}", entry.folder.filename().string(), n);
    log_warning("{} is later than step {}, where this run goes on: kept as {}",
                entry.folder.filename().string(), step, aside.filename().string());
    rename_durably(entry.folder, aside, ExitCode::Checkpoint);
  }
}

}  // namespace octet
