#include "kernels/embedding.h"

#include <cmath>
#include <vector>

#include "array.h"
#include "catch.h"
#include "environment.h"

using namespace octet;

namespace {

Format format_of(DType type) { return type == DType::F32 ? Format::FP32 : Format::BF16; }

// Ids of a text: few that occur often, many that occur seldom.
Array some_ids(int64_t tokens, int64_t vocabulary, uint64_t key) {
  Array ids(DType::I32, {tokens});
  for (int64_t t = 0; t < tokens; ++t) {
    const Random4 r = philox(key, static_cast<uint64_t>(t));
    const auto v = static_cast<uint32_t>(vocabulary);
    ids.as<int32_t>()[t] = static_cast<int32_t>(r.x % 4 == 0 ? r.y % (v < 3 ? v : 3) : r.y % v);
  }
  return ids;
}

struct Backward {
  DType storage = DType::BF16, gradient = DType::F32;
  int64_t tokens = 100, vocabulary = 50, width = 16;
  size_t misaligned = 0;
  Values values = Values::Wide;
};

Array by_kernel(const Backward& b, const Array& table, const Array& ids, const Array& out_gradient,
                float multiplier = 1) {
  Array result(table);
  // 256-byte aligned, of exactly the size asked for.
  const auto bytes = static_cast<size_t>(kernels::embedding_scratch_bytes(b.tokens));
  const std::unique_ptr<std::byte, void (*)(std::byte*)> scratch(
      static_cast<std::byte*>(::operator new (bytes, std::align_val_t{256})),
      [](std::byte* p) { ::operator delete (p, std::align_val_t{256}); });
  kernels::embedding_backward({.storage = format_of(b.storage),
                               .gradient_storage = format_of(b.gradient),
                               .table_gradient = result.data(),
                               .ids = ids.as<int32_t>(),
                               .out_gradient = out_gradient.data(),
                               .tokens = b.tokens,
                               .vocabulary = b.vocabulary,
                               .width = b.width,
                               .multiplier = multiplier,
                               .scratch = scratch.get()});
  return result;
}
Array random_table(const Backward& b) {
  Array table(b.gradient, {b.vocabulary, b.width}, b.misaligned);
  randomize(table, b.values, 1);
  return table;
}
Array random_gradient(const Backward& b) {
  Array gradient(b.storage, {b.tokens, b.width}, b.misaligned);
  randomize(gradient, b.values, 2);
  return gradient;
}
void check_same(const Backward& b) {
  const Array table = random_table(b), gradient = random_gradient(b),
              ids = some_ids(b.tokens, b.vocabulary, 3);
  const Array ours = by_kernel(b, table, ids, gradient), theirs(table);
  specification().embedding_backward({.table_gradient = theirs, .tokens = ids, .out_gradient = gradient});
  INFO(name_of(b.storage) << " into " << name_of(b.gradient) << ", " << b.tokens << " tokens of "
                          << b.vocabulary << ", width " << b.width << ", misaligned by " << b.misaligned);
  CHECK(differences(ours, theirs) == 0);
  CHECK(differences(ours, table) > 0);
}

}  // namespace

TEST_CASE("embedding forward copies rows bit for bit at any width and alignment") {
  for (const DType type : {DType::F32, DType::BF16}) {
    for (const int64_t width : {1, 7, 8, 260, 1000}) {
      for (const size_t misaligned : {0u, 4u}) {
        const int64_t vocabulary = 11, tokens = 40;
        Array table(type, {vocabulary, width}, misaligned);
        for (size_t i = 0; i < table.tensor().bytes(); ++i)  // every pattern, signalling NaNs too
          static_cast<uint8_t*>(table.data())[i] = static_cast<uint8_t>(philox(6, i).x);
        const Array ids = some_ids(tokens, vocabulary, 5), expected(type, {tokens, width});
        const Array out(type, {tokens, width}, misaligned);
        uint32_t bad_token = 0;
        kernels::embedding_forward({.storage = format_of(type),
                                    .out = out.data(),
                                    .ids = ids.as<int32_t>(),
                                    .table = table.data(),
                                    .tokens = tokens,
                                    .vocabulary = vocabulary,
                                    .width = width,
                                    .bad_token = &bad_token});
        specification().embedding_forward({.out = expected, .tokens = ids, .table = table});
        INFO(name_of(type) << ", width " << width << ", misaligned by " << misaligned);
        CHECK(std::memcmp(out.data(), expected.data(), out.tensor().bytes()) == 0);
        CHECK(bad_token == 0);
      }
    }
  }
}

