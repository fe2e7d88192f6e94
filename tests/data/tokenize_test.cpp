#include "data/tokenize.h"

#include <sys/wait.h>
#include <unistd.h>

#include "base/files.h"
#include "catch.h"
#include "data/byte_tokenizer.h"
#include "data/dataset.h"
#include "data/shard_files.h"
#include "data/shard_reader.h"

using namespace octet;
using namespace shard_files;

namespace {

std::string all_bytes() {
  std::string text;
  for (int b = 0; b < 256; ++b) text += static_cast<char>(b);
  return text;
}

// Every byte but NUL, which would make a file binary.
std::string text_bytes() { return all_bytes().substr(1) + '\n'; }

// A folder of five documents in three places, with what a search passes over.
void make_corpus(const TemporaryFolder& folder) {
  fs::create_directories(folder / "text/b");
  fs::create_directories(folder / "text/.git");
  write_file(folder / "text/a.txt", "alpha\n");
  write_file(folder / "text/b/inner.txt", text_bytes());
  write_file(folder / "text/c.txt", std::string(1000, 'c'));
  write_file(folder / "text/d.txt", std::string(200, 'd'));
  write_file(folder / "text/B.txt", "upper case sorts first\n");
  write_file(folder / "text/empty.txt", "");
  write_file(folder / "text/.hidden", "hidden");
  write_file(folder / "text/.git/config", "hidden");
  fs::create_symlink(folder / "text/a.txt", folder / "text/link.txt");
}

std::vector<int64_t> ids_of(const std::vector<fs::path>& files) {
  std::vector<int64_t> all;
  for (const fs::path& file : files) {
    const ShardInfo info = inspect_shard(file.string(), "");
    std::vector<int64_t> ids(static_cast<size_t>(info.tokens));
    ShardReader(info).read(0, ids);
    all.insert(all.end(), ids.begin(), ids.end());
  }
  return all;
}

std::vector<int64_t> stream_of(const std::vector<std::string>& documents) {
  std::vector<int64_t> ids;
  for (const std::string& document : documents) {
    ids.push_back(256);
    for (const char c : document) ids.push_back(static_cast<unsigned char>(c));
  }
  return ids;
}

const std::vector<std::string> corpus_in_order{"upper case sorts first\n", "alpha\n", text_bytes(),
                                               std::string(1000, 'c'), std::string(200, 'd')};

}  // namespace

TEST_CASE("files and folders become one stream: end of text, then the bytes, in path order") {
  const TemporaryFolder folder;
  make_corpus(folder);
  uint64_t last = 0, whole = 0;
  const TokenizeResult result = tokenize(
      {.inputs = {folder / "text"}, .output = folder / "out", .progress = [&](uint64_t done, uint64_t all) {
         CHECK(done > last);
         last = done;
         whole = all;
       }});
  CHECK(ids_of(result.train.files) == stream_of(corpus_in_order));
  CHECK(result.train.documents == 5);
  CHECK(result.train.tokens == static_cast<int64_t>(stream_of(corpus_in_order).size()));
  CHECK(result.validation.documents == 0);
  CHECK(result.validation.files.empty());
  CHECK(result.skipped_empty == 1);
  CHECK(result.skipped_other == 3);
  CHECK(last == whole);
  CHECK(whole == 1485);
  REQUIRE(result.train.files.size() == 1);
  CHECK(result.train.files[0] == folder / "out/train_000000.bin");
  CHECK(std::distance(fs::directory_iterator(folder / "out"), {}) == 1);  // nothing else is left behind
  // Inputs keep their order; files may be named one by one.
  const TokenizeResult named =
      tokenize({.inputs = {folder / "text/d.txt", folder / "text/a.txt"}, .output = folder / "named"});
  CHECK(ids_of(named.train.files) == stream_of({std::string(200, 'd'), "alpha\n"}));
}

