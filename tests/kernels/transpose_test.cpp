#include "kernels/transpose.h"

#include <cstring>

#include "array.h"
#include "catch.h"
#include "environment.h"

using namespace octet;

namespace {

struct Shape2 {
  int64_t rows, columns;
  size_t misaligned = 0;
};

int64_t wrong_bytes(const Shape2& s) {
  const Array codes(DType::U8, {s.rows, s.columns}, s.misaligned),
      out(DType::U8, {s.columns, s.rows}, s.misaligned);
  for (int64_t i = 0; i < codes.elements(); ++i)
    codes.as<uint8_t>()[i] = static_cast<uint8_t>(random_bits(7, static_cast<uint64_t>(i)));
  std::memset(out.data(), 0x55, out.tensor().bytes());
  kernels::transpose(
      {.codes = codes.as<uint8_t>(), .out = out.as<uint8_t>(), .rows = s.rows, .columns = s.columns});
  int64_t wrong = 0;
  for (int64_t r = 0; r < s.rows; ++r)
    for (int64_t c = 0; c < s.columns; ++c)
      wrong += out.as<uint8_t>()[c * s.rows + r] != codes.as<uint8_t>()[r * s.columns + c];
  return wrong;
}

}  // namespace

TEST_CASE("bytes are transposed at ragged, minimal and unaligned shapes") {
  for (const Shape2& s :
       {Shape2{1, 1}, Shape2{1, 200}, Shape2{131, 1}, Shape2{16, 16}, Shape2{128, 128}, Shape2{144, 272},
        Shape2{129, 127}, Shape2{67, 149}, Shape2{32, 250}, Shape2{250, 32}, Shape2{144, 272, 3}}) {
    CAPTURE(s.rows, s.columns, s.misaligned);
    CHECK(wrong_bytes(s) == 0);
  }
}

TEST_CASE("bytes are transposed in every schedule") {
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "2");
    CHECK(wrong_bytes({144, 272}) == 0);
    CHECK(wrong_bytes({67, 149}) == 0);
  }
}
