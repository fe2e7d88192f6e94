// Checkpoints that several ranks write together: the same bytes, and all ranks agree on how it ended.
#include <atomic>
#include <cmath>
#include <new>
#include <set>

#include "base/files.h"
#include "base/hash.h"
#include "comm/ranks.h"
#include "standard_error.h"
#include "training/checkpoint_parts.h"
#include "training/saver.h"
#include "training/team.h"

using namespace octet;
using namespace octet::testing;
namespace fs = std::filesystem;

namespace {

const std::vector<std::string> checkpoint_files = {"masters.safetensors", "moments.safetensors",
                                                   "scale_table.safetensors", manifest_file};

std::map<std::string, std::string> files_of(const fs::path& checkpoint) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(checkpoint))
    files[entry.path().filename().string()] = bytes_of(entry.path());
  return files;
}

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

std::vector<std::string> save(Team& team, int ranks, const fs::path& folder, const MadeUpState& state,
                              int64_t step) {
  return team.run([&](RankGroup& group) {
    const auto held = state.of(group.rank, ranks);
    write_checkpoint(folder, small_manifest(step), held.payloads, group);
  });
}
std::vector<std::string> save(int ranks, const fs::path& folder, const MadeUpState& state, int64_t step) {
  Team team(ranks);
  return save(team, ranks, folder, state, step);
}

std::vector<std::string> nothing(int ranks) { return std::vector<std::string>(static_cast<size_t>(ranks)); }

// Before the `number`-th change to a file by `rank`, from 1, `act` is called, and before every later one if
// it says so.
struct FaultOn {
  FaultOn(int rank, int number, std::function<void()> act, bool and_later = false) {
    set_file_hook([=, this](FileOperation, const fs::path&) {
      if (this_rank != rank) return;
      const int now = ++operations;
      if (now == number || (and_later && now > number)) act();
    });
  }
  ~FaultOn() { set_file_hook({}); }
  std::atomic<int> operations{0};
};

// Of rank 1 or 2 of three: a sync a file and two writes a tensor. Rank 1 has pieces of four tensors and
// writes one that all hold, rank 2 writes two of those and has no piece.
int own_operations(int rank) { return 3 + 2 * (rank == 1 ? 4 + 1 : 2); }

struct Killed {};  // not an exception that anything recovers from

}  // namespace

TEST_CASE("any number of ranks writes the bytes that one process writes") {
  const MadeUpState state;
  const TemporaryFolder alone;
  REQUIRE(save(1, alone.path, state, 7) == nothing(1));
  const auto expected = files_of(alone.path / "step-00000007");
  REQUIRE(expected.size() == checkpoint_files.size());
  for (const int ranks : {2, 3, 4, 7}) {
    INFO(ranks << " ranks");
    const TemporaryFolder folder;
    CHECK(save(ranks, folder.path, state, 7) == nothing(ranks));
    CHECK(files_of(folder.path / "step-00000007") == expected);
    CHECK(names_in(folder.path) == std::set<std::string>{"step-00000007"});
  }
  const TemporaryFolder other;  // the negative control: another state, other bytes
  CHECK(save(2, other.path, MadeUpState(2), 7) == nothing(2));
  CHECK(files_of(other.path / "step-00000007") != expected);
}

TEST_CASE("the work is spread: every rank writes some of what all hold") {
  const MadeUpState state;
  const TemporaryFolder folder;
  std::array<std::atomic<int>, 3> writes{};
  set_file_hook([&](FileOperation operation, const fs::path& path) {
    if (operation == FileOperation::Write && path.filename() == "scale_table.safetensors")
      ++writes[static_cast<size_t>(this_rank)];
  });
  CHECK(save(2, folder.path, state, 7) == nothing(2));
  set_file_hook({});
  CHECK(writes[0] == 5);  // two of the header, one for the size, two of a tensor
  CHECK(writes[1] == 2);
}

TEST_CASE("a checkpoint is read by any number of ranks, whoever wrote it") {
  const MadeUpState state, other(99);
  for (const int writers : {1, 3}) {
    const TemporaryFolder folder;
    REQUIRE(save(writers, folder.path, state, 7) == nothing(writers));
    for (const int readers : {1, 2, 3, 4})
      for (int rank = 0; rank < readers; ++rank) {
        INFO(writers << " wrote, " << rank << " of " << readers << " reads");
        const auto expected = state.of(rank, readers);
        auto held = other.of(rank, readers);
        REQUIRE(held.memory != expected.memory);
        for (const Payload& payload : held.payloads) read_payload(folder.path / "step-00000007", payload);
        CHECK(held.memory == expected.memory);
      }
    auto held = state.of(1, 2);
    held.piece("large").shape = {3, 18000};
    CHECK(error_of([&] {
            read_payload(folder.path / "step-00000007", held.payloads[0]);
          }).find("large is F32 [3, 18001], this run has F32 [3, 18000]") != std::string::npos);
    held.piece("large").shape = {3, 18001};
    held.piece("large").begin += 16384;  // reaches beyond the tensor, though not beyond the file
    CHECK(error_of([&] {
            read_payload(folder.path / "step-00000007", held.payloads[0]);
          }).find("\"large\" has 216012 bytes") != std::string::npos);
  }
}

