#include <fcntl.h>

#include <set>

#include "base/error.h"
#include "catch.h"
#include "data/dataset.h"
#include "data/scan.h"
#include "data/shard_files.h"
#include "standard_error.h"

using namespace octet;
using octet::testing::count_of;
using octet::testing::warnings_of;
using namespace shard_files;

namespace {

std::vector<int64_t> ramp(int64_t first, int64_t count) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(first + i);
  return ids;
}

std::vector<int32_t> window(const Dataset& dataset, int source, int64_t index) {
  std::vector<int32_t> out(static_cast<size_t>(dataset.context()) + 1);
  dataset.read(source, index, out);
  return out;
}

Dataset open(const std::vector<std::string>& files, int64_t context, int64_t vocabulary = 1000,
             const std::string& raw_width = "") {
  return Dataset({{.name = "s", .files = files, .weight = 1}}, raw_width, context, vocabulary);
}

template <class F>
Error error_of(F f) {
  try {
    f();
  } catch (const Error& error) {
    return error;
  }
  FAIL("no error");
  return {ExitCode::Internal, ""};
}

bool mentions(const Error& error, const std::string& text) {
  return std::string(error.what()).find(text) != std::string::npos;
}

void write_at(const std::string& path, uint64_t offset, const std::string& bytes) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT, 0600);
  REQUIRE(file >= 0);
  REQUIRE(::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(offset)) ==
          static_cast<ssize_t>(bytes.size()));
  ::close(file);
}

}  // namespace

TEST_CASE("windows overlap by their target and never cross a shard") {
  const TemporaryFolder folder;
  write_file(folder / "a_0.bin", llmc16(ramp(0, 9)));    // exactly two windows of 4 + 1
  write_file(folder / "a_1.bin", llmc16(ramp(100, 8)));  // one, three tokens left over
  write_file(folder / "a_2.bin", llmc16(ramp(200, 4)));  // none: one token short
  write_file(folder / "a_3.bin", llmc32(ramp(300, 5)));
  const Dataset dataset = open({folder / "a_*.bin"}, 4);
  CHECK(dataset.windows(0) == 4);
  CHECK(dataset.tokens() == 26);
  CHECK(dataset.shards(0).size() == 4);
  CHECK(window(dataset, 0, 0) == std::vector<int32_t>{0, 1, 2, 3, 4});
  CHECK(window(dataset, 0, 1) == std::vector<int32_t>{4, 5, 6, 7, 8});
  CHECK(window(dataset, 0, 2) == std::vector<int32_t>{100, 101, 102, 103, 104});
  CHECK(window(dataset, 0, 3) == std::vector<int32_t>{300, 301, 302, 303, 304});
  CHECK_THROWS_AS(window(dataset, 0, 4), Error);
  CHECK_THROWS_AS(window(dataset, 0, -1), Error);
  CHECK_THROWS_AS(window(dataset, 1, 0), Error);
}

TEST_CASE("all problems of all files are reported at once") {
  const TemporaryFolder folder;
  write_file(folder / "good.bin", llmc16(ramp(0, 9)));
  write_file(folder / "short.bin", llmc16(ramp(0, 9)).substr(0, 1030));
  write_file(folder / "alien.bin", "not a shard at all");
  write_file(folder / "wide.bin", llmq(ramp(0, 9), 5000, 0));
  const Error error = error_of([&] {
    Dataset({{.name = "one",
              .files = {folder / "good.bin", folder / "short.bin", folder / "none_*.bin"},
              .weight = 1},
             {.name = "two", .files = {folder / "alien.bin", folder / "wide.bin"}, .weight = -1},
             {.name = "three", .files = {folder / "good.bin", folder / "goo*.bin"}, .weight = 1}},
            "", 4, 1000);
  });
  CHECK(error.code() == ExitCode::Data);
  for (const char* part : {"6 problems", "has 1030 bytes, expected 1042", "none_*.bin: no file matches",
                           "alien.bin: unknown format", "vocabulary of 5000, the model has 1000",
                           "\"two\" has the weight -1", "listed twice"})
    CHECK(mentions(error, part));
  CHECK(open({folder / "good.bin"}, 4).windows(0) == 2);
  CHECK(mentions(error_of([&] { open({folder / "good.bin"}, 9); }), "no shard has the 10 tokens"));
  CHECK(open({folder / "good.bin"}, 8).windows(0) == 1);
  CHECK_THROWS_AS(Dataset({}, "", 4, 1000), Error);
}

