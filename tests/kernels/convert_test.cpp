#include "kernels/convert.h"

#include "array.h"
#include "catch.h"

using namespace octet;

namespace {

void convert(const Array& to, const Array& from) {
  const auto storage = [](const Array& a) {
    return a.tensor().dtype == DType::F32 ? Format::FP32 : Format::BF16;
  };
  kernels::convert({.to = to.data(),
                    .to_storage = storage(to),
                    .from = from.data(),
                    .from_storage = storage(from),
                    .count = to.elements()});
}

}  // namespace

TEST_CASE("convert has the bits of the CPU's copy at any count and alignment") {
  for (const int64_t count : {1, 7, 8, 9, 255, 4099, 40001}) {
    for (const size_t misaligned : {0u, 4u}) {
      Array wide(DType::F32, {count}, misaligned);
      randomize(wide, Values::Broken, 11);
      Array narrow(DType::BF16, {count}, misaligned), expected(DType::BF16, {count});
      convert(narrow, wide);
      specification().copy(expected, wide);
      INFO("count " << count << ", misaligned by " << misaligned);
      CHECK(differences(narrow, expected) == 0);
      Array again(DType::F32, {count}), widened(DType::F32, {count});
      convert(again, narrow);
      specification().copy(widened, expected);
      CHECK(differences(again, widened) == 0);
      if (count > 8) CHECK(differences(again, wide) > count / 2);  // the comparison sees a rounding
    }
  }
}

TEST_CASE("convert keeps the payload of a NaN and rounds ties to even") {
  Array wide(DType::F32, {9}), narrow(DType::BF16, {9});
  const uint32_t bits[9] = {0x7f800001, 0xffc12345, 0x3f808000, 0x3f818000, 0x3f808001,
                            0x7f7fffff, 0x00000001, 0x80008000, 0x7f800000};
  const uint16_t rounded[9] = {0x7fc0, 0xffc1, 0x3f80, 0x3f82, 0x3f81, 0x7f80, 0x0000, 0x8000, 0x7f80};
  std::memcpy(wide.data(), bits, sizeof bits);
  convert(narrow, wide);
  for (int i = 0; i < 9; ++i) {
    INFO("value " << i);
    CHECK(narrow.as<BFloat16>()[i].bits == rounded[i]);
  }
}
