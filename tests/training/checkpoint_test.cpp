#include "training/checkpoint.h"

#include <cmath>

#include "base/files.h"
#include "base/hash.h"
#include "base/text.h"
#include "standard_error.h"
#include "training/helpers.h"
#include "training/saver.h"

using namespace octet;
using namespace octet::testing;
namespace fs = std::filesystem;

TEST_CASE("a checkpoint reads back and its bytes depend on its content alone") {
  const TemporaryFolder a, b;
  const SmallState state;
  const fs::path one = write_checkpoint(a.path, small_manifest(7), state.payloads);
  const fs::path two = write_checkpoint(b.path, small_manifest(7), state.payloads);
  CHECK(one.filename() == "step-00000007");
  for (const char* file : {"masters.safetensors", "moments.safetensors", manifest_file})
    CHECK(bytes_of(one / file) == bytes_of(two / file));
  const Manifest m = verify_checkpoint(one);
  CHECK(m.state.step == 7);
  CHECK(m.state.spike_history == small_manifest(7).state.spike_history);  // doubles survive exactly
  CHECK(m.config["run"]["name"] == "small");
  REQUIRE(m.files.size() == 2);
  CHECK(m.files[0].bytes == fs::file_size(one / "masters.safetensors"));

  const SmallState other(2.0f);  // the negative control: other weights, other bytes
  const TemporaryFolder c;
  CHECK(bytes_of(write_checkpoint(c.path, small_manifest(7), other.payloads) / manifest_file) !=
        bytes_of(one / manifest_file));
}

TEST_CASE("one changed byte anywhere in any file is found and the file is named") {
  const TemporaryFolder folder;
  const SmallState state;
  const fs::path checkpoint = write_checkpoint(folder.path, small_manifest(7), state.payloads);
  for (const char* file : {"masters.safetensors", "moments.safetensors", manifest_file}) {
    const std::string original = bytes_of(checkpoint / file);
    for (size_t i = 0; i < original.size(); ++i) {
      std::string damaged = original;
      damaged[i] = static_cast<char>(damaged[i] ^ 0x20);
      put_bytes(checkpoint / file, damaged);
      const std::string error = error_of([&] { verify_checkpoint(checkpoint); });
      if (error.find(file) == std::string::npos) FAIL(file << ", byte " << i << ": \"" << error << '"');
    }
    put_bytes(checkpoint / file, original.substr(0, original.size() - 1));
    CHECK(error_of([&] { verify_checkpoint(checkpoint); }).find(file) != std::string::npos);
    fs::remove(checkpoint / file);
    CHECK(error_of([&] { verify_checkpoint(checkpoint); }).find(file) != std::string::npos);
    put_bytes(checkpoint / file, original);
    CHECK_NOTHROW(verify_checkpoint(checkpoint));  // whole again
  }
}

TEST_CASE("a checkpoint under the name of another step is refused, and both steps named") {
  const TemporaryFolder folder;
  const SmallState state;
  const fs::path saved = write_checkpoint(folder.path, small_manifest(3), state.payloads);
  const fs::path wrong = folder.path / "step-00000009", other = folder.path / "kept";
  fs::rename(saved, wrong);
  for (const fs::path& path : {wrong, wrong / ""}) {
    const std::string error = error_of([&] { verify_checkpoint(path); });
    CHECK(error.find("is called step-00000009, its manifest is of step 3") != std::string::npos);
  }
  fs::rename(wrong, other);  // a name that claims no step
  CHECK(verify_checkpoint(other).state.step == 3);
}

TEST_CASE("a checkpoint of a newer format is named as such") {
  std::string text = to_text(small_manifest(7));
  Json j = Json::parse(text);
  j.erase("checksum");
  j["format"] = checkpoint_format + 1;
  // Sealed as a newer binary would: the checksum rule is the same for every format.
  const std::string body = j.dump(2);
  j["checksum"] = hex(hash64(body.data(), body.size()));
  CHECK(error_of([&] { parse_manifest(j.dump(2) + "\n", "m"); }).find("format 2, written by octet") !=
        std::string::npos);
  CHECK(error_of([&] { parse_manifest(text, "m"); }).empty());
}

