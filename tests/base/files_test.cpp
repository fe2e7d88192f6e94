#include "base/files.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "catch.h"

using namespace octet;
namespace fs = std::filesystem;

namespace {

struct TemporaryFolder {
  fs::path path;
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "octet-test-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()));
    path = name;
  }
  ~TemporaryFolder() { fs::remove_all(path); }
};

struct HookGuard {
  explicit HookGuard(FileHook hook) { set_file_hook(std::move(hook)); }
  ~HookGuard() { set_file_hook({}); }
};

size_t entries_in(const fs::path& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

}  // namespace

TEST_CASE("a written file reads back, at any offset") {
  const TemporaryFolder folder;
  const std::string text = "0123456789";
  {
    FileWriter writer(folder.path / "a", ExitCode::Checkpoint);
    writer.write(text.data(), 4);
    writer.write(text.data() + 4, 6);
    writer.write(nullptr, 0);
    CHECK(writer.bytes() == 10);
    writer.close();
    writer.close();  // harmless
    CHECK_THROWS_AS(writer.write("x", 1), Error);
  }
  const FileReader reader(folder.path / "a", ExitCode::Data);
  CHECK(reader.size() == 10);
  char part[4] = {};
  reader.read(3, part, 3);
  CHECK(std::string(part) == "345");
  CHECK(read_text(folder.path / "a", ExitCode::Data) == text);
}

TEST_CASE("a file gets its size first and its bytes in any order, by any number of writers") {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "a";
  {
    FileWriter writer(path);
    writer.write("01", 2);
    CHECK_THROWS_AS(writer.extend(1), Error);
    writer.extend(10);
    writer.close();
  }
  CHECK(read_text(path, ExitCode::Data) == std::string("01") + std::string(8, '\0'));
  int writes = 0, syncs = 0;
  {
    const HookGuard hook([&](FileOperation operation, const fs::path&) {
      writes += operation == FileOperation::Write;
      syncs += operation == FileOperation::Sync;
    });
    RegionWriter back(path), front(path);
    back.write(6, "6789", 4);
    front.write(2, "2345", 4);
    front.write(10, nullptr, 0);
    back.close();
    front.close();
    CHECK_THROWS_AS(front.write(2, "x", 1), Error);
  }
  CHECK(read_text(path, ExitCode::Data) == "0123456789");
  CHECK(writes == 4);  // torn in two, each
  CHECK(syncs == 2);

  RegionWriter writer(path);
  CHECK_THROWS_AS(writer.write(9, "xy", 2), Error);
  CHECK_THROWS_AS(writer.write(UINT64_MAX, "xy", 2), Error);
  CHECK(read_text(path, ExitCode::Data) == "0123456789");
  fs::create_symlink(path, folder.path / "link");
  for (const char* name : {"missing", "link", "."}) CHECK_THROWS_AS(RegionWriter(folder.path / name), Error);
}

TEST_CASE("reading past the end says how much is missing, with the caller's exit code") {
  const TemporaryFolder folder;
  write_atomically(folder.path / "a", "abc", ExitCode::Data);
  const FileReader reader(folder.path / "a", ExitCode::Data);
  char to[8];
  try {
    reader.read(1, to, 5);
    FAIL("read past the end");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Data);
    CHECK(std::string(error.what()).find("ends at byte 3; 3 more") != std::string::npos);
    CHECK_FALSE(error.hint().empty());
  }
  CHECK_THROWS_AS(reader.read(UINT64_MAX, to, 2), Error);
  CHECK_THROWS_AS(reader.read(uint64_t{1} << 63, to, 1), Error);
}

TEST_CASE("a file that shrinks while it is open is an error, not a crash") {
  const TemporaryFolder folder;
  write_atomically(folder.path / "a", std::string(10000, 'x'), ExitCode::Data);
  const FileReader reader(folder.path / "a", ExitCode::Data);
  fs::resize_file(folder.path / "a", 100);
  std::string to(10000, '\0');
  CHECK_THROWS_AS(reader.read(0, to.data(), to.size()), Error);
  CHECK(reader.size() == 100);
}

