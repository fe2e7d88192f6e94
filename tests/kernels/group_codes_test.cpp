#include "kernels/group_codes.h"

#include <cstring>

#include "array.h"
#include "catch.h"
#include "environment.h"
#include "numerics/group_codes.h"

using namespace octet;

namespace {

struct Problem {
  DType type = DType::BF16;
  int64_t count = 1024;
  Values values = Values::Wide;

  Format storage() const { return type == DType::F32 ? Format::FP32 : Format::BF16; }
};
struct Kept {
  explicit Kept(int64_t count) : codes(DType::E4M3, {count}), scales(DType::U8, {count / code_group}) {
    std::memset(codes.data(), 0x55, static_cast<size_t>(count));
    std::memset(scales.data(), 0x55, static_cast<size_t>(count / code_group));
  }
  Array codes, scales;
};

// 16: one group; 240: a warp that is not full; the last one walks over the grid.
const int64_t counts[] = {16, 240, 256, 1024, 4080, 100 * 1024 + 16};

}  // namespace

TEST_CASE("codes of kept activations have the bits of the CPU's at any size, with broken values too") {
  for (const DType type : {DType::F32, DType::BF16})
    for (const int64_t count : counts)
      for (const Values values : {Values::Wide, Values::Broken}) {
        const Problem p{type, count, values};
        Array source(type, {count});
        randomize(source, values, 7);
        Kept kernel(count), cpu(count);
        kernels::encode_groups({.source = source.data(),
                                .storage = p.storage(),
                                .count = count,
                                .codes = kernel.codes.as<uint8_t>(),
                                .scales = kernel.scales.as<uint8_t>()});
        specification().encode_groups({.source = source, .codes = cpu.codes, .scales = cpu.scales});
        INFO(count << " values of " << name_of(type));
        CHECK(differences(kernel.codes, cpu.codes) == 0);
        CHECK(differences(kernel.scales, cpu.scales) == 0);
      }
}

TEST_CASE("kept activations come back with the bits of the CPU's, whatever the codes are") {
  for (const DType type : {DType::F32, DType::BF16})
    for (const int64_t count : counts) {
      const Problem p{type, count};
      Kept kept(count);
      for (int64_t i = 0; i < count; ++i)
        kept.codes.as<uint8_t>()[i] = static_cast<uint8_t>(random_bits(1, static_cast<uint64_t>(i)));
      for (int64_t i = 0; i < count / code_group; ++i)
        kept.scales.as<uint8_t>()[i] = static_cast<uint8_t>(random_bits(2, static_cast<uint64_t>(i)));
      Array kernel(type, {count}), cpu(type, {count});
      kernels::decode_groups({.codes = kept.codes.as<uint8_t>(),
                              .scales = kept.scales.as<uint8_t>(),
                              .out = kernel.data(),
                              .storage = p.storage(),
                              .count = count});
      specification().decode_groups({.codes = kept.codes, .scales = kept.scales, .out = cpu});
      INFO(count << " values of " << name_of(type));
      CHECK(differences(kernel, cpu) == 0);
    }
}
