// Files as checkpoints need them: every write checked, synced and replaceable by a fault.
// Every function throws Error (the caller's exit code) with the path and the system's reason.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace octet {

// Called before every operation that changes the disk; tests make it exit the process or throw (ENOSPC).
// While a hook is set, every write of two bytes or more is at least two operations: torn writes happen. Lock
// files do not count.
enum class FileOperation : uint8_t { Create, Write, Sync, Rename, Exchange, SyncFolder, Remove };
using FileHook = std::function<void(FileOperation, const std::filesystem::path&)>;
void set_file_hook(FileHook hook);  // empty = none; for tests and --inject

// What tests and --inject make of the file systems of this process.
struct FileSystemTraits {
  std::optional<uint64_t> free_bytes;  // empty: as much as there is
  bool exchange = true;                // false: two names cannot change places in one operation
};
void assume_file_system(const FileSystemTraits& traits);

// A new file, written front to back; an existing one is an error, never overwritten. close() syncs; a writer
// destroyed without close() leaves a partial file.
class FileWriter {
 public:
  explicit FileWriter(const std::filesystem::path& path, ExitCode code = ExitCode::Checkpoint);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  void write(const void* data, size_t bytes);
  // The file gets this size, and the disk space for it where the file system can reserve any; reads as zeros
  // until it is written. Not less than what is written.
  void extend(uint64_t bytes);
  void close();  // flush, fsync, close
  uint64_t bytes() const { return bytes_; }

 private:
  std::filesystem::path path_;
  ExitCode code_;
  int descriptor_ = -1;
  uint64_t bytes_ = 0;
};

// Writes somewhere into a file that is there and has its size already; several processes may do so at once.
// close() syncs.
class RegionWriter {
 public:
  explicit RegionWriter(const std::filesystem::path& path, ExitCode code = ExitCode::Checkpoint);
  ~RegionWriter();
  RegionWriter(const RegionWriter&) = delete;
  RegionWriter& operator=(const RegionWriter&) = delete;
  void write(uint64_t offset, const void* data, size_t bytes);  // Error(Internal) beyond the file's end
  void close();

 private:
  std::filesystem::path path_;
  ExitCode code_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

// Random reads that survive a file shrinking under them (pread, never mmap).
class FileReader {
 public:
  explicit FileReader(const std::filesystem::path& path, ExitCode code);
  ~FileReader();
  FileReader(FileReader&&) noexcept;
  FileReader& operator=(FileReader&&) = delete;
  uint64_t size() const;  // now, not when opened
  void read(uint64_t offset, void* data,
            size_t bytes) const;  // all of them, or Error; EIO and ESTALE are retried with back-off

 private:
  std::filesystem::path path_;
  ExitCode code_;
  int descriptor_ = -1;
};

std::string read_text(const std::filesystem::path& path, ExitCode code, size_t limit = 64u << 20);
void write_atomically(const std::filesystem::path& path, const std::string& text,
                      ExitCode code);  // temp, fsync, rename, fsync folder
void sync_folder(const std::filesystem::path& folder, ExitCode code);
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to, ExitCode code);
// Two names of one folder change places in one operation, so that neither is ever missing. False, and nothing
// done, where the file system cannot (renameat2(2), RENAME_EXCHANGE). After an Error they are as before.
bool exchange_durably(const std::filesystem::path& a, const std::filesystem::path& b, ExitCode code);
void remove_durably(const std::filesystem::path& path,
                    ExitCode code);  // folders first become .trash-*, then go; nothing there: nothing to do
uint64_t free_bytes(const std::filesystem::path& folder);

// Sorted matches of a shell pattern (*, ?, [..]); the path itself when it has none. Empty when nothing
// matches.
std::vector<std::string> expand_glob(const std::string& pattern);

// Exclusive use of a folder: a lock file with host, pid and boot id; a stale one (dead pid, other boot) is
// taken over.
class FolderLock {
 public:
  FolderLock(const std::filesystem::path& folder, ExitCode code);  // throws naming the holder
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

// Who holds the lock of a folder, without taking it.
enum class LockState : uint8_t {
  Free,     // nobody: no lock file, or that of a process that is gone
  Held,     // a process on this machine, or on one whose locks this machine sees
  Unknown,  // a process on another machine wrote it, or the lock file may not be read
};
LockState lock_state(const std::filesystem::path& folder);

// Checked arithmetic on sizes read from files.
bool multiply(uint64_t a, uint64_t b, uint64_t& product);  // false on overflow
bool add(uint64_t a, uint64_t b, uint64_t& sum);

}  // namespace octet