TEST_CASE("token masks that are not read are said, once a source") {
  const TemporaryFolder folder;
  for (const char* name : {"plain", "masked_0", "masked_1"})
    write_file(folder / (std::string(name) + ".bin"), llmq(ramp(0, 9), 1000, name[0] == 'm'));
  const auto said = [&](const std::string& pattern) {
    return count_of(warnings_of([&] { open({folder / pattern}, 4); }), "has token masks; they are not read");
  };
  CHECK(said("plain.bin") == 0);
  CHECK(said("masked_*.bin") == 1);
}

TEST_CASE("a Megatron pair found by a pattern counts once") {
  const TemporaryFolder folder;
  write_file(folder / "m.bin", Bytes().add_all<uint16_t>(ramp(0, 9)).data);
  write_file(folder / "m.idx", index_of({4, 5}, 8, 2).bytes());
  const Dataset both = open({folder / "m.*"}, 4);
  CHECK(both.shards(0).size() == 1);
  CHECK(window(both, 0, 1) == std::vector<int32_t>{4, 5, 6, 7, 8});  // across the documents of the stream
}

TEST_CASE("an id outside the vocabulary in the last token of the last shard is found by read and by scan") {
  const TemporaryFolder folder;
  write_file(folder / "s_0.bin", llmc16(ramp(0, 9)));
  std::vector<int64_t> last = ramp(0, 9);
  last.back() = 1000;
  write_file(folder / "s_1.bin", llmc16(last));
  const Dataset dataset = open({folder / "s_*.bin"}, 4);
  CHECK_NOTHROW(window(dataset, 0, 2));
  for (const Error& error : {error_of([&] { window(dataset, 0, 3); }),
                             *scan_shard(dataset.shards(0)[1], {.vocabulary = 1000}).problem}) {
    CHECK(error.code() == ExitCode::Data);
    CHECK(mentions(error, "s_1.bin: token 8 (byte 1040) is id 1000, the vocabulary has 1000"));
  }
  CHECK_NOTHROW(window(open({folder / "s_*.bin"}, 4, 1001), 0, 3));
  write_file(folder / "n.bin", Bytes().add_all<int32_t>({1, 2, -3, 4, 5}).data);
  write_file(folder / "n.idx", index_of({5}, 4, 4).bytes());
  CHECK(mentions(error_of([&] { window(open({folder / "n.bin"}, 4), 0, 0); }), "is id -3"));
}

TEST_CASE("a shard of more than 2^31 tokens is read to its end") {
  const TemporaryFolder folder;
  const uint64_t tokens = (1ull << 31) + 1001;
  const std::string path = folder / "big.bin";
  write_at(path, 0,
           Bytes().add<int32_t>(20240520).add<int32_t>(1).add<uint32_t>(static_cast<uint32_t>(tokens)).data);
  fs::resize_file(path, 1024 + 2 * tokens);  // sparse: takes no space
  write_at(path, 1024 + 2 * (tokens - 5), Bytes().add_all<uint16_t>({11, 12, 13, 14, 15}).data);
  const Dataset dataset = open({path}, 4);
  CHECK(dataset.tokens() == static_cast<int64_t>(tokens));
  CHECK(dataset.windows(0) == static_cast<int64_t>((tokens - 1) / 4));
  CHECK((tokens - 1) % 4 == 0);
  CHECK(window(dataset, 0, dataset.windows(0) - 1) == std::vector<int32_t>{11, 12, 13, 14, 15});
  CHECK(window(dataset, 0, dataset.windows(0) - 2) == std::vector<int32_t>{0, 0, 0, 0, 11});

  const uint64_t more = (1ull << 32) + 5;  // beyond what 32 bits count
  const std::string raw = folder / "raw.bin";
  write_at(raw, 2 * (more - 5), Bytes().add_all<uint16_t>({21, 22, 23, 24, 25}).data);
  const Dataset wide = open({raw}, 4, 1000, "uint16");
  CHECK(wide.tokens() == static_cast<int64_t>(more));
  CHECK(window(wide, 0, wide.windows(0) - 1) == std::vector<int32_t>{21, 22, 23, 24, 25});
  CHECK(wide.fingerprint() != dataset.fingerprint());
}

