#include "tensor/safetensors.h"

#include <cstdlib>
#include <cstring>
#include <fstream>

#include "base/hash.h"
#include "base/random.h"
#include "catch.h"
#include "tensor/safetensors_header.h"

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

std::string from_hex(const std::string& hex_text) {
  std::string bytes;
  for (size_t i = 0; i < hex_text.size(); i += 2)
    bytes += static_cast<char>(std::stoi(hex_text.substr(i, 2), nullptr, 16));
  return bytes;
}

// Tensor "a", BF16 [2] = 1, 2, as the format's own writer leaves it.
const std::string golden = from_hex(
    "58000000000000007b225f5f6d657461646174615f5f223a7b22666f726d6174223a227074227d2c2261223a7b22647479706522"
    "3a"
    "2242463136222c227368617065223a5b325d2c22646174615f6f666673657473223a5b302c345d7d7d2020803f0040");

std::string length_prefix(uint64_t length) {
  std::string prefix;
  for (int i = 0; i < 8; ++i) prefix += static_cast<char>(length >> (8 * i) & 0xff);
  return prefix;
}
std::string file_of(const std::string& json, size_t data_bytes) {
  return length_prefix(json.size()) + json + std::string(data_bytes, 'x');
}
void put(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

}  // namespace

TEST_CASE("the golden file is written byte for byte") {
  REQUIRE(golden.size() == 100);
  const TemporaryFolder folder;
  uint16_t data[2] = {0x3f80, 0x4000};
  const NamedTensor tensor{"a", {data, DType::BF16, {2}}};
  const uint64_t hash = write_safetensors(folder.path / "g", {&tensor, 1}, {}, ExitCode::Checkpoint);
  CHECK(read_text(folder.path / "g", ExitCode::Checkpoint) == golden);
  CHECK(hash == hash64(golden.data(), golden.size()));
  CHECK(safetensors_header({&tensor, 1}, {}) == golden.substr(0, 96));
}

TEST_CASE("the golden file is read") {
  const TemporaryFolder folder;
  put(folder.path / "g", golden);
  const SafetensorsReader reader(folder.path / "g", ExitCode::Checkpoint);
  REQUIRE(reader.entries().size() == 1);
  const SafetensorsEntry& a = reader.find("a");
  CHECK((a.dtype == DType::BF16 && a.shape == Shape{2} && a.offset == 96 && a.bytes == 4));
  uint16_t data[2];
  reader.read(a, data);
  CHECK((data[0] == 0x3f80 && data[1] == 0x4000));
  CHECK(reader.metadata().at("format") == "pt");
  CHECK(reader.contains("a"));
  CHECK_FALSE(reader.contains("b"));
}

TEST_CASE("the golden file is made in parts, and read in parts") {
  const TemporaryFolder folder;
  uint16_t data[2] = {0x3f80, 0x4000};
  const NamedTensor without_data{"a", {nullptr, DType::BF16, {2}}};
  const SafetensorsLayout layout = safetensors_layout({&without_data, 1}, {});
  CHECK(layout.bytes == golden.size());
  CHECK(layout.offsets == std::vector<uint64_t>{96});
  create_safetensors(folder.path / "g", layout, ExitCode::Checkpoint);
  CHECK(read_text(folder.path / "g", ExitCode::Checkpoint) == golden.substr(0, 96) + std::string(4, '\0'));
  for (const size_t i : {1, 0}) {
    RegionWriter part(folder.path / "g");
    part.write(layout.offsets[0] + 2 * i, &data[i], 2);
    part.close();
  }
  CHECK(read_text(folder.path / "g", ExitCode::Checkpoint) == golden);

  const SafetensorsReader reader(folder.path / "g", ExitCode::Checkpoint);
  const SafetensorsEntry& a = reader.find("a");
  uint16_t found = 0;
  reader.read_part(a, 2, 2, &found);
  CHECK(found == 0x4000);
  reader.read_part(a, 4, 0, &found);
  CHECK(found == 0x4000);
  CHECK_THROWS_AS(reader.read_part(a, 2, 3, &found), Error);
  CHECK_THROWS_AS(reader.read_part(a, UINT64_MAX, 2, &found), Error);
}

TEST_CASE("the layout is that of the writer, in the order the tensors were given") {
  const TemporaryFolder folder;
  unsigned char bytes[3] = {1, 2, 3};
  float floats[2] = {4, 5};
  const std::vector<NamedTensor> tensors{{"small", {bytes, DType::U8, {3}}},
                                         {"wide", {floats, DType::F32, {2}}}};
  write_safetensors(folder.path / "f", tensors, {}, ExitCode::Checkpoint);
  const SafetensorsReader reader(folder.path / "f", ExitCode::Checkpoint);
  const SafetensorsLayout layout = safetensors_layout(tensors, {});
  CHECK(layout.header == safetensors_header(tensors, {}));
  CHECK(layout.offsets == std::vector<uint64_t>{reader.find("small").offset, reader.find("wide").offset});
  CHECK(layout.offsets[0] > layout.offsets[1]);  // the file has the widest type first
  CHECK(layout.bytes == fs::file_size(folder.path / "f"));
}

