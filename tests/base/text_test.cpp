#include "base/text.h"

#include <vector>

#include "catch.h"

using namespace octet;

TEST_CASE("escape_control leaves printable text and UTF-8 alone") {
  CHECK(escape_control("loss 2.5, Straße, 数") == "loss 2.5, Straße, 数");
}

TEST_CASE("escape_control disarms terminal escapes, line breaks and broken UTF-8") {
  CHECK(escape_control("a\x1b[31mb\n\r\t\x7f") == "a\\x1b[31mb\\x0a\\x0d\\x09\\x7f");
  CHECK(escape_control(std::string_view("a\0b", 3)) == "a\\x00b");
  CHECK(escape_control("\xc2\x9b") == "\\xc2\\x9b");           // C1 control: CSI
  CHECK(escape_control("\xe2\x80\xae") == "\\xe2\\x80\\xae");  // right-to-left override
  CHECK(escape_control("\xc0\x80\xff") == "\\xc0\\x80\\xff");  // overlong, stray
  CHECK(escape_control("\xed\xa0\x80") == "\\xed\\xa0\\x80");  // surrogate
  CHECK(escape_control("\xe6\x95") == "\\xe6\\x95");           // cut off
}

TEST_CASE("escape_html leaves nothing that could open a tag or end an attribute") {
  CHECK(escape_html("<a href='x' b=\"y\">&") == "&lt;a href=&#39;x&#39; b=&quot;y&quot;&gt;&amp;");
}

TEST_CASE("edit distance counts insertions, deletions and replacements") {
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("abc", "abc") == 0);
}

TEST_CASE("nearest suggests a close key and nothing for a far one") {
  const std::vector<std::string> keys{"learning_rate", "warmup_steps", "final_fraction"};
  CHECK(nearest("learning_rat", keys) == "learning_rate");
  CHECK(nearest("warmupsteps", keys) == "warmup_steps");
  CHECK(nearest("vocabulary", keys).empty());
  CHECK(nearest("x", {}).empty());
}

TEST_CASE("units read naturally and change at their limits") {
  CHECK(human_bytes(1023) == "1023 B");
  CHECK(human_bytes(1024) == "1.00 KiB");
  CHECK(human_bytes(1610612736) == "1.50 GiB");
  CHECK(human_bytes((1u << 20) - 1) == "1.00 MiB");
  CHECK(human_bytes(UINT64_MAX) == "16.00 EiB");
  CHECK(human_count(999) == "999");
  CHECK(human_count(124'439'808) == "124.4M");
  CHECK(human_count(999'960) == "1.0M");
  CHECK(human_duration(0.25) == "0.2 s");
  CHECK(human_duration(41) == "41 s");
  CHECK(human_duration(59.7) == "1m 00s");
  CHECK(human_duration(7380) == "2h 03m");
  CHECK(human_duration(90000) == "1d 01h");
  CHECK(human_duration(-1) == "unknown");
  CHECK(iso_time(0) == "1970-01-01T00:00:00Z");
  CHECK(iso_time(1795302245.9) == "2026-11-21T23:04:05Z");
}

TEST_CASE("counted nouns agree with their number") {
  CHECK(plural(0, "document") == "0 documents");
  CHECK(plural(1, "document") == "1 document");
  CHECK(plural(2, "micro-batch") == "2 micro-batches");
  CHECK(plural(1, "micro-batch") == "1 micro-batch");
  CHECK(plural(3, "loss") == "3 losses");
  CHECK(plural(2, "epoch") == "2 epochs");
}
