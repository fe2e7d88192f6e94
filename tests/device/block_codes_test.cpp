#include "numerics/block_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "catch.h"
#include "error_of.h"
#include "op_fixture.h"

using namespace octet;

namespace {

struct Sizes {
  int64_t n, pieces;
  int64_t piece() const { return std::max<int64_t>(1, (n + pieces - 1) / pieces); }
};
const Sizes all_sizes[] = {{1, 1}, {1, 4}, {255, 1}, {256, 1}, {257, 1}, {1000, 3}, {4096, 4}, {70001, 2}};

// Many binades, zeros, and a block of zeros at 256.
Values wide_values(int64_t n, uint64_t key, DType dtype) {
  Values values = normal_values(n, key);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t draw = random_bits(random_key(key, Purpose::Test, 1), i);
    values[i] = rounded(dtype, values[i] * std::ldexp(1.0f, static_cast<int>(draw % 30) - 20));
    if (draw % 13 == 0 || i / 256 == 1) values[i] = 0;
  }
  return values;
}

struct Encoded {
  Tensor messages, saturated;
};
Encoded encode(OpFixture& on, const Tensor& source, const Sizes& sizes, int log2_mu = 0, uint64_t key = 5) {
  const Encoded to{on.zeros(DType::U8, {sizes.pieces, message_bytes(sizes.piece())}),
                   on.zeros(DType::U32, {1})};
  std::memset(to.messages.data, 0xaa, to.messages.bytes());
  on->encode_blocks({.source = source,
                     .messages = to.messages,
                     .piece = sizes.piece(),
                     .log2_mu = log2_mu,
                     .rounding_key = key,
                     .saturated = to.saturated});
  return to;
}
Tensor decode(OpFixture& on, Tensor messages, int64_t sources, const Sizes& sizes, DType dtype) {
  messages.shape = {sources, sizes.pieces, message_bytes(sizes.piece())};
  const Tensor out = on.zeros(dtype, {sizes.n});
  on->decode_blocks({.messages = messages, .out = out, .piece = sizes.piece()});
  return out;
}
Bytes bytes_of(const Tensor& t) {
  const auto* const begin = static_cast<const uint8_t*>(t.data);
  return {begin, begin + t.bytes()};
}

}  // namespace

TEST_CASE("a message is the codes of its piece, value by value, then a scale for each block, then zeros") {
  for (const DType dtype : {DType::F32, DType::BF16})
    for (const Sizes& sizes : all_sizes) {
      OpFixture on;
      const Values values = wide_values(sizes.n, 1, dtype);
      const Encoded encoded = encode(on, on.floats(dtype, {sizes.n}, values), sizes, 1);
      const int64_t piece = sizes.piece();
      Bytes expected;
      uint32_t saturated = 0;
      for (int64_t p = 0; p < sizes.pieces; ++p) {
        Bytes codes, scales;
        const auto value = [&](int64_t i) {
          const int64_t at = p * piece + i;
          return i < piece && at < sizes.n ? values[static_cast<size_t>(at)] : 0.0f;
        };
        for (int64_t begin = 0; begin < piece; begin += code_block) {
          float amax = 0;
          for (int64_t i = begin; i < begin + code_block; ++i) amax = std::max(amax, std::fabs(value(i)));
          const float scale = 2 * power_of_two_scale(amax, e4m3_max);
          for (int64_t i = begin; i < std::min(begin + code_block, coded_bytes(piece)); ++i) {
            codes.push_back(
                encode_stochastic(Format::E4M3, value(i) * scale,
                                  random_bits(5, static_cast<uint64_t>(p * coded_bytes(piece) + i))));
            saturated += std::fabs(value(i) * scale) > 448.0f;
          }
          scales.push_back(static_cast<uint8_t>(127 - std::ilogb(scale)));
        }
        while (scales.size() % 16 != 0) scales.push_back(0);
        expected.insert(expected.end(), codes.begin(), codes.end());
        expected.insert(expected.end(), scales.begin(), scales.end());
      }
      INFO(name_of(dtype) << ", " << sizes.n << " values in " << sizes.pieces);
      CHECK(bytes_of(encoded.messages) == expected);
      CHECK(*encoded.saturated.as<uint32_t>() == saturated);
      CHECK(saturated > 0);  // that is what mu = 2 does
      CHECK(*encode(on, on.floats(dtype, {sizes.n}, values), sizes, 0).saturated.as<uint32_t>() == 0);
      CHECK((bytes_of(encode(on, on.floats(dtype, {sizes.n}, values), sizes, 1, 6).messages) != expected ||
             sizes.n < 8));  // another key, other roundings
    }
}