TEST_CASE("folders, pipes and missing files are named, not waited for") {
  const TemporaryFolder folder;
  REQUIRE(::mkfifo((folder.path / "pipe").c_str(), 0600) == 0);
  CHECK_THROWS_WITH(FileReader(folder.path, ExitCode::Data), contains_text("is a folder"));
  CHECK_THROWS_WITH(FileReader(folder.path / "pipe", ExitCode::Data), contains_text("pipe"));
  CHECK_THROWS_WITH(FileReader(folder.path / "nothing\n", ExitCode::Data), contains_text("nothing\\x0a"));
}

TEST_CASE("read_text has a limit") {
  const TemporaryFolder folder;
  write_atomically(folder.path / "a", "12345", ExitCode::Data);
  CHECK(read_text(folder.path / "a", ExitCode::Usage, 5) == "12345");
  CHECK_THROWS_AS(read_text(folder.path / "a", ExitCode::Usage, 4), Error);
}

TEST_CASE("a writer never overwrites and never follows a link") {
  const TemporaryFolder folder;
  write_atomically(folder.path / "a", "old", ExitCode::Data);
  CHECK_THROWS_WITH(FileWriter(folder.path / "a"), contains_text("exists"));
  fs::create_symlink(folder.path / "elsewhere", folder.path / "link");
  CHECK_THROWS_AS(FileWriter(folder.path / "link"), Error);
  CHECK_FALSE(fs::exists(folder.path / "elsewhere"));
  CHECK(read_text(folder.path / "a", ExitCode::Data) == "old");
}

TEST_CASE(
    "an atomic write shows the old text or the new, whatever operation fails, and leaves nothing behind") {
  const TemporaryFolder folder;
  write_atomically(folder.path / "a", "old", ExitCode::Checkpoint);
  int operations = 0;
  {
    const HookGuard guard([&](FileOperation, const fs::path&) { ++operations; });
    write_atomically(folder.path / "b", "new", ExitCode::Checkpoint);
  }
  CHECK(operations == 6);  // create, write, write, sync, rename, sync folder
  for (int failing = 0; failing < operations; ++failing) {
    int seen = 0;
    {
      const HookGuard guard([&](FileOperation, const fs::path& path) {
        if (seen++ == failing) throw Error(ExitCode::Checkpoint, "no space left on " + path.string());
      });
      CHECK_THROWS_AS(write_atomically(folder.path / "a", "new", ExitCode::Checkpoint), Error);
    }
    // Only the last operation, the sync of the folder, comes after the rename.
    CHECK(read_text(folder.path / "a", ExitCode::Checkpoint) == (failing == operations - 1 ? "new" : "old"));
    CHECK(entries_in(folder.path) == 2);
  }
}

TEST_CASE("a process killed before any operation of an atomic write leaves the old text") {
  const TemporaryFolder folder;
  write_atomically(folder.path / "a", "old", ExitCode::Checkpoint);
  for (int killed = 0; killed < 6; ++killed) {
    const pid_t child = ::fork();
    if (child == 0) {
      int seen = 0;
      set_file_hook([&](FileOperation, const fs::path&) {
        if (seen++ == killed) ::_exit(9);
      });
      write_atomically(folder.path / "a", "new", ExitCode::Checkpoint);
      ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WEXITSTATUS(status) == 9);
    CHECK(read_text(folder.path / "a", ExitCode::Checkpoint) == (killed == 5 ? "new" : "old"));
  }
}

TEST_CASE("with a hook every write can tear: half of the bytes are there when the second half fails") {
  const TemporaryFolder folder;
  int writes = 0;
  const HookGuard guard([&](FileOperation operation, const fs::path&) {
    if (operation == FileOperation::Write && ++writes == 2) throw Error(ExitCode::Checkpoint, "ENOSPC");
  });
  {
    FileWriter writer(folder.path / "a");
    CHECK_THROWS_AS(writer.write("0123456789", 10), Error);
  }
  CHECK(fs::file_size(folder.path / "a") == 5);
}

TEST_CASE("a write that the system cuts short and then refuses is reported with the path") {
  const TemporaryFolder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    // A limit on the size of files acts as a full disk does: a short write first, then an error.
    ::signal(SIGXFSZ, SIG_IGN);
    const struct rlimit limit = {100, 100};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      FileWriter writer(folder.path / "big");
      const std::string text(1000, 'x');
      writer.write(text.data(), text.size());
    } catch (const Error& error) {
      const std::string cause = error.what();
      const bool good =
          cause.find("big") != std::string::npos && cause.find("too large") != std::string::npos;
      ::_exit(good && error.code() == ExitCode::Checkpoint ? 5 : 6);
    }
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WEXITSTATUS(status) == 5);
  CHECK(fs::file_size(folder.path / "big") == 100);
}