TEST_CASE("embedding forward reports an id out of range and gives it a row of zeros") {
  for (const int32_t bad : {-1, 11, INT32_MIN, INT32_MAX}) {
    Array table(DType::BF16, {11, 24}), ids = some_ids(40, 11, 5);
    const Array out(DType::BF16, {40, 24});
    randomize(table, Values::Tame, 7);
    std::memset(out.data(), 0xff, out.tensor().bytes());
    ids.as<int32_t>()[9] = ids.as<int32_t>()[4] = bad;
    uint32_t bad_token = 0;
    kernels::embedding_forward({.storage = Format::BF16,
                                .out = out.data(),
                                .ids = ids.as<int32_t>(),
                                .table = table.data(),
                                .tokens = 40,
                                .vocabulary = 11,
                                .width = 24,
                                .bad_token = &bad_token});
    CHECK(bad_token == 10);
    for (int64_t i = 0; i < 24; ++i) {
      CHECK(out.get(4 * 24 + i) == 0.0f);
      CHECK(out.get(5 * 24 + i) == table.get(ids.as<int32_t>()[5] * 24 + i));
    }
  }
}

TEST_CASE("embedding backward has the bits of the CPU's sums in token order") {
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const DType gradient : {DType::F32, DType::BF16}) {
      for (const int64_t width : {1, 8, 27, 264, 520})
        check_same({.storage = storage, .gradient = gradient, .width = width});
      check_same({.storage = storage, .gradient = gradient, .width = 24, .misaligned = 4});
      check_same({.storage = storage, .gradient = gradient, .tokens = 1, .vocabulary = 1});
      check_same({.storage = storage, .gradient = gradient, .values = Values::Broken});
    }
  }
}

TEST_CASE("embedding backward sorts any number of tokens of any vocabulary") {
  for (const int64_t vocabulary : {1, 2, 255, 256, 257, 65535, 65536, 70000})  // one, two and three digits
    check_same({.tokens = 31, .vocabulary = vocabulary, .width = 3});
  for (const int64_t tokens : {256, 2048, 2049})
    check_same({.tokens = tokens, .vocabulary = 257, .width = 3});
  check_same(
      {.tokens = 4500, .vocabulary = 300, .width = 8});  // three blocks, and runs of hundreds of tokens
}

TEST_CASE("embedding backward skips ids out of range") {
  Backward b{.tokens = 500};
  const Array table = random_table(b), gradient = random_gradient(b);
  Array ids = some_ids(b.tokens, b.vocabulary, 3), good(ids), cleared(gradient);
  for (int64_t t = 0; t < b.tokens; t += 7) {
    const int32_t bad[] = {-1, 50, INT32_MIN, INT32_MAX};
    ids.as<int32_t>()[t] = bad[t % 4];
  }
  std::vector<int64_t> kept;  // without these tokens
  for (int64_t t = 0; t < b.tokens; ++t) {
    if (t % 7) kept.push_back(t);
  }
  const auto count = static_cast<int64_t>(kept.size());
  Array kept_ids(DType::I32, {count}), kept_gradient(b.storage, {count, b.width});
  for (int64_t i = 0; i < count; ++i) {
    kept_ids.as<int32_t>()[i] = good.as<int32_t>()[kept[static_cast<size_t>(i)]];
    std::memcpy(kept_gradient.tensor().slice(i, 1).data,
                gradient.tensor().slice(kept[static_cast<size_t>(i)], 1).data,
                static_cast<size_t>(b.width) * 2);
  }
  const Array ours = by_kernel(b, table, ids, gradient), theirs(table);
  specification().embedding_backward(
      {.table_gradient = theirs, .tokens = kept_ids, .out_gradient = kept_gradient});
  CHECK(differences(ours, theirs) == 0);
}

