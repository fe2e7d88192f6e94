#include "kernels/cast.h"

#include "environment.h"
#include "kernel_cast.h"

using namespace octet;

namespace {

struct Source {
  Tensor values, column_factor;

  kernels::CastSource of_kernels() const {
    return {.values = values.data,
            .storage = values.dtype == DType::F32 ? Format::FP32 : Format::BF16,
            .column_factor = column_factor.empty() ? nullptr : column_factor.as<float>(),
            .rows = values.rows(),
            .columns = values.columns()};
  }
};

// The same cast by the CPU device and by the kernels.
void check_cast(OpFixture& f, const Source& source, const TargetKind& kind, const TargetShape& shape) {
  CastTarget expected = make_target(f, kind, shape), out = make_target(f, kind, shape);
  if (source.values.dtype == shape.storage && source.column_factor.empty())
    expected.high = out.high = source.values;  // nothing to copy, as a device's callers have it
  f->cast({source.values, source.column_factor, expected});
  KernelCast cast(out);
  cast.measure(source.of_kernels());
  cast.finish(source.of_kernels());
  check_same(expected, out);
}

struct Size {
  int64_t rows, columns;
};
// Below, at and over a vector, a patch of 4 x 8, a tile of 128 x 64 and one of 128 x 128; rows for 16-byte
// stores and not.
constexpr Size sizes[] = {{1, 1},    {3, 5},    {1, 8},    {16, 8},   {7, 64},
                          {132, 72}, {129, 67}, {48, 264}, {257, 131}};

const char* name_of(Copies copies) {
  return copies == Copies::Row ? "row" : copies == Copies::Column ? "column" : "both";
}

}  // namespace

TEST_CASE("every kind of cast has the CPU device's bits, in every shape, from FP32 and from BF16", "[cast]") {
  for (const Hostility hostility : {Hostility::Finite, Hostility::Broken}) {
    for (const Size size : sizes) {
      OpFixture f(1);
      const Values values = hostile_values(size.rows * size.columns, 5, hostility);
      const Source wide{f.floats(DType::F32, {size.rows, size.columns}, values), {}},
          narrow{f.floats(DType::BF16, {size.rows, size.columns}, values), {}};
      size_t turn = 0;
      for (const TargetKind& kind : target_kinds()) {
        for (const Copies copies : {Copies::Row, Copies::Column, Copies::Both}) {
          if (hostility == Hostility::Broken && copies != Copies::Both) continue;
          const bool from_wide = ++turn % 2 == 0;
          INFO(kind.name << ", " << name_of(copies) << ", " << size.rows << " x " << size.columns << ", from "
                         << (from_wide ? "FP32" : "BF16")
                         << (hostility == Hostility::Broken ? ", with infinities and NaN" : ""));
          check_cast(f, from_wide ? wide : narrow, kind, {size.rows, size.columns, DType::BF16, copies});
        }
      }
    }
  }
}

TEST_CASE("column factors multiply before rounding, in the codes and in either high copy", "[cast]") {
  OpFixture f(1);
  for (const Size size : {Size{37, 72}, Size{5, 67}}) {
    const Values factors = normal_values(size.columns, 8);
    for (const DType storage : {DType::F32, DType::BF16}) {
      const Source source{f.floats(storage, {size.rows, size.columns},
                                   hostile_values(size.rows * size.columns, 9, Hostility::Finite)),
                          f.floats(DType::F32, {size.columns}, factors)};
      for (const DType high : {DType::F32, DType::BF16}) {
        INFO(size.columns << " columns, " << octet::name_of(storage) << " to " << octet::name_of(high));
        check_cast(f, source, target_kind("current"), {size.rows, size.columns, high, Copies::Both});
        check_cast(f, source, target_kind("stochastic"), {size.rows, size.columns, high, Copies::None});
      }
    }
  }
}

