// Any bytes end in a configuration or in a usage error: the fuzz target's claim, on mutations of a real file.
#include <filesystem>
#include <random>

#include "base/files.h"
#include "base/text.h"
#include "catch.h"
#include "config/run_config.h"

using namespace octet;

TEST_CASE("a mutated configuration is read or refused, and what is read reads back as itself") {
  const std::string original =
      read_text(std::filesystem::path(OCTET_SOURCE_DIR) / "configs" / "quickstart.json", ExitCode::Usage);
  std::mt19937 random(7);
  const char* pieces[] = {"{",  "}",    "[",  "]",  "\"",      ",",    ":",    "1e400",
                          "-0", "null", "//", "/*", "\\u0000", "\xff", "\x80", "9e99"};
  int read = 0, refused = 0;
  for (int round = 0; round < 600; ++round) {
    std::string text = original;
    for (auto edits = random() % 3 + 1; edits > 0; --edits) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, random() % 20);
          break;
        case 2:
          text.insert(at, pieces[random() % std::size(pieces)]);
          break;
        default:
          text = text.substr(0, at + 1);
      }
    }
    try {
      const RunConfig config = parse_config(text, "mutated");
      REQUIRE(parse_config(to_json(config), "resolved") == config);
      ++read;
    } catch (const Error& error) {
      REQUIRE(error.code() == ExitCode::Usage);
      for (const char c : std::string(error.what()))
        REQUIRE((c == '\n' || static_cast<unsigned char>(c) >= 0x20));
      ++refused;
    }
  }
  CHECK(read > 10);
  CHECK(refused > 100);
}