TEST_CASE("a missing tensor is named with its nearest relative") {
  const TemporaryFolder folder;
  float x = 1;
  const NamedTensor tensor{"blocks.0.norm.gain", {&x, DType::F32, {1}}};
  write_safetensors(folder.path / "f", {&tensor, 1}, {}, ExitCode::Checkpoint);
  const SafetensorsReader reader(folder.path / "f", ExitCode::Checkpoint);
  try {
    reader.find("blocks.0.nrm.gain");
    FAIL("found");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Checkpoint);
    CHECK(error.hint().find("blocks.0.norm.gain") != std::string::npos);
  }
}

TEST_CASE("bytes depend on content only, not on the order of the caller, every type round-trips aligned") {
  const TemporaryFolder folder;
  std::vector<std::vector<unsigned char>> memory;
  std::vector<NamedTensor> tensors;
  int i = 0;
  for (const DType t : {DType::U8, DType::F32, DType::BF16, DType::E4M3, DType::E5M2, DType::U16, DType::I32,
                        DType::U32, DType::I64, DType::U64, DType::F64}) {
    std::vector<unsigned char> bytes(15 * size_of(t));
    for (auto& b : bytes) b = static_cast<unsigned char>(random_bits(1, static_cast<uint64_t>(i++)));
    memory.push_back(std::move(bytes));
    tensors.push_back({"t" + std::to_string(i), {memory.back().data(), t, {3, 5}}});
  }
  const std::map<std::string, std::string> metadata{{"step", "10"}, {"note", "quote \" newline \n"}};
  const uint64_t first = write_safetensors(folder.path / "1", tensors, metadata, ExitCode::Checkpoint);
  std::reverse(tensors.begin(), tensors.end());
  CHECK(write_safetensors(folder.path / "2", tensors, metadata, ExitCode::Checkpoint) == first);
  CHECK(read_text(folder.path / "1", ExitCode::Checkpoint) ==
        read_text(folder.path / "2", ExitCode::Checkpoint));
  const SafetensorsReader reader(folder.path / "1", ExitCode::Checkpoint);
  CHECK(reader.metadata().at("note") == metadata.at("note"));
  for (const NamedTensor& t : tensors) {
    const SafetensorsEntry& entry = reader.find(t.name);
    CHECK(entry.offset % size_of(entry.dtype) == 0);
    std::vector<unsigned char> back(entry.bytes);
    reader.read(entry, back.data());
    CHECK(memcmp(back.data(), t.tensor.data, back.size()) == 0);
  }
}

TEST_CASE("the writer refuses duplicate, nameless and shapeless tensors") {
  float x[4] = {};
  unsigned char y = 0;
  const std::vector<NamedTensor> twins{
      {"a", {x, DType::F32, {4}}}, {"b", {x, DType::F32, {4}}}, {"a", {&y, DType::U8, {1}}}};
  CHECK_THROWS_AS(safetensors_header(twins, {}), Error);
  for (const NamedTensor& bad :
       {NamedTensor{"", {x, DType::F32, {4}}}, NamedTensor{"__metadata__", {x, DType::F32, {4}}},
        NamedTensor{"a", {}}, NamedTensor{"\xff", {x, DType::F32, {4}}}})
    CHECK_THROWS_AS(safetensors_header({&bad, 1}, {}), Error);
}

TEST_CASE("well-formed corner cases are accepted") {
  const auto problem = [](const std::string& json, uint64_t bytes) {
    return parse_safetensors_header(json, bytes).problem;
  };
  CHECK(problem("{}", 0).empty());
  CHECK(problem("{}   ", 0).empty());
  CHECK(problem(R"({"__metadata__":{}})", 0).empty());
  CHECK(problem(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4).empty());     // a scalar
  CHECK(problem(R"({"e":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]}})", 0).empty());  // nothing
  CHECK(problem(R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},)"
                R"("a":{"data_offsets":[0,1],"shape":[1],"dtype":"F8_E5M2"}})",
                3)
            .empty());  // any order
}

