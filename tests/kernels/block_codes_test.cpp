#include "kernels/block_codes.h"

#include <cstring>

#include "array.h"
#include "catch.h"
#include "environment.h"
#include "numerics/block_codes.h"

using namespace octet;

namespace {

struct Problem {
  DType type = DType::F32;
  int64_t count = 1000, pieces = 1, sources = 1;
  size_t misaligned = 0;
  Values values = Values::Wide;
  int log2_mu = 0;
  uint64_t key = 1;

  int64_t piece() const { return std::max<int64_t>(1, (count + pieces - 1) / pieces); }
  Format storage() const { return type == DType::F32 ? Format::FP32 : Format::BF16; }
};

struct Wire {
  explicit Wire(const Problem& p)
      : source(p.type, {p.count}, p.misaligned),
        messages(DType::U8, {p.pieces, message_bytes(p.piece())}),
        saturated(DType::U32, {1}) {
    randomize(source, p.values, 7);
    std::memset(messages.data(), 0x55, messages.tensor().bytes());
    *saturated.as<uint32_t>() = 3;
  }
  Array source, messages, saturated;
};

void encode_with_kernel(const Problem& p, const Wire& wire) {
  kernels::encode_blocks({.source = wire.source.data(),
                          .storage = p.storage(),
                          .count = p.count,
                          .messages = wire.messages.as<uint8_t>(),
                          .pieces = p.pieces,
                          .piece = p.piece(),
                          .log2_mu = p.log2_mu,
                          .rounding_key = p.key,
                          .saturated = wire.saturated.as<uint32_t>()});
}
void encode_as_specified(const Problem& p, const Wire& wire) {
  specification().encode_blocks({.source = wire.source,
                                 .messages = wire.messages,
                                 .piece = p.piece(),
                                 .log2_mu = p.log2_mu,
                                 .rounding_key = p.key,
                                 .saturated = wire.saturated});
}
int64_t different(const Wire& a, const Wire& b) {
  return differences(a.messages, b.messages) + differences(a.saturated, b.saturated);
}

// Every code, and scales of all sizes.
void fill_messages(const Problem& p, Array& messages) {
  for (int64_t i = 0; i < messages.elements(); ++i) {
    const int64_t in_message = i % message_bytes(p.piece());
    const uint32_t draw = random_bits(p.key, static_cast<uint64_t>(i));
    messages.as<uint8_t>()[i] = static_cast<uint8_t>(in_message < coded_bytes(p.piece()) ? draw % 256
                                                     : draw % 50 == 0                    ? e8m0_nan
                                                                                         : 97 + draw % 60);
  }
}
void decode_with_kernel(const Problem& p, const Array& messages, const Array& out, bool accumulate = false) {
  kernels::decode_blocks({.messages = messages.as<uint8_t>(),
                          .sources = p.sources,
                          .pieces = p.pieces,
                          .piece = p.piece(),
                          .out = out.data(),
                          .storage = p.storage(),
                          .count = p.count,
                          .accumulate = accumulate});
}

const int64_t counts[] = {1, 7, 8, 17, 255, 256, 257, 1000, 2048, 50003};  // the last one walks over the grid

}  // namespace

TEST_CASE(
    "block codes have the bits of the CPU's at any size, alignment and storage, with broken values too") {
  for (const DType type : {DType::F32, DType::BF16})
    for (const int64_t count : counts)
      for (const int64_t pieces : {1, 4})
        for (const size_t misaligned : {0u, 4u})
          for (const Values values : {Values::Wide, Values::Broken})
            for (const int log2_mu : {0, 2}) {
              const Problem p{.type = type,
                              .count = count,
                              .pieces = pieces,
                              .misaligned = misaligned,
                              .values = values,
                              .log2_mu = log2_mu};
              const Wire ours(p), theirs(p);
              encode_with_kernel(p, ours);
              encode_as_specified(p, theirs);
              INFO(name_of(type) << ", " << count << " in " << pieces << ", misaligned by " << misaligned);
              CHECK(different(ours, theirs) == 0);
            }
}

TEST_CASE("sums of decoded blocks have the bits of the CPU's at any size, alignment and storage") {
  for (const DType type : {DType::F32, DType::BF16})
    for (const int64_t count : counts)
      for (const int64_t pieces : {1, 4})
        for (const int64_t sources : {1, 2, 7})
          for (const size_t misaligned : {0u, 4u}) {
            const Problem p{.type = type, .count = count, .pieces = pieces, .sources = sources};
            Array messages(DType::U8, {sources, pieces, message_bytes(p.piece())});
            fill_messages(p, messages);
            const Array ours(type, {count}, misaligned), theirs(type, {count}, misaligned);
            decode_with_kernel(p, messages, ours);
            specification().decode_blocks({.messages = messages, .out = theirs, .piece = p.piece()});
            INFO(name_of(type) << ", " << count << " in " << pieces << " of " << sources);
            CHECK(differences(ours, theirs) == 0);
            // And once more, onto that.
            decode_with_kernel(p, messages, ours, true);
            specification().decode_blocks(
                {.messages = messages, .out = theirs, .piece = p.piece(), .accumulate = true});
            CHECK(differences(ours, theirs) == 0);
          }
}

TEST_CASE("block codes give the same bits in every schedule, another key or scale is noticed") {
  const Problem p{.count = 5000, .pieces = 3, .sources = 2, .log2_mu = 1};
  const Wire theirs(p);
  encode_as_specified(p, theirs);
  Array messages(DType::U8, {2, 3, message_bytes(p.piece())});
  fill_messages(p, messages);
  const Array sum(DType::F32, {p.count});
  specification().decode_blocks({.messages = messages, .out = sum, .piece = p.piece()});
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    const Wire ours(p);
    encode_with_kernel(p, ours);
    CHECK(different(ours, theirs) == 0);
    const Array ours_sum(DType::F32, {p.count});
    decode_with_kernel(p, messages, ours_sum);
    CHECK(differences(ours_sum, sum) == 0);
  }
  for (const Problem& other : {Problem{.count = 5000, .pieces = 3, .log2_mu = 1, .key = 2},
                               Problem{.count = 5000, .pieces = 3, .log2_mu = 0}}) {
    const Wire ours(other);
    encode_with_kernel(other, ours);
    CHECK(different(ours, theirs) > 100);
  }
}