TEST_CASE("decoded messages are added in FP32 in their order, and rounded once") {
  for (const DType dtype : {DType::F32, DType::BF16})
    for (const Sizes& sizes : all_sizes)
      for (const int64_t sources : {1, 2, 5}) {
        OpFixture on;
        const int64_t piece = sizes.piece(), bytes = sizes.pieces * message_bytes(piece);
        const Tensor messages = on.zeros(DType::U8, {sources, bytes});
        for (int64_t s = 0; s < sources; ++s) {
          const auto key = static_cast<uint64_t>(s);
          Values values = wide_values(sizes.n, 10 + key, DType::F32);
          for (float& v : values) v = std::ldexp(v, static_cast<int>(9 * s));  // so that the order shows
          const Tensor source = on.floats(DType::F32, {sizes.n}, values);
          std::memcpy(messages.slice(s, 1).data, encode(on, source, sizes, 0, key).messages.data,
                      static_cast<size_t>(bytes));
        }
        const Values out = read_floats(decode(on, messages, sources, sizes, dtype));
        const auto term = [&](int64_t at, int64_t s) {
          const int64_t p = at / piece, i = at % piece;
          const uint8_t* const message = messages.as<uint8_t>() + s * bytes + p * message_bytes(piece);
          const uint8_t inverse = message[coded_bytes(piece) + i / 256];
          return std::ldexp(decode_e4m3(message[i]), inverse - 127);
        };
        const auto sum_at = [&](int64_t at, float sum) {
          for (int64_t s = 0; s < sources; ++s) sum += term(at, s);
          return sum;
        };
        int64_t wrong = 0, other_order = 0;
        for (int64_t at = 0; at < sizes.n; ++at) {
          float reversed = 0;
          for (int64_t s = sources; s-- > 0;) reversed += term(at, s);
          wrong += out[static_cast<size_t>(at)] != rounded(dtype, sum_at(at, 0));
          other_order += out[static_cast<size_t>(at)] != rounded(dtype, reversed);
        }
        CHECK(wrong == 0);
        if (sources == 5 && sizes.n > 1000 && dtype == DType::F32) CHECK(other_order > 0);

        // Onto what is there: it comes first.
        const Values start = wide_values(sizes.n, 40, dtype);
        Tensor parts = messages;
        parts.shape = {sources, sizes.pieces, message_bytes(piece)};
        const Tensor onto = on.floats(dtype, {sizes.n}, start);
        on->decode_blocks({.messages = parts, .out = onto, .piece = piece, .accumulate = true});
        const Values accumulated = read_floats(onto);
        int64_t not_first = 0;
        for (int64_t at = 0; at < sizes.n; ++at) {
          const auto i = static_cast<size_t>(at);
          const float first = sum_at(at, start[i]), last = sum_at(at, 0.0f) + start[i];
          wrong += accumulated[i] != rounded(dtype, first);
          not_first += accumulated[i] != rounded(dtype, last);
        }
        CHECK(wrong == 0);
        if (sources == 5 && sizes.n > 1000 && dtype == DType::F32) CHECK(not_first > 0);
      }
}

TEST_CASE("a value that is not finite makes its block NaN, and no other") {
  for (const float broken : {INFINITY, -INFINITY, NAN}) {
    OpFixture on;
    const Sizes sizes{1000, 1};
    Values values(1000, 1.0f);
    values[300] = broken;
    const Encoded encoded = encode(on, on.floats(DType::F32, {1000}, values), sizes);
    const Values out = read_floats(decode(on, encoded.messages, 1, sizes, DType::F32));
    for (size_t i = 0; i < out.size(); ++i) CHECK((i / 256 == 1 ? std::isnan(out[i]) : out[i] == 1.0f));
    CHECK(*encoded.saturated.as<uint32_t>() == 0);
  }
}

TEST_CASE("block codes have the same bits for 1, 2 and 4 threads") {
  const Sizes sizes{70001, 3};
  const auto with = [&](int threads) {
    OpFixture on(threads);
    const Encoded encoded =
        encode(on, on.floats(DType::F32, {sizes.n}, wide_values(sizes.n, 1, DType::F32)), sizes, 1);
    Bytes bytes = bytes_of(encoded.messages);
    const Bytes count = bytes_of(encoded.saturated),
                sum = bytes_of(decode(on, encoded.messages, 1, sizes, DType::F32));
    bytes.insert(bytes.end(), count.begin(), count.end());
    bytes.insert(bytes.end(), sum.begin(), sum.end());
    return bytes;
  };
  const Bytes one = with(1);
  CHECK(with(2) == one);
  CHECK(with(4) == one);
}

TEST_CASE("block codes refuse messages of another size") {
  OpFixture on;
  const Tensor source = on.zeros(DType::F32, {100}), counter = on.zeros(DType::U32, {1});
  EncodeBlocks encode{.source = source,
                      .messages = on.zeros(DType::U8, {2, message_bytes(50)}),
                      .piece = 50,
                      .saturated = counter};
  CHECK_NOTHROW(on->encode_blocks(encode));
  encode.piece = 49;
  CHECK(std::string(error_of([&] { on->encode_blocks(encode); }).what()).find("encode_blocks: 100 values") ==
        0);
  encode.piece = 50;
  encode.messages = on.zeros(DType::U8, {2, message_bytes(50) + 16});
  CHECK_THROWS_AS(on->encode_blocks(encode), Error);
  DecodeBlocks decode{.messages = on.zeros(DType::U8, {3, 2, message_bytes(50)}), .out = source, .piece = 50};
  CHECK_NOTHROW(on->decode_blocks(decode));
  decode.out = on.zeros(DType::F32, {101});
  CHECK_THROWS_AS(on->decode_blocks(decode), Error);
}
