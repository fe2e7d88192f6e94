#include "catch.h"
#include "cli/command_run.h"
#include "data/shard_files.h"

using shard_files::llmc16;
using shard_files::write_file;

TEST_CASE("tokenize, then info, check and head tell the same story") {
  const shard_files::TemporaryFolder folder;
  write_file(folder / "text.txt", "Hello\tworld\n\x1b[31mred\n" + std::string(2000, 'x') + "\nend\n");
  const CommandRun made = run_octet("tokenize " + (folder / "text.txt") + " --output " + (folder / "out"));
  INFO(made.output);
  CHECK(made.code == 0);
  CHECK(made.says("1 shard "));
  CHECK_FALSE(made.says("\x1b"));  // no bar when this is no terminal
  const std::string shard = folder / "out/train_000000.bin";
  const CommandRun info = run_octet("data info " + shard);
  CHECK(info.code == 0);
  for (const char* part : {"llm.c v1 (uint16)", "tokens     2027", "documents  1", "ids        9 to 256"})
    CHECK(info.says(part));
  const CommandRun good = run_octet("data check --vocabulary 257 " + shard),
                   bad = run_octet("data check --vocabulary 256 " + shard);
  CHECK(good.code == 0);
  CHECK(good.says("ok "));
  CHECK(bad.code == 3);
  CHECK(bad.says("token 0 (byte 1024) is id 256"));
  const CommandRun head = run_octet("data head --tokens 22 " + shard);
  CHECK(head.code == 0);
  CHECK(head.says("<|endoftext|>Hello\tworld\n\\x1b[31mred"));
  CHECK_FALSE(head.says("\x1b"));
  CHECK(run_octet("data head --ids --tokens 3 " + shard).output == "256 72 101\n");
  write_file(folder / "gpt2.bin", llmc16({50256, 11, 40000}));
  CHECK(run_octet("data head " + (folder / "gpt2.bin")).output == "50256 11 40000\n");
}

TEST_CASE("data commands exit with the documented codes and name every fault") {
  const shard_files::TemporaryFolder folder;
  write_file(folder / "good.bin", llmc16({1, 2, 3}));
  write_file(folder / "short.bin", llmc16({1, 2, 3}).substr(0, 1026));
  const CommandRun mixed = run_octet("data info " + (folder / "*.bin") + " " + (folder / "absent.bin"));
  CHECK(mixed.code == 3);
  CHECK(mixed.says("good.bin\n  format"));
  CHECK(mixed.says("has 1026 bytes, expected 1030"));
  CHECK(mixed.says("absent.bin"));
  CHECK(run_octet("data").code == 2);
  CHECK(run_octet("data info").code == 2);
  CHECK(run_octet("data info --raw-width uint64 x").code == 2);
  const CommandRun none = run_octet("data head --tokens 0 x");
  CHECK(none.code == 2);
  CHECK(none.output.size() < 200);  // the limits, not 309 digits
  write_file(folder / "text", "text");
  CHECK(run_octet("tokenize " + (folder / "text") + " --output " + folder.path.string()).code ==
        2);  // not empty
  CHECK(run_octet("tokenize " + (folder / "missing") + " --output " + (folder / "out")).code == 3);
  CHECK(run_octet("tokenize " + (folder / "text") + " --output " + (folder / "out") + " --validation 1.5")
            .code == 2);
  for (const char* command : {"tokenize", "data", "data info", "data check", "data head"}) {
    const CommandRun help = run_octet(std::string(command) + " --help");
    CHECK(help.code == 0);
    CHECK(help.says("Example:\n  octet "));
  }
}

TEST_CASE("tokenize says the share it held out, warns when it is far off, and counts what it passed over") {
  const shard_files::TemporaryFolder folder;
  write_file(folder / "large", std::string(9000, 'a'));
  write_file(folder / "small", std::string(100, 'b'));
  write_file(folder / "binary", std::string(10, '\0'));
  const auto call = [&](const std::string& share, const std::string& output) {
    return run_octet("tokenize " + (folder / "large") + " " + (folder / "small") + " " + (folder / "binary") +
                     " --validation " + share + " --output " + (folder / output));
  };
  const CommandRun off = call("0.5", "off"), near = call("0.01", "near");
  INFO(off.output << near.output);
  CHECK(off.code == 0);
  CHECK(off.says("% of the bytes; asked for 50.0 %"));
  CHECK(off.says("too few or too uneven"));
  CHECK(off.says("1 binary file"));
  CHECK(near.says("held out    1.1 % of the bytes; asked for 1.0 %"));
  CHECK_FALSE(near.says("too few"));
}

TEST_CASE("info's estimate of documents is a whole number") {
  const shard_files::TemporaryFolder folder;
  std::vector<int64_t> ids((1 << 20) * 3 / 2, 7);
  for (size_t i = 0; i < ids.size(); i += 100001) ids[i] = 256;  // 11 in the first 2^20: 16.5 in all
  write_file(folder / "long.bin", llmc16(ids));
  const CommandRun info = run_octet("data info " + (folder / "long.bin"));
  INFO(info.output);
  CHECK(info.says("documents  about 17\n"));
}