TEST_CASE(
    "embedding backward gives the same bits in every schedule, and another order of tokens is noticed") {
  const Backward b{.storage = DType::F32, .tokens = 2200, .vocabulary = 300};
  const Array table = random_table(b), gradient = random_gradient(b),
              ids = some_ids(b.tokens, b.vocabulary, 3);
  const Array theirs(table);
  specification().embedding_backward({.table_gradient = theirs, .tokens = ids, .out_gradient = gradient});
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    CHECK(differences(by_kernel(b, table, ids, gradient), theirs) == 0);
  }
  Array reversed_ids(ids), reversed(gradient);
  for (int64_t t = 0; t < b.tokens; ++t) {
    reversed_ids.as<int32_t>()[t] = ids.as<int32_t>()[b.tokens - 1 - t];
    std::memcpy(reversed.tensor().slice(t, 1).data, gradient.tensor().slice(b.tokens - 1 - t, 1).data,
                static_cast<size_t>(b.width) * 4);
  }
  CHECK(differences(by_kernel(b, table, reversed_ids, reversed), theirs) > 0);
}

TEST_CASE("a multiplier on the embedding has the CPU's bits, forward and backward") {
  constexpr float multiplier = 50.3f;
  for (const DType type : {DType::F32, DType::BF16}) {
    for (const int64_t width : {1, 7, 8, 264, 1000}) {
      for (const size_t misaligned : {0u, 4u}) {
        const Backward b{type, DType::F32, 60, 11, width, misaligned, Values::Wide};
        Array table(type, {b.vocabulary, width}, misaligned);
        randomize(table, Values::Wide, 6);
        const Array ids = some_ids(b.tokens, b.vocabulary, 5), theirs(type, {b.tokens, width}),
                    ours(type, {b.tokens, width}, misaligned);
        kernels::embedding_forward({.storage = format_of(type),
                                    .out = ours.data(),
                                    .ids = ids.as<int32_t>(),
                                    .table = table.data(),
                                    .tokens = b.tokens,
                                    .vocabulary = b.vocabulary,
                                    .width = width,
                                    .multiplier = multiplier});
        specification().embedding_forward(
            {.out = theirs, .tokens = ids, .table = table, .multiplier = multiplier});
        CHECK(differences(ours, theirs) == 0);

        const Array start = random_table(b), gradient = random_gradient(b), expected(start), once(start);
        const Array result = by_kernel(b, start, ids, gradient, multiplier);
        specification().embedding_backward(
            {.table_gradient = expected, .tokens = ids, .out_gradient = gradient, .multiplier = multiplier});
        specification().embedding_backward({.table_gradient = once, .tokens = ids, .out_gradient = gradient});
        CHECK(differences(result, expected) == 0);
        CHECK(differences(result, once) > 0);
      }
    }
  }
}

TEST_CASE("a token out of range is a zero row with a multiplier, too") {
  Array table(DType::F32, {3, 16}), ids(DType::I32, {3}), out(DType::F32, {3, 16});
  randomize(table, Values::Tame, 6);
  ids.as<int32_t>()[1] = 3;
  uint32_t bad_token = 0;
  kernels::embedding_forward({.storage = Format::FP32,
                              .out = out.data(),
                              .ids = ids.as<int32_t>(),
                              .table = table.data(),
                              .tokens = 3,
                              .vocabulary = 3,
                              .width = 16,
                              .multiplier = 2,
                              .bad_token = &bad_token});
  CHECK(bad_token == 2);
  CHECK(out.get(16) == 0.0f);
  CHECK(out.get(0) == 2 * table.get(0));
}
