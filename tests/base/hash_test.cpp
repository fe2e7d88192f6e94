#include "base/hash.h"

#include <string>

#include "catch.h"

using namespace octet;

TEST_CASE("hash64 is XXH3-64") {
  CHECK(hex(hash64("", 0)) == "2d06800538d394c2");  // published test vector of XXH3 for empty input
  CHECK(hash64("a", 1) != hash64("b", 1));
  CHECK(hash64("a", 1, 1) != hash64("a", 1));
}

TEST_CASE("a stream hashed in pieces of any length equals the whole") {
  std::string data;
  for (int i = 0; i < 5000; ++i) data += static_cast<char>(i * 31 % 251);
  for (const size_t piece : {size_t{1}, size_t{7}, size_t{256}, size_t{1024}, size_t{5000}}) {
    StreamHash stream;
    stream.update(nullptr, 0);
    for (size_t i = 0; i < data.size(); i += piece)
      stream.update(data.data() + i, std::min(piece, data.size() - i));
    CHECK(stream.digest() == hash64(data.data(), data.size()));
  }
  StreamHash other;
  other.update(data.data(), data.size() - 1);
  CHECK(other.digest() != hash64(data.data(), data.size()));
}

TEST_CASE("hex has sixteen digits") { CHECK(hex(0xabc) == "0000000000000abc"); }