TEST_CASE("removing a folder first takes its name away, then its contents, links are not followed") {
  const TemporaryFolder folder;
  fs::create_directories(folder.path / "keep");
  write_atomically(folder.path / "keep/precious", "x", ExitCode::Data);
  fs::create_directories(folder.path / "old/deep");
  write_atomically(folder.path / "old/deep/file", "y", ExitCode::Data);
  fs::create_directory_symlink(folder.path / "keep", folder.path / "old/link");
  std::vector<FileOperation> operations;
  {
    const HookGuard guard([&](FileOperation operation, const fs::path&) { operations.push_back(operation); });
    remove_durably(folder.path / "old", ExitCode::Checkpoint);
  }
  CHECK(operations.front() == FileOperation::Rename);
  CHECK_FALSE(fs::exists(folder.path / "old"));
  CHECK(fs::exists(folder.path / "keep/precious"));
  CHECK(entries_in(folder.path) == 1);
  CHECK_NOTHROW(remove_durably(folder.path / "old", ExitCode::Checkpoint));  // nothing there: nothing to do
}

TEST_CASE("an interrupted removal leaves trash that a later removal finishes") {
  const TemporaryFolder folder;
  fs::create_directories(folder.path / "old");
  write_atomically(folder.path / "old/a", "y", ExitCode::Data);
  write_atomically(folder.path / "old/b", "y", ExitCode::Data);
  {
    int removed = 0;
    const HookGuard guard([&](FileOperation operation, const fs::path&) {
      if (operation == FileOperation::Remove && ++removed == 2) throw Error(ExitCode::Checkpoint, "killed");
    });
    CHECK_THROWS_AS(remove_durably(folder.path / "old", ExitCode::Checkpoint), Error);
  }
  REQUIRE(entries_in(folder.path) == 1);
  const fs::path trash = *fs::directory_iterator(folder.path);
  CHECK(trash.filename().string().starts_with(".trash-old-"));
  remove_durably(trash, ExitCode::Checkpoint);
  CHECK(entries_in(folder.path) == 0);
}

TEST_CASE("two folders change names in one operation, or nothing happens") {
  const TemporaryFolder folder;
  const fs::path a = folder.path / "a", b = folder.path / "b";
  for (const fs::path& path : {a, b}) {
    fs::create_directory(path);
    write_atomically(path / "name", path.filename().string(), ExitCode::Data);
  }
  assume_file_system({{}, false});
  CHECK_FALSE(exchange_durably(a, b, ExitCode::Checkpoint));
  CHECK(read_text(a / "name", ExitCode::Data) == "a");
  assume_file_system({});
  std::vector<FileOperation> operations;
  bool exchanged = false;
  {
    const HookGuard guard([&](FileOperation operation, const fs::path&) { operations.push_back(operation); });
    exchanged = exchange_durably(a, b, ExitCode::Checkpoint);
  }
  CHECK(operations.front() == FileOperation::Exchange);
  CHECK(read_text(a / "name", ExitCode::Data) == (exchanged ? "b" : "a"));  // not every file system can
  CHECK(read_text(b / "name", ExitCode::Data) == (exchanged ? "a" : "b"));
  CHECK_THROWS_AS(exchange_durably(a, folder.path / "missing", ExitCode::Checkpoint), Error);
  const std::string before = read_text(a / "name", ExitCode::Data);
  {
    const HookGuard guard([&](FileOperation operation, const fs::path&) {
      if (operation == FileOperation::SyncFolder) throw Error(ExitCode::Checkpoint, "no sync");
    });
    if (exchanged) CHECK_THROWS_AS(exchange_durably(a, b, ExitCode::Checkpoint), Error);
  }
  CHECK(read_text(a / "name", ExitCode::Data) == before);
}

TEST_CASE("globs match in byte order, plain paths pass, nothing is nothing") {
  const TemporaryFolder folder;
  for (const char* name : {"b_2.bin", "b_10.bin", "B.bin", "c[1].bin", "x.txt"})
    write_atomically(folder.path / name, "x", ExitCode::Data);
  const std::string base = folder.path.string() + "/";
  CHECK(expand_glob(base + "b_*.bin") == std::vector<std::string>{base + "b_10.bin", base + "b_2.bin"});
  CHECK(expand_glob(base + "?.bin") == std::vector<std::string>{base + "B.bin"});
  CHECK(expand_glob(base + "[bB]*.bin").size() == 3);
  CHECK(expand_glob(base + "c[1].bin") == std::vector<std::string>{base + "c[1].bin"});
  CHECK(expand_glob(base + "none*").empty());
  CHECK(expand_glob(base + "missing") == std::vector<std::string>{base + "missing"});
}

