#include "kernels/observation.h"

#include "array.h"
#include "catch.h"
#include "environment.h"

using namespace octet;

namespace {

Format format_of(const Tensor& t) {
  switch (t.dtype) {
    case DType::F32:
      return Format::FP32;
    case DType::BF16:
      return Format::BF16;
    case DType::E4M3:
      return Format::E4M3;
    default:
      return Format::E5M2;
  }
}
kernels::ObservedValues observed(const Tensor& x, const InverseScales& scales = {}) {
  return {x.data, format_of(x), x.rows(), x.columns(), scales};
}
Array random_array(DType type, const Shape& shape, Values values = Values::Wide, size_t misaligned = 0) {
  Array x(type, shape, misaligned);
  randomize(x, values, static_cast<uint64_t>(shape.elements()));
  return x;
}

struct Part {
  int64_t first, columns, context;
};
// Both add onto sums that are not zero.
void check_statistics(const Array& x, const Part& part, const InverseScales& scales = {}) {
  const int64_t rows = x.tensor().rows();
  Array row_sums(DType::F64, {3, rows}), expected(DType::F64, {4}), highest(DType::U32, {2});
  for (int64_t i = 0; i < 4; ++i) expected.as<double>()[i] = 0.25 * static_cast<double>(i);
  TensorStatistics op = statistics_of(x);
  op.inverse_scales = scales;
  op.first = part.first;
  op.columns = part.columns;
  op.context = part.context;
  op.row_sums = row_sums;
  op.sums = expected;
  op.extremes = highest;
  specification().tensor_statistics(op);
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule);
    Array own_rows(DType::F64, {3, rows}), sums(DType::F64, {4}), extremes(DType::U32, {2});
    for (int64_t i = 0; i < 4; ++i) sums.as<double>()[i] = 0.25 * static_cast<double>(i);
    kernels::tensor_statistics({.x = observed(x, scales),
                                .first = part.first,
                                .columns = part.columns,
                                .context = part.context,
                                .row_sums = own_rows.as<double>(),
                                .sums = sums.as<double>(),
                                .extremes = extremes.as<uint32_t>()});
    CHECK(differences(sums, expected) == 0);
    CHECK(differences(own_rows, row_sums) == 0);
    CHECK(differences(extremes, highest) == 0);
  }
}

}  // namespace

TEST_CASE("observation: statistics have the CPU's bits") {
  for (const DType type : {DType::F32, DType::BF16, DType::E4M3, DType::E5M2}) {
    for (const size_t misaligned : {0u, 4u}) {
      INFO(name_of(type) << ", misaligned by " << misaligned);
      check_statistics(random_array(type, {12, 264}, Values::Wide, misaligned), {0, 264, 4});
      check_statistics(random_array(type, {12, 264}, Values::Wide, misaligned), {8, 129, 12});
    }
    check_statistics(random_array(type, {1, 1}), {0, 1, 1});
    check_statistics(random_array(type, {300, 7}), {3, 3, 300});
    check_statistics(random_array(type, {9, 700}, Values::Tame), {0, 700, 3});
    check_statistics(random_array(type, {9, 700}, Values::Broken), {0, 700, 3});
  }
}

TEST_CASE("observation: statistics of codes take the scale of the tensor, of a row or of a block") {
  const Array scales = random_array(DType::F32, {64}, Values::Tame);
  const float* const s = scales.as<float>();
  for (const InverseScales& grid :
       {InverseScales{s + 3}, InverseScales{s, 1, 1, 1, 0}, InverseScales{s, 4, 100, 7, 1}})
    check_statistics(random_array(DType::E4M3, {12, 264}), {0, 264, 4}, grid);
}

TEST_CASE("observation: the order of sums can be told from another") {
  const Array x = random_array(DType::F32, {1, 3000});
  Array row_sums(DType::F64, {3}), sums(DType::F64, {4}), extremes(DType::U32, {2});
  kernels::tensor_statistics({.x = observed(x),
                              .first = 0,
                              .columns = 3000,
                              .context = 1,
                              .row_sums = row_sums.as<double>(),
                              .sums = sums.as<double>(),
                              .extremes = extremes.as<uint32_t>()});
  double straight = 0;
  for (int64_t i = 0; i < 3000; ++i)
    straight += static_cast<double>(x.get(i)) * static_cast<double>(x.get(i));
  CHECK(straight / 3000 != sums.as<double>()[3]);
  CHECK(std::abs(straight / 3000 / sums.as<double>()[3] - 1) < 3001 * 0x1p-53);
}

TEST_CASE("observation: maxima of channels have the CPU's bits") {
  for (const DType type : {DType::F32, DType::BF16}) {
    for (const Shape& shape : {Shape{1, 1}, Shape{1030, 40}, Shape{13, 264}, Shape{5, 300}}) {
      for (const Values values : {Values::Wide, Values::Broken}) {
        const Array x = random_array(type, shape, values);
        Array expected(DType::F32, {shape[1]});
        expected.set(0, 0.5f);
        const Array start = expected;
        specification().channel_amax({x, expected});
        for (const char* schedule : schedules) {
          const InterpreterSetting order("SCHEDULE", schedule);
          const Array amax = start;
          kernels::channel_amax({.x = x.data(),
                                 .storage = format_of(x),
                                 .rows = shape[0],
                                 .columns = shape[1],
                                 .amax = amax.as<float>()});
          CHECK(differences(amax, expected) == 0);
        }
      }
    }
  }
}

TEST_CASE("observation: cosines of rows have the CPU's bits") {
  for (const DType type : {DType::F32, DType::BF16, DType::E4M3}) {
    for (const Shape& shape : {Shape{2, 1}, Shape{26, 264}, Shape{6, 1001}}) {
      Array x = random_array(type, shape);
      if (shape[0] > 2)
        for (int64_t i = 0; i < shape[1]; ++i) x.set(i, 0);
      Array expected(DType::F32, {shape[0] / 2}), cosines(DType::F32, {shape[0] / 2});
      specification().row_cosines({x, {}, expected});
      kernels::row_cosines({.x = observed(x), .cosines = cosines.as<float>()});
      CHECK(differences(cosines, expected) == 0);
      if (shape[0] > 2) CHECK(cosines.get(0) == 0.0f);
    }
  }
}

TEST_CASE("observation: errors of casts have the CPU's bits") {
  const Array scales = random_array(DType::F32, {64}, Values::Tame);
  for (const DType type : {DType::F32, DType::BF16}) {
    for (const DType code : {DType::E4M3, DType::E5M2}) {
      for (const Shape& shape : {Shape{1, 1}, Shape{30, 264}, Shape{300, 77}}) {
        for (const int64_t row_stride : {0, 1}) {
          const Array source = random_array(type, shape), codes = random_array(code, shape, Values::Tame);
          const InverseScales grid{scales.as<float>(), 8, 1, row_stride, 0};
          Array rows(DType::F64, {2, shape[0]}), expected(DType::F64, {2});
          specification().cast_error({source, codes, grid, rows, expected});
          for (const char* schedule : schedules) {
            const InterpreterSetting order("SCHEDULE", schedule);
            Array own_rows(DType::F64, {2, shape[0]}), sums(DType::F64, {2});
            kernels::cast_error({.source = source.data(),
                                 .storage = format_of(source),
                                 .codes = observed(codes, grid),
                                 .row_sums = own_rows.as<double>(),
                                 .sums = sums.as<double>()});
            CHECK(differences(sums, expected) == 0);
            CHECK(differences(own_rows, rows) == 0);
          }
        }
      }
    }
  }
}