TEST_CASE("the newest whole checkpoint is found, more than one damaged needs consent") {
  const TemporaryFolder folder;
  const SmallState state;
  CHECK(find_newest_checkpoint(folder.path).folder.empty());
  for (const int64_t step : {10, 20, 30}) write_checkpoint(folder.path, small_manifest(step), state.payloads);
  fs::create_directory(folder.path / "step-00000040.tmp-1-0");
  fs::create_directory(folder.path / "my notes");
  CHECK(find_newest_checkpoint(folder.path).manifest.state.step == 30);

  put_bytes(folder.path / "step-00000030" / "moments.safetensors", "");
  CHECK(find_newest_checkpoint(folder.path).manifest.state.step == 20);
  fs::remove(folder.path / "step-00000020" / manifest_file);
  CHECK(error_of([&] { find_newest_checkpoint(folder.path); }).find("newest two of 3") != std::string::npos);
}

TEST_CASE("retention keeps the newest and the permanent ones") {
  const std::vector<int64_t> steps = {10, 20, 30, 40, 50};
  CHECK(removable(steps, {2, 0}) == std::vector<int64_t>{10, 20, 30});
  CHECK(removable(steps, {2, 20}) == std::vector<int64_t>{10, 30});
  CHECK(removable(steps, {9, 0}).empty());
  CHECK(removable(steps, {0, 0}) == std::vector<int64_t>{10, 20, 30, 40});  // never the newest
}

TEST_CASE("older checkpoints go only after a newer one is whole, foreign entries stay") {
  const TemporaryFolder folder;
  const SmallState state;
  fs::create_directory(folder.path / "step-keep-this");
  CheckpointSaver saver(folder.path, {1, 0}, -1);
  saver.start(small_manifest(10), state.payloads);
  CHECK(saver.wait()->error.empty());
  {
    set_file_hook([](FileOperation operation, const fs::path& path) {
      if (operation == FileOperation::Sync) throw Error(ExitCode::Checkpoint, path.string() + ": injected");
    });
    saver.start(small_manifest(20), state.payloads);
    CHECK(saver.wait()->error.find("injected") != std::string::npos);
    set_file_hook({});
  }
  CHECK(saver.newest() == 10);
  REQUIRE(list_checkpoints(folder.path).size() == 1);
  CHECK(list_checkpoints(folder.path)[0].step == 10);
  saver.start(small_manifest(30), state.payloads);
  CHECK(saver.wait()->error.empty());
  REQUIRE(list_checkpoints(folder.path).size() == 1);
  CHECK(list_checkpoints(folder.path)[0].step == 30);
  CHECK(fs::exists(folder.path / "step-keep-this"));
  CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 2);  // no leftovers
}

TEST_CASE("a save is refused before it writes when the disk has too little room") {
  const TemporaryFolder folder;
  const SmallState state;
  const uint64_t needed = checkpoint_bytes(state.payloads) + (1u << 20);
  int operations = 0;
  set_file_hook([&](FileOperation, const fs::path&) { ++operations; });
  assume_file_system({needed - 1, true});
  const std::string error =
      error_of([&] { write_checkpoint(folder.path, small_manifest(1), state.payloads); });
  CHECK(error.find(fmt::format("1.00 MiB free, a checkpoint takes {} and 1.00 MiB more are kept",
                               human_bytes(checkpoint_bytes(state.payloads)))) != std::string::npos);
  CHECK(operations == 0);
  CHECK(fs::is_empty(folder.path));
  assume_file_system({needed, true});
  CHECK_NOTHROW(write_checkpoint(folder.path, small_manifest(1), state.payloads));
  CHECK(operations > 0);
  assume_file_system({});
  set_file_hook({});
}