TEST_CASE("binary files are passed over and counted, named or found") {
  const TemporaryFolder folder;
  fs::create_directories(folder / "text");
  write_file(folder / "text/a.txt", "alpha\n");
  write_file(folder / "text/shard.bin", std::string("\x01\x00\x02\x00", 4));
  write_file(folder / "text/late.txt", std::string(8192, 'x') + '\0');  // a NUL past the first 8192 bytes
  const TokenizeResult result = tokenize({.inputs = {folder / "text"}, .output = folder / "out"});
  CHECK(result.skipped_binary == 1);
  CHECK(ids_of(result.train.files) == stream_of({"alpha\n", std::string(8192, 'x') + '\0'}));
  CHECK_THROWS_AS(tokenize({.inputs = {folder / "text/shard.bin"}, .output = folder / "none"}), Error);
}

TEST_CASE("an output folder inside the input is refused, one beside it or hidden is not") {
  const TemporaryFolder folder;
  fs::create_directories(folder / "text/deep");
  write_file(folder / "text/a.txt", "alpha\n");
  fs::create_directory_symlink(folder / "text", folder / "link");
  for (const char* inside : {"text", "text/out", "text/deep/../deep/out", "link/out"}) {
    INFO(inside);
    CHECK_THROWS_AS(
        tokenize(
            {.inputs = {folder / "text"}, .output = folder / inside, .existing = ExistingShards::Replace}),
        Error);
    CHECK(fs::exists(folder / "text/a.txt"));
  }
  CHECK_FALSE(fs::exists(folder / "text/out"));
  for (const char* outside : {"text-2", "text/.out", "text/../beside"}) {
    INFO(outside);
    CHECK(tokenize({.inputs = {folder / "text"}, .output = folder / outside}).train.documents == 1);
  }
}

TEST_CASE("decoding gives the text back") {
  const std::vector<int64_t> ids = stream_of({all_bytes()});
  CHECK(byte_tokenizer::decode(ids) == "<|endoftext|>" + all_bytes());
  CHECK_THROWS_AS(byte_tokenizer::decode(std::vector<int64_t>{257}), Error);
  CHECK_THROWS_AS(byte_tokenizer::decode(std::vector<int64_t>{-1}), Error);
}

TEST_CASE("shards are bounded, together they are the same stream") {
  const TemporaryFolder folder;
  make_corpus(folder);
  const TokenizeResult result =
      tokenize({.inputs = {folder / "text"}, .output = folder / "out", .shard_tokens = 300});
  CHECK(result.train.files.size() == 5);  // 1490 tokens
  for (size_t i = 0; i < 5; ++i)
    CHECK(inspect_shard(result.train.files[i].string(), "").tokens == (i < 4 ? 300 : 290));
  CHECK(ids_of(result.train.files) == stream_of(corpus_in_order));
}

TEST_CASE("two calls write the same bytes") {
  const TemporaryFolder folder;
  make_corpus(folder);
  for (const char* out : {"one", "two"})
    tokenize({.inputs = {folder / "text"}, .output = folder / out, .validation = 0.2, .shard_tokens = 200});
  int64_t compared = 0;
  for (const auto& entry : fs::directory_iterator(folder / "one")) {
    CHECK(read_file(entry.path().string()) ==
          read_file(folder / ("two/" + entry.path().filename().string())));
    ++compared;
  }
  CHECK(compared == std::distance(fs::directory_iterator(folder / "two"), {}));
  CHECK(compared >= 2);
}