TEST_CASE("a folder has one user at a time, and the refusal names the holder") {
  const TemporaryFolder folder;
  {
    const FolderLock lock(folder.path, ExitCode::Usage);
    CHECK_THROWS_WITH(FolderLock(folder.path, ExitCode::Usage),
                      contains_text("in use by process " + std::to_string(::getpid())));
  }
  CHECK(entries_in(folder.path) == 0);
  CHECK_NOTHROW(FolderLock(folder.path, ExitCode::Usage));
}

TEST_CASE("a lock whose process was killed is taken over") {
  const TemporaryFolder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    new FolderLock(folder.path, ExitCode::Usage);
    ::_exit(0);  // no destructor: the file stays behind
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(fs::exists(folder.path / ".octet.lock"));
  CHECK_NOTHROW(FolderLock(folder.path, ExitCode::Usage));
}

TEST_CASE("a lock left before a reboot is taken over, one of another machine is not") {
  const TemporaryFolder folder;
  char host[256] = {};
  REQUIRE(::gethostname(host, sizeof host - 1) == 0);
  std::ofstream(folder.path / ".octet.lock") << host << " 1 00000000-boot-before\n";
  CHECK_NOTHROW(FolderLock(folder.path, ExitCode::Usage));
  std::ofstream(folder.path / ".octet.lock") << "elsewhere 1 00000000-other-boot\n";
  CHECK_THROWS_WITH(FolderLock(folder.path, ExitCode::Usage), contains_text("process 1 on elsewhere"));
}

TEST_CASE("whether a folder is in use can be seen without taking its lock") {
  const TemporaryFolder folder;
  CHECK(lock_state(folder.path) == LockState::Free);
  {
    const FolderLock lock(folder.path, ExitCode::Usage);
    CHECK(lock_state(folder.path) == LockState::Held);
    CHECK(fs::exists(folder.path / ".octet.lock"));
  }
  CHECK(lock_state(folder.path) == LockState::Free);
  std::ofstream(folder.path / ".octet.lock") << "elsewhere 1 00000000-other-boot\n";
  CHECK(lock_state(folder.path) == LockState::Unknown);
  char host[256] = {};
  REQUIRE(::gethostname(host, sizeof host - 1) == 0);
  std::ofstream(folder.path / ".octet.lock") << host << " 1 00000000-boot-before\n";
  CHECK(lock_state(folder.path) == LockState::Free);
  CHECK(lock_state(folder.path / "missing") == LockState::Free);
}

TEST_CASE("the lock file is private and is not reached through a link") {
  const TemporaryFolder folder;
  {
    const FolderLock lock(folder.path, ExitCode::Usage);
    CHECK((fs::status(folder.path / ".octet.lock").permissions() & fs::perms::mask) ==
          (fs::perms::owner_read | fs::perms::owner_write));
  }
  fs::create_symlink(folder.path / "target", folder.path / ".octet.lock");
  CHECK_THROWS_AS(FolderLock(folder.path, ExitCode::Usage), Error);
  CHECK_FALSE(fs::exists(folder.path / "target"));
}

TEST_CASE("checked arithmetic notices overflow") {
  uint64_t result = 0;
  CHECK((multiply(uint64_t{1} << 32, (uint64_t{1} << 32) - 1, result) && result == 0xffffffff00000000u));
  CHECK_FALSE(multiply(uint64_t{1} << 32, uint64_t{1} << 32, result));
  CHECK((add(UINT64_MAX - 1, 1, result) && result == UINT64_MAX));
  CHECK_FALSE(add(UINT64_MAX, 1, result));
}

TEST_CASE("free_bytes answers for a folder and refuses what is not there") {
  CHECK(free_bytes(".") > 0);
  assume_file_system({12345, true});
  CHECK(free_bytes(".") == 12345);
  assume_file_system({});
  CHECK(free_bytes(".") != 12345);
  CHECK_THROWS_AS(free_bytes("/no/such/folder"), Error);
}