TEST_CASE("pieces that do not make up the whole are no checkpoint") {
  const MadeUpState state;
  const auto error_with = [&](const std::function<void(MadeUpState::Held&, int)>& change) {
    const TemporaryFolder folder;
    Team team(2);
    const auto errors = team.run([&](RankGroup& group) {
      auto held = state.of(group.rank, 2);
      change(held, group.rank);
      write_checkpoint(folder.path, small_manifest(7), held.payloads, group);
    });
    CHECK(errors[0] == errors[1]);
    CHECK(fs::is_empty(folder.path) != errors[0].empty());
    return errors[0];
  };
  CHECK(error_with([](auto&, int) {}).empty());
  CHECK(error_with([](auto& held, int rank) {  // a hole
          if (rank == 1) held.piece("large").values.shape = {16384};
        })
            .find("masters.safetensors: the ranks wrote") != std::string::npos);
  CHECK(error_with([](auto& held, int rank) {  // as many, but one piece twice
          if (rank == 1) held.piece("large.first").begin -= 16384;
        })
            .find("moments.safetensors: rank 0 does not read what the ranks wrote") != std::string::npos);
  CHECK(error_with([](auto& held, int rank) {  // beyond the end
          if (rank == 1) held.piece("large").begin += 16384;
        })
            .find("rank 1: checkpoint: elements [49152, ") != std::string::npos);
  CHECK(error_with([](auto& held, int rank) {
          if (rank == 1) held.piece("gain").name = "bias";
        }).find("rank 1 has other tensors to save than rank 0") != std::string::npos);
}

TEST_CASE("a byte that is not on disk as its rank wrote it fails the save") {
  const MadeUpState state;
  const TemporaryFolder folder;
  for (const size_t place : {size_t{8}, size_t{100000}, size_t{216012}}) {
    INFO("byte " << place);
    Team team(2);
    team.on_complete = [&](const std::string& name) {
      if (!name.ends_with("/written")) return;
      for (const std::string& draft : names_in(folder.path)) {
        const fs::path path = folder.path / draft / "masters.safetensors";
        std::string bytes = bytes_of(path);
        bytes[place] = static_cast<char>(bytes[place] ^ 4);
        put_bytes(path, bytes);
      }
    };
    const auto errors = save(team, 2, folder.path, state, 7);
    CHECK(errors[0].find("does not read what the ranks wrote") != std::string::npos);
    CHECK(errors[0] == errors[1]);
    CHECK(fs::is_empty(folder.path));
  }
}

TEST_CASE("sums of parts add up to the sum of the whole, and see every bit") {
  std::string bytes(61, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(hash64(&i, sizeof i));
  for (const uint64_t offset : {uint64_t{0}, uint64_t{3}, uint64_t{4096}}) {
    const uint64_t whole = place_sum(offset, bytes.data(), bytes.size());
    for (size_t a = 0; a <= bytes.size(); ++a)
      for (size_t b = a; b <= bytes.size(); ++b)
        if (place_sum(offset, bytes.data(), a) + place_sum(offset + a, bytes.data() + a, b - a) +
                place_sum(offset + b, bytes.data() + b, bytes.size() - b) !=
            whole)
          FAIL("cut at " << a << " and " << b);
    for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
      std::string changed = bytes;
      changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ 1 << bit % 8);
      if (place_sum(offset, changed.data(), changed.size()) == whole) FAIL("bit " << bit);
    }
    CHECK(place_sum(offset + 8, bytes.data(), bytes.size()) != whole);
  }
}

TEST_CASE("weights that are not finite on one rank are saved by none, and nothing is written") {
  const MadeUpState state;
  const TemporaryFolder folder;
  std::atomic<int> operations{0};
  set_file_hook([&](FileOperation, const fs::path&) { ++operations; });
  Team team(3);
  const auto errors = team.run([&](RankGroup& group) {
    auto held = state.of(group.rank, 3);
    if (group.rank == 1) held.piece("large").values.as<float>()[2] = std::nanf("");
    write_checkpoint(folder.path, small_manifest(7), held.payloads, group);
  });
  set_file_hook({});
  for (const std::string& error : errors)
    CHECK(error.find("rank 1: step 7: large[32770] is nan") != std::string::npos);
  CHECK(operations == 0);
  CHECK(fs::is_empty(folder.path));
}