TEST_CASE("validation takes whole documents, near the fraction, and training has the others") {
  const TemporaryFolder folder;
  fs::create_directories(folder / "text");
  for (int i = 0; i < 100; ++i)
    write_file(folder / ("text/" + std::to_string(100 + i)),
               std::to_string(100 + i) + std::string(static_cast<size_t>(17 + i % 7), 'x'));
  const TokenizeResult result =
      tokenize({.inputs = {folder / "text"}, .output = folder / "out", .validation = 0.1});
  const auto documents_of = [](const std::vector<int64_t>& ids) {
    std::vector<std::string> documents;
    for (const int64_t id : ids)
      if (id == 256)
        documents.emplace_back();
      else
        documents.back() += static_cast<char>(id);
    return documents;
  };
  std::vector<std::string> train = documents_of(ids_of(result.train.files)),
                           validation = documents_of(ids_of(result.validation.files));
  CHECK(static_cast<int64_t>(train.size()) == result.train.documents);
  CHECK(static_cast<int64_t>(validation.size()) == result.validation.documents);
  size_t all = 0, held = 0;
  for (const auto& d : train) all += d.size();
  for (const auto& d : validation) held += d.size();
  all += held;
  // Taking a document when it brings the sum nearer ends within half the largest document (26 bytes).
  CHECK(std::abs(static_cast<double>(held) - 0.1 * static_cast<double>(all)) <= 13);
  train.insert(train.end(), validation.begin(), validation.end());
  std::sort(train.begin(), train.end());
  REQUIRE(train.size() == 100);
  for (int i = 0; i < 100; ++i) CHECK(train[static_cast<size_t>(i)].substr(0, 3) == std::to_string(100 + i));
}

TEST_CASE("both splits have a document however small the fraction or the corpus") {
  const TemporaryFolder folder;
  write_file(folder / "a", std::string(500, 'a'));
  write_file(folder / "b", std::string(400, 'b'));
  for (const double fraction : {0.001, 0.5, 0.999}) {  // the share that came of it is said
    const TokenizeResult result = tokenize({.inputs = {folder / "a", folder / "b"},
                                            .output = folder / ("out" + std::to_string(fraction)),
                                            .validation = fraction});
    CHECK(result.train.documents == 1);
    CHECK(result.validation.documents == 1);
    CHECK(result.validation_share == Approx(static_cast<double>(result.validation.tokens - 1) / 900));
  }
  std::string lines;
  for (int i = 0; i < 100; ++i) lines += "line " + std::to_string(i) + "\n";
  write_file(folder / "lines", lines);
  const TokenizeResult cut =
      tokenize({.inputs = {folder / "lines"}, .output = folder / "cut", .validation = 0.1});
  const std::string train = byte_tokenizer::decode(ids_of(cut.train.files)).substr(13),
                    validation = byte_tokenizer::decode(ids_of(cut.validation.files)).substr(13);
  CHECK(train + validation == lines);
  CHECK(train.back() == '\n');
  CHECK(validation.size() >= lines.size() / 10);
  CHECK(validation.size() < lines.size() / 10 + 8);  // at most one line more
  write_file(folder / "unbroken", std::string(1000, 'x'));
  const TokenizeResult unbroken =
      tokenize({.inputs = {folder / "unbroken"}, .output = folder / "unbroken_cut", .validation = 0.1});
  CHECK(unbroken.validation.tokens == 101);
  CHECK(unbroken.train.tokens == 901);
}

TEST_CASE("an output folder that holds something is left alone unless asked, and then only its shards go") {
  const TemporaryFolder folder;
  write_file(folder / "a", std::string(900, 'a'));
  tokenize({.inputs = {folder / "a"}, .output = folder / "out", .validation = 0.2, .shard_tokens = 100});
  write_file(folder / "out/notes.txt", "mine");
  write_file(folder / "out/train_final.bin", "mine too");
  write_file(folder / "b", "b");
  try {
    tokenize({.inputs = {folder / "b"}, .output = folder / "out"});
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    CHECK(error.hint().find("--overwrite") != std::string::npos);
  }
  CHECK(fs::exists(folder / "out/train_000007.bin"));
  CHECK_FALSE(fs::exists(folder / "out/.octet-tokenize"));
  tokenize({.inputs = {folder / "b"}, .output = folder / "out", .existing = ExistingShards::Replace});
  CHECK(read_file(folder / "out/notes.txt") == "mine");
  CHECK(read_file(folder / "out/train_final.bin") == "mine too");
  CHECK(std::distance(fs::directory_iterator(folder / "out"), {}) == 3);
  CHECK(ids_of({folder / "out/train_000000.bin"}) == std::vector<int64_t>{256, 'b'});
}

