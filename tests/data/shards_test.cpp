#include "catch.h"
#include "data/formats.h"
#include "data/scan.h"
#include "data/shard_files.h"
#include "data/shard_reader.h"
#include "data/shard_writer.h"

using namespace octet;
using namespace shard_files;

namespace {

std::vector<int64_t> ids_of(const ShardInfo& info) {
  std::vector<int64_t> ids(static_cast<size_t>(info.tokens));
  ShardReader(info).read(0, ids);
  return ids;
}

std::string sha256_of(const std::string& path) {
  FILE* pipe = ::popen(("sha256sum '" + path + "'").c_str(), "r");
  REQUIRE(pipe);
  char digest[65] = {};
  const size_t read = std::fread(digest, 1, 64, pipe);
  ::pclose(pipe);
  return std::string(digest, read);
}

std::string written(const TemporaryFolder& folder, int64_t vocabulary, const std::vector<int32_t>& ids) {
  ShardWriter writer({.folder = folder.path,
                      .prefix = "golden",
                      .vocabulary = vocabulary,
                      .total_tokens = static_cast<int64_t>(ids.size())});
  writer.write(ids);
  writer.close();
  REQUIRE(writer.files().size() == 1);
  return writer.files()[0].string();
}

// The error of inspecting `path`, as "what | hint"; empty when there is none.
std::string complaint(const std::string& path, const std::string& raw_width = "") {
  try {
    inspect_shard(path, raw_width);
    return "";
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Data);
    return std::string(error.what()) + " | " + error.hint();
  }
}

}  // namespace

TEST_CASE("written shards are byte for byte what llm.c's own writers make") {
  const TemporaryFolder folder;
  // Sums of files written by karpathy/llm.c dev/data/data_common.py.
  const std::string gpt2 = written(folder, 50257, {50256, 1, 2, 3, 4});
  CHECK(sha256_of(gpt2) == "487dd385f029cfcb71d4b798e07abce84a17c339ca8e5ef096853c29f22b59c8");
  CHECK(read_file(gpt2) == llmc16({50256, 1, 2, 3, 4}));
  CHECK(read_file(gpt2).substr(0, 12) == std::string("\x88\xd8\x34\x01\x01\x00\x00\x00\x05\x00\x00\x00", 12));
  const std::string llama3 = written(folder, 128256, {128000, 1, 128001});
  CHECK(sha256_of(llama3) == "295aa06d751ebcf7f6880486fdd9065c3da8ceabec6b0d186f7bbdc3996cce9e");
  CHECK(read_file(llama3).substr(0, 12) ==
        std::string("\xa1\xd9\x34\x01\x07\x00\x00\x00\x03\x00\x00\x00", 12));
  // One other id, another sum.
  CHECK(sha256_of(written(folder, 50257, {50256, 1, 2, 3, 5})) !=
        "487dd385f029cfcb71d4b798e07abce84a17c339ca8e5ef096853c29f22b59c8");
}

TEST_CASE("a writer splits its stream into bounded shards, checks ids, and leaves nothing unfinished") {
  const TemporaryFolder folder;
  ShardWriterOptions options{
      .folder = folder.path, .prefix = "part", .vocabulary = 10, .shard_tokens = 4, .total_tokens = 9};
  {
    ShardWriter writer(options);
    writer.write(std::vector<int32_t>{0, 1, 2});
    writer.write(std::vector<int32_t>{3, 4, 5, 6, 7, 8});
    writer.close();
  }
  CHECK(ids_of(inspect_shard(folder / "part_000000.bin", "")) == std::vector<int64_t>{0, 1, 2, 3});
  CHECK(ids_of(inspect_shard(folder / "part_000001.bin", "")) == std::vector<int64_t>{4, 5, 6, 7});
  CHECK(ids_of(inspect_shard(folder / "part_000002.bin", "")) == std::vector<int64_t>{8});
  CHECK_FALSE(fs::exists(folder / "part_000003.bin"));
  options.prefix = "bad";
  {
    ShardWriter writer(options);
    writer.write(std::vector<int32_t>{9});
    CHECK_THROWS_AS(writer.write(std::vector<int32_t>{10}), Error);
    CHECK_THROWS_AS(writer.write(std::vector<int32_t>{-1}), Error);
    CHECK_THROWS_AS(writer.close(), Error);  // fewer than announced
  }
  for (const auto& entry : fs::directory_iterator(folder.path))
    CHECK(entry.path().filename().string().find("bad") == std::string::npos);
}