TEST_CASE("a shard that shrinks, grows or vanishes while in use is an error, not a crash") {
  const TemporaryFolder folder;
  const std::string path = folder / "s.bin";
  write_file(path, llmc16(ramp(0, 401)));
  const Dataset dataset = open({path}, 4);
  CHECK(window(dataset, 0, 99).back() == 400);
  fs::resize_file(path, 1500);
  for (const int64_t index : {int64_t{0}, int64_t{99}}) {
    const Error error = error_of([&] { window(dataset, 0, index); });
    CHECK(error.code() == ExitCode::Data);
    CHECK(mentions(error, "s.bin: the shard changed while it was in use: 1500 bytes now, 1826"));
  }
  write_file(path, llmc16(ramp(0, 402)));
  CHECK_THROWS_AS(window(dataset, 0, 0), Error);
  write_file(path, llmc16(ramp(0, 401)));
  CHECK(window(dataset, 0, 99).back() == 400);
  const Dataset fresh = open({path}, 4);
  fs::remove(path);
  CHECK(error_of([&] { window(fresh, 0, 0); }).code() == ExitCode::Data);
}

TEST_CASE("more shards than files that stay open are all read") {
  const TemporaryFolder folder;
  for (int i = 0; i < 300; ++i)
    write_file(folder / ("s_" + std::to_string(1000 + i) + ".bin"), llmc16(ramp(i, 5)));
  const Dataset dataset = open({folder / "s_*.bin"}, 4);
  for (const int64_t i : {0, 299, 150, 0, 299, 7}) CHECK(window(dataset, 0, i)[0] == i);
  for (int64_t i = 0; i < 300; ++i) REQUIRE(window(dataset, 0, i)[0] == i);
}

TEST_CASE("the fingerprint follows contents, order and sources, not names") {
  const TemporaryFolder folder;
  const std::string long_shard =
      llmc16(ramp(0, 60000).size() ? std::vector<int64_t>(300000, 7) : std::vector<int64_t>{});
  write_file(folder / "a.bin", long_shard);
  write_file(folder / "b.bin", llmc16(ramp(0, 9)));
  write_file(folder / "c.bin", long_shard);
  const auto print = [&](const std::vector<std::string>& files) { return open(files, 4).fingerprint(); };
  const std::string reference = print({folder / "a.bin", folder / "b.bin"});
  CHECK(reference.size() == 16);
  CHECK(print({folder / "a.bin", folder / "b.bin"}) == reference);
  CHECK(print({folder / "c.bin", folder / "b.bin"}) == reference);
  CHECK(print({folder / "b.bin", folder / "a.bin"}) != reference);
  CHECK(print({folder / "a.bin"}) != reference);
  CHECK(Dataset({{.name = "x", .files = {folder / "a.bin"}}, {.name = "y", .files = {folder / "b.bin"}}}, "",
                4, 1000)
            .fingerprint() != reference);
  // One id anywhere in the first or last 64 KiB.
  for (const uint64_t offset :
       {uint64_t{1024}, uint64_t{65534}, long_shard.size() - 2, long_shard.size() - 65536}) {
    write_file(folder / "c.bin", long_shard);
    write_at(folder / "c.bin", offset, "\x08");
    CHECK(print({folder / "c.bin", folder / "b.bin"}) != reference);
  }
  // A rewritten middle is seen by the sampled blocks: all 470 KiB of it differ.
  std::string rewritten = long_shard;
  for (size_t i = 65536; i < rewritten.size() - 65536; i += 2) rewritten[i] = 9;
  write_file(folder / "c.bin", rewritten);
  CHECK(print({folder / "c.bin", folder / "b.bin"}) != reference);
}