TEST_CASE("every malformation is rejected with its reason") {
  struct Case {
    const char* name;
    std::string json;
    uint64_t data_bytes;
    const char* reason;
  };
  const auto tensor = [](const char* dtype, const char* shape, const char* offsets) {
    return std::string(R"({"a":{"dtype":")") + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
           offsets + "}}";
  };
  const std::vector<Case> cases{
      {"empty", "", 0, "start with"},
      {"not an object", "[1]", 0, "start with"},
      {"leading space", " {}", 0, "start with"},
      {"broken JSON", "{\"a\":", 0, "not JSON"},
      {"two values", "{}{}", 0, "not JSON"},
      {"not UTF-8", "{\"\xff\":{}}", 0, "not JSON"},
      {"tensor is a number", R"({"a":1})", 0, "not an object"},
      {"tensor is an array", R"({"a":[]})", 0, "not an object"},
      {"tensor is null", R"({"a":null})", 0, "not an object"},
      {"metadata is a string", R"({"__metadata__":"pt"})", 0, "not an object"},
      {"metadata value is a number", R"({"__metadata__":{"format":1}})", 0, "is a number"},
      {"metadata value is an object", R"({"__metadata__":{"format":{}}})", 0, "is an object"},
      {"metadata key twice", R"({"__metadata__":{"a":"1","a":"2"}})", 0, "occurs twice"},
      {"metadata twice", R"({"__metadata__":{},"__metadata__":{}})", 0, "occurs twice"},
      {"name twice",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "occurs twice"},
      {"field twice", R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "twice"},
      {"field missing", R"({"a":{"dtype":"U8","shape":[1]}})", 1, "lacks"},
      {"field unknown", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1, "unknown field"},
      {"dtype unknown", tensor("F12", "[1]", "[0,1]"), 1, "dtype"},
      {"dtype is a number", R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,1]}})", 1, "is a number"},
      {"shape is a string", R"({"a":{"dtype":"U8","shape":"1","data_offsets":[0,1]}})", 1, "is a string"},
      {"dimension negative", tensor("U8", "[-1]", "[0,1]"), 1, "negative"},
      {"dimension is a fraction", tensor("U8", "[1.0]", "[0,1]"), 1, "fraction"},
      {"dimension too large", tensor("U8", "[9223372036854775808]", "[0,1]"), 1, "dimension"},
      {"nested shape", tensor("U8", "[[1]]", "[0,1]"), 1, "an array"},
      {"five dimensions", tensor("U8", "[1,1,1,1,1]", "[0,1]"), 1, "four dimensions"},
      {"shape overflows 64 bits", tensor("F32", "[4294967296,4294967296,4]", "[0,0]"), 0, "2^64"},
      {"shape times width overflows", tensor("F64", "[2305843009213693952]", "[0,0]"), 0, "2^64"},
      {"size does not match the dtype", tensor("F32", "[2]", "[0,4]"), 4, "needs 8 bytes"},
      {"one offset", tensor("U8", "[1]", "[0]"), 1, "[begin, end]"},
      {"three offsets", tensor("U8", "[1]", "[0,1,1]"), 1, "two data_offsets"},
      {"offsets reversed", tensor("U8", "[1]", "[1,0]"), 1, "[begin, end]"},
      {"offset negative", tensor("U8", "[1]", "[-1,0]"), 1, "negative"},
      {"does not start at 0", tensor("U8", "[1]", "[1,2]"), 2, "hole"},
      {"hole",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
       3, "hole"},
      {"overlap",
       R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "overlap"},
      {"beyond the file", tensor("U8", "[2]", "[0,2]"), 1, "the file has 1"},
      {"bytes left over", tensor("U8", "[1]", "[0,1]"), 2, "the file has 2"},
  };
  for (const Case& c : cases) {
    INFO(c.name);
    const SafetensorsHeader header = parse_safetensors_header(c.json, c.data_bytes);
    CHECK_THAT(header.problem, contains_text(c.reason));
    const TemporaryFolder folder;
    put(folder.path / "f", file_of(c.json, c.data_bytes));
    CHECK_THROWS_AS(SafetensorsReader(folder.path / "f", ExitCode::Checkpoint), Error);
  }
}

TEST_CASE("file lengths that cannot be are rejected before anything is allocated") {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "f";
  for (const uint64_t length :
       {uint64_t{93}, uint64_t{100'000'001}, uint64_t{1} << 40, UINT64_MAX, UINT64_MAX - 7}) {
    put(path, length_prefix(length) + golden.substr(8));
    CHECK_THROWS_AS(SafetensorsReader(path, ExitCode::Checkpoint), Error);
  }
  for (size_t kept = 0; kept < golden.size(); ++kept) {  // truncated anywhere
    put(path, golden.substr(0, kept));
    CHECK_THROWS_AS(SafetensorsReader(path, ExitCode::Checkpoint), Error);
  }
}

TEST_CASE("deep nesting costs no stack") {
  std::string json = "{\"a\":";
  for (int i = 0; i < 1'000'000; ++i) json += "{\"a\":";
  CHECK_FALSE(parse_safetensors_header(json, 0).problem.empty());
}

TEST_CASE("a flipped byte anywhere is rejected or read within the file") {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "f";
  int rejected = 0, accepted = 0;
  for (size_t position = 0; position < golden.size(); ++position) {
    for (const int flip : {1, 2, 16, 32, 128, 255}) {
      std::string bytes = golden;
      bytes[position] = static_cast<char>(bytes[position] ^ flip);
      put(path, bytes);
      try {
        const SafetensorsReader reader(path, ExitCode::Checkpoint);
        for (const SafetensorsEntry& entry : reader.entries()) {
          REQUIRE(entry.offset + entry.bytes <= bytes.size());
          std::vector<char> data(entry.bytes);
          reader.read(entry, data.data());
        }
        ++accepted;
      } catch (const Error&) {
        ++rejected;
      }
    }
  }
  CHECK(rejected > accepted);
  CHECK(accepted >= 4 * 6);  // the four data bytes carry no redundancy: their checksum is the manifest's
}
