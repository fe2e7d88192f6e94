// The pieces under every product: decoding of codes, and the innermost kernels.
#include "device/cpu/micro_kernel.h"

#include <cmath>
#include <string>
#include <vector>

#include "catch.h"
#include "device/cpu/unpack.h"
#include "device/matrices.h"

using namespace octet;
using matrices::uniform;

TEST_CASE("every code and every BF16 value unpacks to its exact value") {
  for (const DType type : {DType::E4M3, DType::E5M2}) {
    uint8_t codes[256];
    float values[256];
    uint16_t halves[256];
    for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
    unpack(type, codes, values, 256);
    unpack_to_bfloat16(type, codes, halves, 256);
    for (int i = 0; i < 256; ++i) {
      const float expected = type == DType::E4M3 ? decode_e4m3(codes[i]) : decode_e5m2(codes[i]);
      const float half = to_float(BFloat16{halves[i]});
      INFO(name_of(type) << " code " << i);
      CHECK(
          ((std::isnan(expected) && std::isnan(values[i]) && std::isnan(half)) ||
           (values[i] == expected && half == expected && std::signbit(values[i]) == std::signbit(expected))));
    }
  }
}

TEST_CASE("all micro-kernels of this machine give the bits of one chain of fused multiply-adds") {
  constexpr int64_t inner = 37, pitch = 48;
  std::vector<float> a(pitch * inner), b(pitch * inner), first(32 * pitch), c(32 * pitch);
  for (size_t i = 0; i < a.size(); ++i) a[i] = uniform(1, i), b[i] = uniform(2, i);
  int count = 0;
  const MicroKernel* kernels = micro_kernels(count);
  for (int n = 0; n < count; ++n) {
    const MicroKernel& kernel = kernels[n];
    if (std::string(kernel.instruction_set) == "plain") continue;  // fused only where the compiler says so
    for (const bool rows_contiguous : {false, true})
      for (const auto write : {MicroTile::Write::Store, MicroTile::Write::Add}) {
        for (size_t i = 0; i < c.size(); ++i) c[i] = first[i] = uniform(3, i);
        const int64_t row_stride = rows_contiguous ? 1 : inner, inner_stride = rows_contiguous ? pitch : 1;
        kernel.run({a.data(), row_stride, inner_stride, b.data(), pitch, c.data(), pitch, inner, write});
        for (int i = 0; i < kernel.rows; ++i)
          for (int j = 0; j < kernel.columns; ++j) {
            float sum = 0;
            for (int64_t step = 0; step < inner; ++step) {
              const int64_t k = std::min(step ^ 1, inner - 1);
              sum = std::fma(a[static_cast<size_t>(i * row_stride + k * inner_stride)],
                             b[static_cast<size_t>(k * pitch + j)], sum);
            }
            const size_t at = static_cast<size_t>(i * pitch + j);
            REQUIRE(c[at] == (write == MicroTile::Write::Add ? first[at] + sum : sum));
          }
        CHECK(c[static_cast<size_t>(kernel.columns)] == first[static_cast<size_t>(kernel.columns)]);
      }
  }
}

TEST_CASE("the BF16 micro-kernel gives the same bits from pairs") {
  const MicroKernel* kernel = pair_micro_kernel();
  if (!kernel) {
    WARN("this machine has no BF16 instructions");
    return;
  }
  constexpr int64_t pairs = 21;
  const int64_t rows = kernel->rows, columns = kernel->columns;
  std::vector<float> a, b, c(static_cast<size_t>(rows * columns));
  const auto value = [](uint64_t key, size_t pair, size_t second) {
    return to_bfloat16(uniform(key, 2 * pair + second));
  };
  const auto make = [&](uint64_t key, int64_t count, std::vector<float>& to) {
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
      const uint32_t bits = value(key, i, 0).bits | static_cast<uint32_t>(value(key, i, 1).bits) << 16;
      to.push_back(0);
      memcpy(&to.back(), &bits, 4);
    }
  };
  make(1, rows * pairs, a);     // [row][pair]
  make(2, pairs * columns, b);  // [pair][column]
  kernel->run({a.data(), pairs, 1, b.data(), columns, c.data(), columns, pairs, MicroTile::Write::Store});
  for (size_t i = 0; i < static_cast<size_t>(rows); ++i)
    for (size_t j = 0; j < static_cast<size_t>(columns); ++j) {
      float sum = 0;
      for (size_t k = 0; k < pairs; ++k)
        for (const size_t second : {1, 0})
          sum = std::fma(to_float(value(1, i * pairs + k, second)),
                         to_float(value(2, k * static_cast<size_t>(columns) + j, second)), sum);
      REQUIRE(c[i * static_cast<size_t>(columns) + j] == sum);
    }
}