TEST_CASE(
    "a fault on any rank at any change to a file is the same failed save on all, and the next one works") {
  const MadeUpState before(5), after(6);
  const TemporaryFolder reference;
  save(1, reference.path, before, 10);
  const auto old_files = files_of(reference.path / "step-00000010");
  const int ranks = 3;
  for (int rank = 0; rank < ranks; ++rank) {
    int number = 1;
    for (;; ++number) {
      INFO("rank " << rank << ", file operation " << number);
      const TemporaryFolder folder;
      fs::copy(reference.path, folder.path, fs::copy_options::recursive);
      std::vector<std::string> errors;
      bool reached;
      {
        const FaultOn fault(rank, number, [&] {
          if (number % 2) throw std::bad_alloc();
          throw Error(ExitCode::Checkpoint, "no space", "free some");
        });
        errors = save(ranks, folder.path, after, 20);
        reached = fault.operations >= number;
      }
      if (!reached) {
        CHECK(errors == nothing(ranks));
        break;
      }
      REQUIRE(errors[0] == errors[1]);
      REQUIRE(errors[0] == errors[2]);
      REQUIRE(errors[0] ==
              fmt::format("rank {}: {}", rank, number % 2 ? "std::bad_alloc" : "no space | free some"));
      REQUIRE(files_of(folder.path / "step-00000010") == old_files);
      std::set<std::string> names = names_in(folder.path);
      names.erase("step-00000020");  // in place already, when the fault came while its folder was synced
      REQUIRE(names == std::set<std::string>{"step-00000010"});
      REQUIRE(save(ranks, folder.path, after, 20) == nothing(ranks));
    }
    if (rank > 0) CHECK(number == 1 + own_operations(rank));
    // Rank 0 makes three files with header and size as well, the manifest and the rename.
    if (rank == 0) CHECK(number > 3 * 5 + 3);
  }
}

TEST_CASE("a rank killed at any change to a file leaves a whole checkpoint, and the others are told") {
  const MadeUpState before(5), after(6);
  const TemporaryFolder reference;
  save(1, reference.path, before, 10);
  const auto old_files = files_of(reference.path / "step-00000010");
  const int ranks = 3;
  for (const int64_t step : {20, 10}) {  // 10: onto a checkpoint that is there
    const TemporaryFolder made;
    save(1, made.path, after, step);
    const auto new_files = files_of(made.path / checkpoint_name(step));
    for (int rank = 0; rank < ranks; ++rank) {
      int number = 1, kept = 0;
      for (;; ++number) {
        INFO("step " << step << ", rank " << rank << ", file operation " << number);
        const TemporaryFolder folder;
        fs::copy(reference.path, folder.path, fs::copy_options::recursive);
        std::vector<std::string> errors;
        {
          const FaultOn fault(
              rank, number, [] { throw Killed(); }, true);
          errors = save(ranks, folder.path, after, step);
        }
        if (errors == nothing(ranks)) break;
        for (int other = 0; other < ranks; ++other)
          REQUIRE(errors[static_cast<size_t>(other)] == (other == rank ? "dead" : "a rank is lost"));
        // What the next start does.
        warnings_of([&] { restore_former(folder.path); });
        remove_leftovers(folder.path);
        const FoundCheckpoint found = find_newest_checkpoint(folder.path);
        const auto files = files_of(found.folder);
        const bool old = files == old_files;
        REQUIRE((old || files == new_files));
        kept += old;
        for (const std::string& name : names_in(folder.path))
          REQUIRE((name == "step-00000010" || name == checkpoint_name(step)));
      }
      if (rank > 0) CHECK((number == 1 + own_operations(rank) && kept == own_operations(rank)));
      if (rank == 0) CHECK((number > 3 * 5 + 3 && kept > 3 * 5 && kept < number - 1));
    }
  }
}

TEST_CASE("savers of a group save together, one failed save is everybody's, and training goes on") {
  const MadeUpState state;
  const TemporaryFolder folder;
  Team team(2);
  std::atomic<bool> full{false};
  set_file_hook([&](FileOperation operation, const fs::path& path) {
    if (full && operation == FileOperation::Sync && path.filename() == "moments.safetensors")
      throw Error(ExitCode::Checkpoint, "no space");
  });
  std::array<std::vector<std::string>, 2> outcomes;
  std::array<int64_t, 2> newest{};
  const auto errors = team.run([&](RankGroup& group) {
    const auto held = state.of(group.rank, 2);
    CheckpointSaver saver(folder.path, {1, 0}, -1, group);
    for (const int64_t step : {10, 20, 20, 30}) {
      group.all_gather(fmt::format("step {} {}", step, outcomes[static_cast<size_t>(group.rank)].size()), "");
      if (group.rank == 0) full = step == 20 && outcomes[0].size() == 1;
      group.all_gather(fmt::format("go {} {}", step, outcomes[static_cast<size_t>(group.rank)].size()), "");
      saver.start(small_manifest(step), held.payloads);
      outcomes[static_cast<size_t>(group.rank)].push_back(saver.wait()->error);
    }
    newest[static_cast<size_t>(group.rank)] = saver.newest();
  });
  set_file_hook({});
  CHECK(errors == nothing(2));
  CHECK(outcomes[0] == outcomes[1]);
  REQUIRE(outcomes[0].size() == 4);
  CHECK(outcomes[0][0].empty());
  CHECK(outcomes[0][1] == "rank 0: no space");
  CHECK(outcomes[0][2].empty());
  CHECK(newest == std::array<int64_t, 2>{30, 30});
  CHECK(names_in(folder.path) == std::set<std::string>{"step-00000030"});
}