TEST_CASE("every format is detected and read") {
  const TemporaryFolder folder;
  const std::vector<int64_t> ids{5, 0, 7, 9, 100};
  const auto check = [&](const std::string& path, ShardFormat format, const std::string& raw_width = "") {
    const ShardInfo info = inspect_shard(path, raw_width);
    CHECK(info.format == format);
    CHECK(info.tokens == 5);
    CHECK(info.file_bytes == fs::file_size(info.path));
    CHECK(ids_of(info) == ids);
    return info;
  };
  write_file(folder / "v1", llmc16(ids));
  check(folder / "v1", ShardFormat::LlmcUint16);
  write_file(folder / "v7", llmc32(ids));
  check(folder / "v7", ShardFormat::LlmcUint32);
  write_file(folder / "q2", llmq(ids, 101, 0));
  CHECK(check(folder / "q2", ShardFormat::LlmqBinTok).declared_vocabulary == 101);
  write_file(folder / "q2m", llmq(ids, 101, 1));  // the mask bits are read past
  check(folder / "q2m", ShardFormat::LlmqBinTok);
  std::string version1 = llmq(ids, 101, 0);
  version1[8] = 1;
  version1.replace(20, 8, "********");
  write_file(folder / "q1", version1);
  CHECK(check(folder / "q1", ShardFormat::LlmqBinTok).declared_vocabulary == 0);
  write_file(folder / "raw16", Bytes().add_all<uint16_t>(ids).data);
  check(folder / "raw16", ShardFormat::RawUint16, "uint16");
  write_file(folder / "raw32", Bytes().add_all<uint32_t>(ids).data);
  check(folder / "raw32", ShardFormat::RawUint32, "uint32");
  check(folder / "v1", ShardFormat::LlmcUint16, "uint32");  // a magic beats the declared width

  const auto megatron = [&](const std::string& name, unsigned char code, const std::string& payload,
                            int64_t width) {
    write_file(folder / (name + ".bin"), payload);
    write_file(folder / (name + ".idx"), index_of({3, 2}, code, width).bytes());
    CHECK(check(folder / (name + ".bin"), ShardFormat::Megatron).documents == 2);
    check(folder / (name + ".idx"), ShardFormat::Megatron);
  };
  megatron("uint8", 1, Bytes().add_all<uint8_t>(ids).data, 1);
  megatron("int8", 2, Bytes().add_all<int8_t>(ids).data, 1);
  megatron("int16", 3, Bytes().add_all<int16_t>(ids).data, 2);
  megatron("int32", 4, Bytes().add_all<int32_t>(ids).data, 4);
  megatron("int64", 5, Bytes().add_all<int64_t>(ids).data, 8);
  megatron("uint16", 8, Bytes().add_all<uint16_t>(ids).data, 2);
  std::string with_modes = index_of({3, 2}, 8, 2).bytes() + std::string(2, '\0');
  write_file(folder / "uint16.idx", with_modes);
  check(folder / "uint16.bin", ShardFormat::Megatron);
}

TEST_CASE("the golden Megatron index of two sequences is understood") {
  const std::string golden(
      "\x4d\x4d\x49\x44\x49\x44\x58\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x08\x02\x00\x00\x00\x00\x00\x00"
      "\x00\x03\x00\x00"
      "\x00\x00\x00\x00\x00\x03\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00\x00"
      "\x00\x00\x00\x00"
      "\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00",
      82);
  CHECK(index_of({3, 2}, 8, 2).bytes() == golden);
  const TemporaryFolder folder;
  write_file(folder / "g.idx", golden);
  write_file(folder / "g.bin", Bytes().add_all<uint16_t>({1, 2, 3, 4, 5}).data);
  const ShardInfo info = inspect_shard(folder / "g.idx", "");
  CHECK(info.path == folder / "g.bin");
  CHECK(ids_of(info) == std::vector<int64_t>{1, 2, 3, 4, 5});
}

TEST_CASE("signed and wide ids arrive with their value") {
  const TemporaryFolder folder;
  write_file(folder / "w.bin", Bytes().add_all<int64_t>({-1, 1LL << 40, 3}).data);
  write_file(folder / "w.idx", index_of({3}, 5, 8).bytes());
  CHECK(ids_of(inspect_shard(folder / "w.bin", "")) == std::vector<int64_t>{-1, 1LL << 40, 3});
  write_file(folder / "u", llmc32({4294967295}));
  CHECK(ids_of(inspect_shard(folder / "u", "")) == std::vector<int64_t>{4294967295});
}