TEST_CASE("a save onto a checkpoint that is there replaces it only when the new one verifies") {
  for (const bool exchange : {true, false}) {
    INFO("exchange " << exchange);
    const TemporaryFolder folder;
    const SmallState first(1.0f), second(2.0f);
    const fs::path path = folder.path / "step-00000010";
    write_checkpoint(folder.path, small_manifest(10), first.payloads);
    const std::string before = bytes_of(path / "masters.safetensors");
    assume_file_system({{}, exchange});
    // The new one is damaged between its rename and its verification.
    bool damaged = false;
    set_file_hook([&](FileOperation operation, const fs::path& at) {
      if (operation != FileOperation::SyncFolder || at != folder.path || damaged) return;
      damaged = fs::exists(path) && bytes_of(path / "masters.safetensors") != before;
      if (damaged) put_bytes(path / "masters.safetensors", "");
    });
    CHECK(error_of([&] {
            write_checkpoint(folder.path, small_manifest(10), second.payloads);
          }).find("masters.safetensors") != std::string::npos);
    set_file_hook({});
    CHECK(damaged);
    CHECK_NOTHROW(verify_checkpoint(path));
    CHECK(bytes_of(path / "masters.safetensors") == before);
    CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 1);
    write_checkpoint(folder.path, small_manifest(10), second.payloads);
    CHECK(bytes_of(path / "masters.safetensors") != before);
    CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 1);
    assume_file_system({});
  }
}

TEST_CASE("a checkpoint that was being replaced is back, unless the new one is whole") {
  const TemporaryFolder folder;
  const SmallState first(1.0f), second(2.0f);
  const fs::path path = folder.path / "step-00000010", former = folder.path / "step-00000010.former";
  write_checkpoint(folder.path, small_manifest(10), first.payloads);
  const std::string before = bytes_of(path / "masters.safetensors");
  fs::rename(path, former);
  CHECK(count_of(warnings_of([&] { restore_former(folder.path); }), "it is back") == 1);
  CHECK(bytes_of(path / "masters.safetensors") == before);
  fs::rename(path, former);
  write_checkpoint(folder.path / "", small_manifest(20), second.payloads);  // restores on its way
  CHECK(bytes_of(path / "masters.safetensors") == before);
  fs::copy(path, former, fs::copy_options::recursive);
  put_bytes(path / "masters.safetensors", "");
  restore_former(folder.path);
  CHECK(bytes_of(path / "masters.safetensors") == before);
  fs::copy(path, former, fs::copy_options::recursive);
  put_bytes(former / "masters.safetensors", "");
  restore_former(folder.path);
  CHECK(bytes_of(path / "masters.safetensors") == before);
  CHECK_FALSE(fs::exists(former));
}

TEST_CASE("weights that are not finite are never saved as a good checkpoint") {
  const TemporaryFolder folder;
  SmallState state;
  state.weight[4] = std::nanf("");
  CHECK(error_of([&] {
          write_checkpoint(folder.path, small_manifest(7), state.payloads);
        }).find("head.weight[4]") != std::string::npos);
  CHECK(fs::is_empty(folder.path));
  state.weight[4] = 0;
  CHECK_NOTHROW(write_checkpoint(folder.path, small_manifest(7), state.payloads));
}

TEST_CASE("leftovers of a dead process are removed, later checkpoints set aside") {
  const TemporaryFolder folder;
  const SmallState state;
  for (const int64_t step : {10, 20}) write_checkpoint(folder.path, small_manifest(step), state.payloads);
  fs::create_directories(folder.path / "step-00000030.tmp-9-0" / "deep");
  fs::create_directory(folder.path / ".trash-step-00000001-ab");
  fs::create_directory(folder.path / "notes.tmp");
  CHECK(remove_leftovers(folder.path) ==
        std::vector<std::string>{".trash-step-00000001-ab", "step-00000030.tmp-9-0"});
  CHECK(fs::exists(folder.path / "notes.tmp"));
  set_aside_later(folder.path, 10);
  CHECK(list_checkpoints(folder.path).size() == 1);
  CHECK_NOTHROW(verify_checkpoint(folder.path / "superseded-step-00000020"));
}