TEST_CASE("a rank that is lost ends the others' save with the group's own error") {
  const MadeUpState state;
  for (const int dead : {0, 1}) {
    const TemporaryFolder folder;
    Team team(3);
    std::array<ExitCode, 3> codes{};
    const auto errors = team.run([&](RankGroup& group) {
      if (group.rank == dead) throw Killed();
      const auto held = state.of(group.rank, 3);
      CheckpointSaver saver(folder.path, {1, 0}, -1, group);
      saver.start(small_manifest(10), held.payloads);
      try {
        saver.wait();
      } catch (const Error& error) {
        codes[static_cast<size_t>(group.rank)] = error.code();
        CHECK_FALSE(saver.busy());
        throw;
      }
    });
    for (int rank = 0; rank < 3; ++rank) {
      CHECK(errors[static_cast<size_t>(rank)] == (rank == dead ? "dead" : "a rank is lost"));
      if (rank != dead) CHECK(codes[static_cast<size_t>(rank)] == ExitCode::PeerLost);
    }
    CHECK(fs::is_empty(folder.path));
  }
}

TEST_CASE("a control plane is a group: its ranks save together, and a rank that gives up is no failed save") {
  const MadeUpState state;
  const TemporaryFolder folder, alone;
  save(1, alone.path, state, 10);
  const auto results = run_as_threads(3, [&](const Launch& launch) {
    ControlPlane control(launch, {}, quick_options(launch));
    const auto held = state.of(launch.rank, 3);
    CheckpointSaver saver(folder.path, {3, 0}, -1, rank_group(control));
    saver.start(small_manifest(10), held.payloads);
    std::string text = "saved " + saver.wait()->error;
    control.barrier("saved");
    if (launch.rank == 1) {
      control.abort("rank 1 gives up");
      return text;
    }
    saver.start(small_manifest(20), held.payloads);
    try {
      text += saver.wait()->error;
    } catch (const Error& error) {
      text += error.code() == ExitCode::PeerLost ? "lost" : error.what();
    }
    return text;
  });
  CHECK(results == std::vector<std::string>{"saved lost", "saved ", "saved lost"});
  CHECK(names_in(folder.path) == std::set<std::string>{"step-00000010"});
  CHECK(files_of(folder.path / "step-00000010") == files_of(alone.path / "step-00000010"));
}

TEST_CASE("the hash of the masters does not depend on who holds them") {
  const MadeUpState state;
  const auto hashes = [](const MadeUpState& of, int ranks, bool change = false) {
    Team team(ranks);
    std::vector<std::string> found(static_cast<size_t>(ranks));
    const auto errors = team.run([&](RankGroup& group) {
      auto held = of.of(group.rank, ranks);
      if (change && group.rank == ranks - 1) held.piece("gain").begin = 1;
      found[static_cast<size_t>(group.rank)] = content_hash("masters", held.payloads[0].tensors, group);
    });
    if (errors != nothing(ranks)) found[0] = errors[0];
    return found;
  };
  const std::string expected = hashes(state, 1)[0];
  CHECK(expected.size() == 16);
  for (const int ranks : {2, 3, 4, 7})
    CHECK(hashes(state, ranks) == std::vector<std::string>(static_cast<size_t>(ranks), expected));
  CHECK(hashes(MadeUpState(2), 3)[0] != expected);
  CHECK(hashes(state, 2, true)[0].find("rank 1: elements [1, 6) of gain") != std::string::npos);

  // As the documentation defines it, for a tensor of one piece and one of two.
  std::vector<float> a(5, 1.5f), b(16384 + 3, 2.5f);
  const std::vector<TensorPiece> tensors = {{"a", {a.data(), DType::F32, {5}}},
                                            {"b", {b.data(), DType::F32, {16387}}}};
  const uint64_t sums[] = {hash64(a.data(), 20), hash64(b.data(), 65536) + hash64(b.data() + 16384, 12, 1)};
  RankGroup alone;
  CHECK(content_hash("masters", tensors, alone) == hex(hash64(sums, sizeof sums)));
}