TEST_CASE("malformed shards are refused with found and expected") {
  const TemporaryFolder folder;
  const std::vector<int64_t> ids{1, 2, 3, 4, 5};
  const auto patched = [](std::string bytes, size_t at, const std::string& with) {
    return bytes.replace(at, with.size(), with);
  };
  const auto int32 = [](int32_t v) { return Bytes().add(v).data; };
  struct Case {
    const char* name;
    std::string bytes, raw_width, found, expected;
  };
  const Case cases[] = {
      {"empty file", "", "", "the file is empty", ""},
      {"v1 truncated payload", llmc16(ids).substr(0, 1033), "", "has 1033 bytes", "expected 1034"},
      {"v1 truncated header", llmc16(ids).substr(0, 500), "", "500 bytes", "1024"},
      {"v1 magic alone", llmc16(ids).substr(0, 4), "", "4 bytes", "1024"},
      {"v1 trailing bytes", llmc16(ids) + "xx", "", "has 1036 bytes", "expected 1034"},
      {"v1 wrong version", patched(llmc16(ids), 4, int32(2)), "", "version 2", "expected 1"},
      {"v1 count too large", patched(llmc16(ids), 8, int32(-1)), "", "4294967295 tokens",
       "expected 8589935614"},
      {"v7 with the magic of v1", patched(llmc32(ids), 0, int32(20240520)), "", "version 7", "expected 1"},
      {"v7 truncated", llmc32(ids).substr(0, 1043), "", "has 1043 bytes", "expected 1044"},
      {"big-endian v1", patched(llmc16(ids), 0, std::string("\x01\x34\xd8\x88", 4)), "", "big-endian",
       "20240520"},
      {"big-endian v7 although a width is declared",
       patched(llmc32(ids), 0, std::string("\x01\x34\xd9\xa1", 4)), "uint32", "big-endian", "20240801"},
      {"evaluation file", patched(llmc16(ids), 0, int32(20240522)), "", "HellaSwag", "20240520"},
      {"llm.c checkpoint", patched(llmc16(ids), 0, int32(20240326)), "uint16", "model checkpoint",
       "20240520"},
      {"llmq version 3", patched(llmq(ids, 9, 0), 8, int32(3)), "", "version 3", "expected 1 or 2"},
      {"llmq two bytes a token", patched(llmq(ids, 9, 0), 12, int32(2)), "", "2 bytes a token", "expected 4"},
      {"llmq truncated", llmq(ids, 9, 0).substr(0, 1040), "", "has 1040 bytes", "expected 1044"},
      {"llmq without its masks", patched(llmq(ids, 9, 0), 24, int32(1)), "", "has 1044 bytes",
       "expected 1045"},
      {"llmq with masks unannounced", patched(llmq(ids, 9, 1), 24, int32(0)), "", "has 1045 bytes",
       "expected 1044"},
      {"llmq negative count", patched(llmq(ids, 9, 0), 16, int32(-5)), "", "4294967291 tokens",
       "expected 17179870188"},
      {"llmq negative vocabulary", patched(llmq(ids, 9, 0), 20, int32(-9)), "", "vocabulary of -9", ""},
      {"llmq header cut", llmq(ids, 9, 0).substr(0, 20), "", "20 bytes", "1024"},
      {"no magic, no width", Bytes().add_all<uint16_t>(ids).data, "", "01 00 02 00", "known: llm.c"},
      {"odd raw uint16", Bytes().add_all<uint16_t>(ids).text("x").data, "uint16", "11 bytes",
       "multiple of 2"},
      {"raw uint32 of half a token", Bytes().add_all<uint16_t>(ids).data, "uint32", "10 bytes",
       "multiple of 4"},
      {"a real .npy although a width is declared", "\x93NUMPY\x01 header", "uint16", "NumPy", "known"},
      {"gzip", std::string("\x1f\x8b\x08\x00", 4), "", "gzip", "known"},
      {"parquet", "PAR1....", "", "Parquet", "known"},
      {"three bytes", "abc", "", "61 62 63 00", "known"},
  };
  for (const Case& c : cases) {
    INFO(c.name);
    write_file(folder / "case", c.bytes);
    const std::string text = complaint(folder / "case", c.raw_width);
    CAPTURE(text);
    CHECK(text.find(folder / "case") == 0);
    CHECK(text.find(c.found) != std::string::npos);
    CHECK(text.find(c.expected) != std::string::npos);
  }
  // The files those were made from pass.
  for (const std::string& good : {llmc16(ids), llmc32(ids), llmq(ids, 9, 0), llmq(ids, 9, 1)}) {
    write_file(folder / "case", good);
    CHECK(complaint(folder / "case") == "");
  }
  CHECK(complaint(folder / "absent").find("no such file") != std::string::npos);
  CHECK(complaint(folder.path.string()).find("not a regular file") != std::string::npos);
}

