#include "base/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <glob.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <system_error>
#include <thread>
#include <utility>

#include "base/text.h"

namespace octet {
namespace {

namespace fs = std::filesystem;

// The hook is process-wide because a checkpoint is written by several objects and a background thread.
std::mutex hook_mutex;
std::shared_ptr<const FileHook> hook;
FileSystemTraits assumed_traits;

FileSystemTraits current_traits() {
  const std::lock_guard lock(hook_mutex);
  return assumed_traits;
}

std::shared_ptr<const FileHook> current_hook() {
  const std::lock_guard lock(hook_mutex);
  return hook;
}
void announce(FileOperation operation, const fs::path& path) {
  if (const auto h = current_hook()) (*h)(operation, path);
}

std::string quoted(const fs::path& path) { return fmt::format("\"{}\"", escape_control(path.string())); }

std::string hint_for(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "free space on this disk or point the output to another one";
    case EACCES:
    case EPERM:
    case EROFS:
      return "check the owner and the permissions of the path";
    case ENOENT:
    case ENOTDIR:
      return "check the spelling and that the folder exists";
    case EEXIST:
      return "remove the existing file or choose another name";
    case EMFILE:
    case ENFILE:
      return "raise the limit of open files (ulimit -n)";
    case EIO:
    case ESTALE:
      return "the disk or the network file system reports a fault; see dmesg";
    default:
      return {};
  }
}

[[noreturn]] void fail(ExitCode code, const char* action, const fs::path& path, int error) {
  throw Error(code,
              fmt::format("cannot {} {}: {}", action, quoted(path), std::generic_category().message(error)),
              hint_for(error));
}

template <class Call>
auto uninterrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

int open_file(const fs::path& path, int flags, mode_t mode = 0) {
  return uninterrupted([&] { return ::open(path.c_str(), flags | O_CLOEXEC, mode); });
}

fs::path folder_of(const fs::path& path) {
  const fs::path parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

// Not guessable, so that nobody can prepare a file of that name in a shared folder.
std::string nonce() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}", device(), device());
}

bool transient(int error) { return error == EIO || error == ESTALE; }

struct Target {
  const fs::path& path;
  ExitCode code;
};

// `call` writes at most so many bytes and returns as write(2) does.
template <class Call>
void write_in_chunks(const Target& target, const void* data, size_t bytes, Call call) {
  constexpr size_t largest = size_t{16} << 20;
  const char* from = static_cast<const char*>(data);
  // With a hook every write becomes at least two, so that a fault can leave a torn one.
  const size_t chunk = current_hook() ? std::clamp<size_t>((bytes + 1) / 2, 1, largest) : largest;
  while (bytes > 0) {
    const size_t wanted = std::min(bytes, chunk);
    announce(FileOperation::Write, target.path);
    const ssize_t written = uninterrupted([&] { return call(from, wanted); });
    if (written < 0) fail(target.code, "write", target.path, errno);
    if (written == 0) fail(target.code, "write", target.path, ENOSPC);
    from += written;
    bytes -= static_cast<size_t>(written);
  }
}

void sync_and_close(const Target& target, int& descriptor) {
  if (descriptor < 0) return;
  announce(FileOperation::Sync, target.path);
  if (uninterrupted([&] { return ::fsync(descriptor); }) < 0) fail(target.code, "sync", target.path, errno);
  // Never retried: after EINTR Linux has closed the descriptor all the same.
  const int closed = ::close(std::exchange(descriptor, -1));
  if (closed < 0 && errno != EINTR) fail(target.code, "close", target.path, errno);
}

}  // namespace

void set_file_hook(FileHook new_hook) {
  auto replacement = new_hook ? std::make_shared<const FileHook>(std::move(new_hook)) : nullptr;
  const std::lock_guard lock(hook_mutex);
  hook = std::move(replacement);
}

void assume_file_system(const FileSystemTraits& traits) {
  const std::lock_guard lock(hook_mutex);
  assumed_traits = traits;
}

// ---- writing
// -----------------------------------------------------------------------------------------------