TEST_CASE("a full disk leaves no shard behind, and the next call works") {
  const TemporaryFolder folder;
  write_file(folder / "a", std::string(900, 'a'));
  int64_t operations = 0;
  set_file_hook([&](FileOperation, const fs::path&) { ++operations; });
  tokenize({.inputs = {folder / "a"}, .output = folder / "count", .shard_tokens = 400});
  REQUIRE(operations > 6);
  int64_t left = 0;
  for (int64_t fail_at = 0; fail_at < operations; ++fail_at) {
    left = fail_at;
    set_file_hook([&](FileOperation operation, const fs::path& path) {
      if (left-- == 0 && operation == FileOperation::Write)
        throw Error(ExitCode::Data, path.string() + ": No space left on device");
    });
    try {
      tokenize({.inputs = {folder / "a"},
                .output = folder / "out",
                .shard_tokens = 400,
                .existing = ExistingShards::Replace});
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Data);
      CHECK(expand_glob(folder / "out/*.bin").empty());
    }
    set_file_hook({});
    fs::remove_all(folder / "out/train_000000.bin");
    for (const std::string& file : expand_glob(folder / "out/*.bin")) fs::remove(file);
  }
  CHECK(tokenize({.inputs = {folder / "a"}, .output = folder / "out"}).train.tokens == 901);
}

TEST_CASE("killed before any file operation, a call can be made again and gives the same shards") {
  const TemporaryFolder folder;
  write_file(folder / "a", std::string(900, 'a'));
  const auto call = [&](const std::string& output) {
    tokenize({.inputs = {folder / "a"},
              .output = folder / output,
              .shard_tokens = 400,
              .existing = ExistingShards::Replace});
  };
  call("whole");
  bool killed = true;
  int64_t operation = 0;
  for (; killed; ++operation) {
    INFO("killed before file operation " << operation);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      int64_t left = operation;
      set_file_hook([&](FileOperation, const fs::path&) {
        if (left-- == 0) _exit(137);
      });
      call("out");
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    killed = WEXITSTATUS(status) == 137;
    CHECK_NOTHROW(call("out"));
    REQUIRE(expand_glob(folder / "out/*").size() == 3);
    for (const std::string shard : {"train_000000.bin", "train_000001.bin", "train_000002.bin"})
      CHECK(read_text(folder / ("out/" + shard), ExitCode::Data) ==
            read_text(folder / ("whole/" + shard), ExitCode::Data));
  }
  CHECK(operation > 20);
}

TEST_CASE("inputs that cannot be read are named, all of them, before anything is written") {
  const TemporaryFolder folder;
  write_file(folder / "a", "a");
  try {
    tokenize(
        {.inputs = {folder / "missing_one", folder / "a", folder / "missing_two"}, .output = folder / "out"});
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Data);
    CHECK(std::string(error.what()).find("missing_one") != std::string::npos);
    CHECK(std::string(error.what()).find("missing_two") != std::string::npos);
  }
  CHECK_FALSE(fs::exists(folder / "out"));
  write_file(folder / "nothing", "");
  CHECK_THROWS_AS(tokenize({.inputs = {folder / "nothing"}, .output = folder / "out"}), Error);
  CHECK_THROWS_AS(tokenize({.inputs = {folder / "a"}, .output = folder / "a"}), Error);
  for (const double fraction : {-0.1, 1.0, std::nan("")})
    CHECK_THROWS_AS(tokenize({.inputs = {folder / "a"}, .output = folder / "out", .validation = fraction}),
                    Error);
  CHECK_FALSE(fs::exists(folder / "out"));
}