TEST_CASE("malformed Megatron indices are refused with found and expected") {
  const TemporaryFolder folder;
  const MegatronIndex good = index_of({3, 2}, 8, 2);
  const auto with = [&](auto change) {
    MegatronIndex index = good;
    change(index);
    return index.bytes();
  };
  const auto counts = [&](uint64_t sequences, uint64_t entries) {
    return good.bytes().replace(18, 16, Bytes().add(sequences).add(entries).data);
  };
  struct Case {
    const char* name;
    std::string index, found;
  };
  const Case cases[] = {
      {"header cut", good.bytes().substr(0, 20), "truncated: 20 bytes"},
      {"index cut", good.bytes().substr(0, 81), "take 82 bytes (84 with modes), the file has 81"},
      {"index longer", good.bytes() + "x", "the file has 83"},
      {"version", with([](auto& i) { i.version = 2; }), "version 2, expected 1"},
      {"float32", with([](auto& i) { i.code = 7; }), "type code 7"},
      {"float64", with([](auto& i) { i.code = 6; }), "type code 6"},
      {"code 0", with([](auto& i) { i.code = 0; }), "type code 0"},
      {"huge sequence count", counts(1ull << 62, 3), "overflow 64 bits"},
      {"huge document count", counts(2, ~0ull), "overflow 64 bits"},
      {"more sequences than bytes", counts(1000, 3), "the file has 82"},
      {"no document entries", with([](auto& i) { i.documents.clear(); }), "no document entries"},
      {"negative length", with([](auto& i) { i.lengths[1] = -2; }), "length -2"},
      {"overlap", with([](auto& i) { i.offsets[1] = 4; }), "byte 4 of the .bin, expected 6"},
      {"hole", with([](auto& i) { i.offsets[1] = 8; }), "byte 8 of the .bin, expected 6"},
      {"negative offset", with([](auto& i) { i.offsets[0] = -2; }), "byte -2 of the .bin, expected 0"},
      {"documents start late", with([](auto& i) { i.documents[0] = 1; }), "sequence 1, expected 0"},
      {"documents go back", with([](auto& i) {
         i.documents = {0, 2, 1, 2};
       }),
       "before its predecessor's 2"},
      {"documents end early", with([](auto& i) { i.documents[2] = 1; }), "end at sequence 1, expected 2"},
      {"tokens missing", with([](auto& i) { i.lengths[1] = 3; }), "10 bytes, expected 12"},
      {"other width", index_of({3, 2}, 4, 4).bytes(), "10 bytes, expected 20"},
  };
  write_file(folder / "m.bin", Bytes().add_all<uint16_t>({1, 2, 3, 4, 5}).data);
  for (const Case& c : cases) {
    INFO(c.name);
    write_file(folder / "m.idx", c.index);
    const std::string text = complaint(folder / "m.idx");
    CAPTURE(text);
    CHECK(text.find(folder / "m.") == 0);
    CHECK(text.find(c.found) != std::string::npos);
    CHECK_FALSE(complaint(folder / "m.bin").empty());
  }
  write_file(folder / "m.idx", good.bytes());
  CHECK(complaint(folder / "m.idx") == "");
  fs::remove(folder / "m.bin");
  CHECK(complaint(folder / "m.idx").find("m.bin does not exist") != std::string::npos);
}

TEST_CASE("a scan finds range, documents, the first bad id, and the same checksum in every format") {
  const TemporaryFolder folder;
  const std::vector<int64_t> ids{256, 65, 256, 66, 255};
  write_file(folder / "a", llmc16(ids));
  write_file(folder / "b", llmq(ids, 257, 1));
  const ScanResult a = scan_shard(inspect_shard(folder / "a", ""), {.vocabulary = 257, .end_of_text = 256});
  const ScanResult b = scan_shard(inspect_shard(folder / "b", ""), {});
  CHECK(a.tokens == 5);
  CHECK(a.smallest == 65);
  CHECK(a.largest == 256);
  CHECK(a.documents == 2);
  CHECK(a.out_of_range == 0);
  CHECK_FALSE(a.problem);
  CHECK(a.hash == b.hash);
  CHECK(b.documents == 0);
  const ScanResult bad = scan_shard(inspect_shard(folder / "a", ""), {.vocabulary = 256});
  CHECK(bad.out_of_range == 2);
  REQUIRE(bad.problem);
  CHECK(std::string(bad.problem->what()).find("token 0 (byte 1024) is id 256, the vocabulary has 256") !=
        std::string::npos);
  CHECK(scan_shard(inspect_shard(folder / "a", ""), {.limit = 2}).tokens == 2);
  write_file(folder / "c", llmc16({256, 65, 256, 66, 254}));
  CHECK(scan_shard(inspect_shard(folder / "c", ""), {}).hash != a.hash);
}