TEST_CASE("memory that is not aligned for vectors is cast one value at a time", "[cast]") {
  OpFixture f(1);
  constexpr int64_t rows = 32, columns = 64;
  const Tensor memory = f.floats(DType::BF16, {rows * columns + 1}, normal_values(rows * columns + 1, 3));
  const Tensor shifted{memory.as<BFloat16>() + 1, DType::BF16, {rows, columns}};
  const TargetShape shape{rows, columns, DType::BF16, Copies::Both};
  check_cast(f, {shifted, {}}, target_kind("current"), shape);
}

TEST_CASE("a cast is the same in every schedule and on several operating-system threads", "[cast]") {
  OpFixture f(1);
  const Source source{f.floats(DType::BF16, {132, 72}, hostile_values(132 * 72, 5, Hostility::Finite)), {}};
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    INFO(schedule);
    for (const char* kind : {"delayed, counted", "dual", "blocks", "squares"})
      check_cast(f, source, target_kind(kind), {132, 72, DType::BF16, Copies::Both});
  }
}

TEST_CASE("row codes that a producer has written stay, and their transpose is made", "[cast]") {
  OpFixture f(1);
  constexpr int64_t rows = 20, columns = 24;
  const Tensor values = f.floats(DType::BF16, {rows, columns}, normal_values(rows * columns, 4));
  const Tensor row = f.zeros(DType::E4M3, {rows, columns}), column = f.zeros(DType::E4M3, {columns, rows});
  const float scale = 16.0f;
  for (const uint32_t flag : {0u, 1u}) {
    memset(row.data, 0xa5, row.bytes());
    kernels::EncodeArguments args{
        .source = {.values = values.data, .storage = Format::BF16, .rows = rows, .columns = columns},
        .format = Format::E4M3};
    args.row = static_cast<uint8_t*>(row.data);
    args.row_coding.scale = &scale;
    args.column = static_cast<uint8_t*>(column.data);
    args.encode_row = &flag;
    kernels::encode(args);
    int64_t untouched = 0, wrong = 0;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        const uint8_t code = encode_e4m3(to_float(values.as<BFloat16>()[r * columns + c]) * scale);
        untouched += row.as<uint8_t>()[r * columns + c] == 0xa5;
        wrong += column.as<uint8_t>()[c * rows + r] != code;
      }
    }
    CHECK(wrong == 0);
    CHECK((untouched == rows * columns) == (flag == 0));
  }
}

TEST_CASE("the comparison of casts sees one changed code, scale, amax or count", "[cast]") {
  OpFixture f(1);
  const TargetShape shape{16, 8, DType::BF16, Copies::Both};
  const TargetKind kind = target_kind("dual");
  CastTarget a = make_target(f, kind, shape), b = make_target(f, kind, shape);
  CHECK(differences(a.row, b.row) == 0);
  b.row.as<uint8_t>()[127] ^= 1;
  CHECK(differences(a.row, b.row) == 1);
  b.column_inverse_scale.as<float>()[7] = 1.0f;
  CHECK(differences(a.column_inverse_scale, b.column_inverse_scale) == 1);
  b.high.as<BFloat16>()[0].bits = 0x8000u;  // -0
  CHECK(differences(a.high, b.high) == 1);
}

TEST_CASE("stochastic codes depend on the key, and the transpose rounds each element as the row copy does",
          "[cast]") {
  OpFixture f(1);
  const TargetShape shape{20, 13, DType::BF16, Copies::Both};
  const Tensor values = f.floats(DType::BF16, {20, 13}, normal_values(260, 6));
  const Source source{values, {}};
  CastTarget a = make_target(f, target_kind("stochastic"), shape),
             b = make_target(f, target_kind("stochastic"), shape);
  b.rounding_key += 1;
  for (const CastTarget& target : {a, b}) {
    KernelCast cast(target);
    cast.measure(source.of_kernels());
    cast.finish(source.of_kernels());
  }
  CHECK(differences(a.row, b.row) > 0);
  CHECK(transposed(read_bytes(a.row), 20, 13) == read_bytes(a.column));
}