FileWriter::FileWriter(const fs::path& path, ExitCode code) : path_(path), code_(code) {
  announce(FileOperation::Create, path_);
  descriptor_ = open_file(path_, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
  if (descriptor_ < 0) fail(code_, "create", path_, errno);
}

FileWriter::~FileWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void FileWriter::write(const void* data, size_t bytes) {
  if (descriptor_ < 0) throw Error(ExitCode::Internal, fmt::format("write to {} after close", quoted(path_)));
  write_in_chunks({path_, code_}, data, bytes, [&](const char* from, size_t wanted) {
    const ssize_t written = ::write(descriptor_, from, wanted);
    if (written > 0) bytes_ += static_cast<uint64_t>(written);
    return written;
  });
}

void FileWriter::extend(uint64_t bytes) {
  if (descriptor_ < 0 || bytes < bytes_ || bytes > static_cast<uint64_t>(INT64_MAX))
    throw Error(ExitCode::Internal, fmt::format("{} cannot get {} bytes", quoted(path_), bytes));
  if (bytes == bytes_) return;
  announce(FileOperation::Write, path_);
  const auto size = static_cast<off_t>(bytes);
  // Not posix_fallocate(3): where the file system cannot reserve, that writes every block.
  if (uninterrupted([&] { return ::fallocate(descriptor_, 0, 0, size); }) == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS) fail(code_, "reserve the space of", path_, errno);
  if (uninterrupted([&] { return ::ftruncate(descriptor_, size); }) < 0) fail(code_, "extend", path_, errno);
}

void FileWriter::close() { sync_and_close({path_, code_}, descriptor_); }

RegionWriter::RegionWriter(const fs::path& path, ExitCode code) : path_(path), code_(code) {
  descriptor_ = open_file(path_, O_WRONLY | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor_ < 0) fail(code_, "open", path_, errno);
  struct stat status = {};
  if (::fstat(descriptor_, &status) < 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw Error(code_, fmt::format("{} is not a file", quoted(path_)));
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

RegionWriter::~RegionWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void RegionWriter::write(uint64_t offset, const void* data, size_t bytes) {
  if (descriptor_ < 0) throw Error(ExitCode::Internal, fmt::format("write to {} after close", quoted(path_)));
  uint64_t end = 0;
  if (!add(offset, bytes, end) || end > size_)
    throw Error(ExitCode::Internal,
                fmt::format("{} has {} bytes: {} at {} do not fit", quoted(path_), size_, bytes, offset));
  write_in_chunks({path_, code_}, data, bytes, [&](const char* from, size_t wanted) {
    const ssize_t written = ::pwrite(descriptor_, from, wanted, static_cast<off_t>(offset));
    if (written > 0) offset += static_cast<uint64_t>(written);
    return written;
  });
}

void RegionWriter::close() { sync_and_close({path_, code_}, descriptor_); }

void write_atomically(const fs::path& path, const std::string& text, ExitCode code) {
  const fs::path temporary = path.string() + ".tmp-" + nonce();
  try {
    FileWriter writer(temporary, code);
    writer.write(text.data(), text.size());
    writer.close();
    rename_durably(temporary, path, code);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

void sync_folder(const fs::path& folder, ExitCode code) {
  announce(FileOperation::SyncFolder, folder);
  const int descriptor = open_file(folder, O_RDONLY | O_DIRECTORY);
  if (descriptor < 0) fail(code, "open the folder", folder, errno);
  const int synced = uninterrupted([&] { return ::fsync(descriptor); });
  const int error = errno;
  ::close(descriptor);
  // Some network file systems cannot sync a folder and say EINVAL; there is nothing better to be had.
  if (synced < 0 && error != EINVAL) fail(code, "sync the folder", folder, error);
}

void rename_durably(const fs::path& from, const fs::path& to, ExitCode code) {
  announce(FileOperation::Rename, to);
  if (::rename(from.c_str(), to.c_str()) < 0) fail(code, "rename a file to", to, errno);
  sync_folder(folder_of(to), code);
  if (folder_of(from) != folder_of(to)) sync_folder(folder_of(from), code);
}

bool exchange_durably(const fs::path& a, const fs::path& b, ExitCode code) {
  if (!current_traits().exchange) return false;
  announce(FileOperation::Exchange, b);
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) < 0) {
    const int error = errno;
    if (error == EINVAL || error == ENOSYS || error == ENOTSUP) return false;
    fail(code, "exchange a file with", b, error);
  }
  try {
    sync_folder(folder_of(b), code);
  } catch (...) {  // who is told that it failed finds everything as it was
    ::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE);
    throw;
  }
  return true;
}

void remove_durably(const fs::path& path, ExitCode code) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  if (status.type() == fs::file_type::not_found) return;
  if (error) fail(code, "inspect", path, error.value());
  if (!fs::is_directory(status)) {
    announce(FileOperation::Remove, path);
    if (::unlink(path.c_str()) < 0 && errno != ENOENT) fail(code, "remove", path, errno);
    sync_folder(folder_of(path), code);
    return;
  }
  // The folder loses its name in one operation: nobody ever sees half of it under the old one.
  const fs::path clean = path.has_filename() ? path : path.parent_path();
  fs::path trash = clean;
  if (!clean.filename().string().starts_with(".trash-")) {
    trash = folder_of(clean) / (".trash-" + clean.filename().string() + "-" + nonce());
    rename_durably(clean, trash, code);
  }
  std::vector<fs::path> doomed{trash};
  for (fs::recursive_directory_iterator entry(trash, error), end; !error && entry != end;
       entry.increment(error))
    doomed.push_back(entry->path());
  if (error) fail(code, "list", trash, error.value());
  for (auto item = doomed.rbegin(); item != doomed.rend(); ++item) {  // children come after their folder
    announce(FileOperation::Remove, *item);
    if (::remove(item->c_str()) < 0 && errno != ENOENT) fail(code, "remove", *item, errno);
  }
  sync_folder(folder_of(trash), code);
}

// ---- reading
// -----------------------------------------------------------------------------------------------

FileReader::FileReader(const fs::path& path, ExitCode code) : path_(path), code_(code) {
  // O_NONBLOCK: opening a named pipe must not wait for its writer. Regular files do not notice.
  descriptor_ = open_file(path_, O_RDONLY | O_NONBLOCK);
  if (descriptor_ < 0) fail(code_, "open", path_, errno);
  struct stat status = {};
  if (::fstat(descriptor_, &status) < 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw Error(code_, fmt::format("{} is {}, not a file", quoted(path_),
                                   S_ISDIR(status.st_mode) ? "a folder" : "a device or a pipe"));
  }
}

FileReader::~FileReader() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

FileReader::FileReader(FileReader&& other) noexcept
    : path_(std::move(other.path_)), code_(other.code_), descriptor_(std::exchange(other.descriptor_, -1)) {}

uint64_t FileReader::size() const {
  struct stat status = {};
  if (::fstat(descriptor_, &status) < 0) fail(code_, "inspect", path_, errno);
  return static_cast<uint64_t>(status.st_size);
}

void FileReader::read(uint64_t offset, void* data, size_t bytes) const {
  uint64_t end = 0;
  if (!add(offset, bytes, end) || end > static_cast<uint64_t>(INT64_MAX))
    throw Error(code_,
                fmt::format("{}: {} bytes at offset {} lie beyond any file", quoted(path_), bytes, offset));
  constexpr int attempts = 6;  // waits 10, 20, .. 160 ms: about a third of a second in all
  char* to = static_cast<char*>(data);
  int failed = 0;
  while (bytes > 0) {
    const ssize_t got = uninterrupted([&] {
      return ::pread(descriptor_, to, std::min(bytes, size_t{1} << 30), static_cast<off_t>(offset));
    });
    if (got < 0) {
      const int error = errno;
      if (!transient(error) || ++failed == attempts) fail(code_, "read", path_, error);
      std::this_thread::sleep_for(std::chrono::milliseconds(10 << (failed - 1)));
      continue;
    }
    if (got == 0)
      throw Error(code_,
                  fmt::format("{} ends at byte {}; {} more were expected", quoted(path_), offset, bytes),
                  "the file was truncated or replaced; restore it");
    failed = 0;
    to += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<size_t>(got);
  }
}

std::string read_text(const fs::path& path, ExitCode code, size_t limit) {
  const FileReader reader(path, code);
  const uint64_t size = reader.size();
  if (size > limit)
    throw Error(code, fmt::format("{} has {}, more than the {} expected at most", quoted(path),
                                  human_bytes(size), human_bytes(limit)));
  std::string text(static_cast<size_t>(size), '\0');
  reader.read(0, text.data(), text.size());
  return text;
}

// ---- looking around
// ----------------------------------------------------------------------------------------

uint64_t free_bytes(const fs::path& folder) {
  if (const auto assumed = current_traits().free_bytes) return *assumed;
  struct statvfs status = {};
  if (uninterrupted([&] { return ::statvfs(folder.c_str(), &status); }) < 0)
    fail(ExitCode::Usage, "find the free space of", folder, errno);
  uint64_t bytes = 0;
  return multiply(status.f_bavail, status.f_frsize, bytes) ? bytes : UINT64_MAX;
}

std::vector<std::string> expand_glob(const std::string& pattern) {
  std::error_code error;
  // A path that exists is meant literally, brackets and all.
  if (pattern.find_first_of("*?[") == std::string::npos || fs::exists(pattern, error)) return {pattern};
  glob_t matches = {};
  const int result = ::glob(pattern.c_str(), GLOB_NOSORT | GLOB_NOESCAPE, nullptr, &matches);
  std::vector<std::string> paths;
  if (result == 0) paths.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  ::globfree(&matches);
  std::sort(paths.begin(), paths.end());  // by bytes: the same on every machine, whatever its locale
  return paths;
}

// ---- checked arithmetic
// ------------------------------------------------------------------------------------

bool multiply(uint64_t a, uint64_t b, uint64_t& product) { return !__builtin_mul_overflow(a, b, &product); }
bool add(uint64_t a, uint64_t b, uint64_t& sum) { return !__builtin_add_overflow(a, b, &sum); }

}  // namespace octet
