#include "base/child_process.h"

#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "catch.h"
#include "error_of.h"

using namespace octet;
namespace fs = std::filesystem;

namespace {

struct Folder {
  Folder() {
    std::string name = (fs::temp_directory_path() / "octet-child-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { fs::remove_all(path); }
  fs::path path;
};
ChildStart shell(const std::string& script, const fs::path& output) {
  return {"/bin/sh", {"sh", "-c", script}, {{"OCTET_TEST_WORD", "told"}}, output};
}
int code_of(ChildProcess& child) {
  for (int i = 0; i < 2000 && !child.reap(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  REQUIRE_FALSE(child.running());
  return child.code();
}

}  // namespace

TEST_CASE("a child's output, exit code and environment are those of its program") {
  const Folder folder;
  ChildProcess child(shell("echo out $OCTET_TEST_WORD; echo err >&2; exit 7", folder.path / "log"));
  CHECK(code_of(child) == 7);
  CHECK(read_text(folder.path / "log", ExitCode::Data) == "out told\nerr\n");
  ChildProcess again(shell("echo more", folder.path / "log"));
  CHECK(code_of(again) == 0);
  CHECK(read_text(folder.path / "log", ExitCode::Data) == "out told\nerr\nmore\n");
}

TEST_CASE("signals reach a child, and it does not outlive whoever holds it") {
  const Folder folder;
  ChildProcess child(
      shell("trap 'exit 75' TERM; echo ready; while :; do sleep 0.01; done", folder.path / "log"));
  for (int i = 0; i < 2000 && read_text(folder.path / "log", ExitCode::Data).empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  child.send(SIGTERM);
  CHECK(code_of(child) == 75);
  ChildProcess killed(shell("kill -KILL $$", folder.path / "log"));
  CHECK(code_of(killed) == 128 + SIGKILL);
  {
    ChildProcess held(
        shell("sleep 1; echo survived > " + (folder.path / "witness").string(), folder.path / "log"));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  CHECK_FALSE(fs::exists(folder.path / "witness"));
}

TEST_CASE("a program that is not there is an error of whoever starts it") {
  const Folder folder;
  ChildStart start = shell("true", folder.path / "log");
  start.program = folder.path / "nothing";
  CHECK(std::string(error_of([&] { ChildProcess child(start); }).what())
            .find("nothing cannot be started: No such file") != std::string::npos);
}
