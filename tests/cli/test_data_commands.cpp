#include <sys/wait.h>

#include <cstdio>

#include "catch.h"
#include "data/shard_files.h"

using namespace shard_files;

namespace {

struct Outcome {
  int code;
  std::string text;  // both streams
  bool has(const std::string& part) const { return text.find(part) != std::string::npos; }
};

Outcome octet(const std::string& arguments) {
  FILE* pipe = ::popen((std::string(OCTET_BINARY) + " " + arguments + " 2>&1").c_str(), "r");
  REQUIRE(pipe);
  std::string text;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) text.append(buffer, n);
  const int status = ::pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text};
}

}  // namespace

TEST_CASE("tokenize, then info, check and head tell the same story") {
  const TemporaryFolder folder;
  write_file(folder / "text.txt", "Hello\tworld\n\x1b[31mred\n" + std::string(2000, 'x') + "\nend\n");
  const Outcome made = octet("tokenize " + (folder / "text.txt") + " --output " + (folder / "out"));
  INFO(made.text);
  CHECK(made.code == 0);
  CHECK(made.has("1 shard "));
  CHECK_FALSE(made.has("\x1b"));  // no bar when this is no terminal
  const std::string shard = folder / "out/train_000000.bin";
  const Outcome info = octet("data info " + shard);
  CHECK(info.code == 0);
  for (const char* part : {"llm.c v1 (uint16)", "tokens     2027", "documents  1", "ids        9 to 256"})
    CHECK(info.has(part));
  const Outcome good = octet("data check --vocabulary 257 " + shard),
                bad = octet("data check --vocabulary 256 " + shard);
  CHECK(good.code == 0);
  CHECK(good.has("ok "));
  CHECK(bad.code == 3);
  CHECK(bad.has("token 0 (byte 1024) is id 256"));
  const Outcome head = octet("data head --tokens 22 " + shard);
  CHECK(head.code == 0);
  CHECK(head.has("<|endoftext|>Hello\tworld\n\\x1b[31mred"));
  CHECK_FALSE(head.has("\x1b"));
  CHECK(octet("data head --ids --tokens 3 " + shard).text == "256 72 101\n");
  write_file(folder / "gpt2.bin", llmc16({50256, 11, 40000}));
  CHECK(octet("data head " + (folder / "gpt2.bin")).text == "50256 11 40000\n");
}

TEST_CASE("data commands exit with the documented codes and name every fault") {
  const TemporaryFolder folder;
  write_file(folder / "good.bin", llmc16({1, 2, 3}));
  write_file(folder / "short.bin", llmc16({1, 2, 3}).substr(0, 1026));
  const Outcome mixed = octet("data info " + (folder / "*.bin") + " " + (folder / "absent.bin"));
  CHECK(mixed.code == 3);
  CHECK(mixed.has("good.bin\n  format"));
  CHECK(mixed.has("has 1026 bytes, expected 1030"));
  CHECK(mixed.has("absent.bin"));
  CHECK(octet("data").code == 2);
  CHECK(octet("data info").code == 2);
  CHECK(octet("data info --raw-width uint64 x").code == 2);
  write_file(folder / "text", "text");
  CHECK(octet("tokenize " + (folder / "text") + " --output " + folder.path.string()).code == 2);  // not empty
  CHECK(octet("tokenize " + (folder / "missing") + " --output " + (folder / "out")).code == 3);
  CHECK(octet("tokenize " + (folder / "text") + " --output " + (folder / "out") + " --validation 1.5").code ==
        2);
  for (const char* command : {"tokenize", "data", "data info", "data check", "data head"}) {
    const Outcome help = octet(std::string(command) + " --help");
    CHECK(help.code == 0);
    CHECK(help.has("Example:\n  octet "));
  }
}
