// Masters in every format: what an update makes of them, and what the model sees.
#include <cmath>
#include <limits>

#include "catch.h"
#include "device/op_fixture.h"
#include "numerics/masters.h"

using namespace octet;

namespace {

constexpr MasterFormat formats[] = {MasterFormat::FP32,        MasterFormat::BF16Remainder,
                                    MasterFormat::BF16Kahan,   MasterFormat::BF16Stochastic,
                                    MasterFormat::BF16Nearest, MasterFormat::FP16Scaled};

struct Masters {
  Tensor values;
  MasterCode code;
};

Masters masters(OpFixture& f, MasterFormat format, int64_t n) {
  Masters m{f.zeros(values_dtype(format), {n}), {format, {}, {}}};
  if (format == MasterFormat::BF16Remainder) m.code.rest = f.zeros(DType::U16, {n});
  if (format == MasterFormat::BF16Kahan) m.code.rest = f.zeros(DType::BF16, {n});
  if (format == MasterFormat::FP16Scaled)
    m.code.inverse = f.zeros(DType::F32, {(n + master_block - 1) / master_block});
  return m;
}
Masters masters(OpFixture& f, MasterFormat format, const Values& values) {
  Masters m = masters(f, format, static_cast<int64_t>(values.size()));
  f->write_masters({f.floats(DType::F32, {m.values.elements()}, values), m.values, m.code});
  return m;
}
Values seen(OpFixture& f, const Masters& m, DType dtype = DType::F32) {
  const Tensor values = f.zeros(dtype, {m.values.elements()});
  f->read_masters({m.values, m.code, values});
  return read_floats(values);
}

// What an optimizer has beside a master: plain FP32 moments, and a control that applies the step.
struct States {
  States(OpFixture& f, int64_t n)
      : first{f.zeros(DType::F32, {n}), {}}, second{f.zeros(DType::F32, {n}), {}} {
    control = f.zeros(DType::U8, {sizeof(UpdateControl)});
    set(1);
  }
  void set(uint32_t apply) const {
    *static_cast<UpdateControl*>(control.data) = {1.0f, 1.0f, 1.0f, apply, 0};
  }
  MomentTensor first, second;
  Tensor control;
};

AdamWUpdate update(const Masters& m, const States& s, const Tensor& gradient, int64_t step, float rate) {
  AdamWUpdate op{};
  op.master = m.values;
  op.master_code = m.code;
  op.gradient = gradient;
  op.first = s.first;
  op.second = s.second;
  op.learning_rate = rate;
  op.beta1 = 0.9f;
  op.beta2 = 0.95f;
  op.epsilon = 1e-8f;
  op.weight_decay = 0.1f;
  op.step = step;
  op.control = static_cast<const UpdateControl*>(s.control.data);
  op.rounding_key = random_key(9, Purpose::MasterRounding, 3, static_cast<uint64_t>(step));
  return op;
}

}  // namespace

TEST_CASE("masters come back as the model sees them, in FP32 and rounded to BF16", "[masters]") {
  OpFixture f;
  Values values = normal_values(1000, 1, 0.02);
  values[5] = 0.0f;
  values[700] = 100.0f;  // its block's scale is another
  for (const MasterFormat format : formats) {
    INFO(static_cast<int>(format));
    const Masters m = masters(f, format, values);
    const Values plain = seen(f, m), rounded_values = seen(f, m, DType::BF16);
    for (size_t i = 0; i < values.size(); ++i) {
      const bool exact = format == MasterFormat::FP32 || format == MasterFormat::BF16Remainder;
      const bool half = format != MasterFormat::FP16Scaled;
      // FP16: eleven bits down to 2^-29 of the block's largest, of which nothing here falls short.
      const float bound = exact ? 0 : (half ? 0x1p-8f : 0x1p-11f) * std::abs(values[i]);
      REQUIRE(std::abs(plain[i] - values[i]) <= bound);
      REQUIRE(rounded_values[i] == round_to_bfloat16(plain[i]));
    }
  }
  CHECK(masters(f, MasterFormat::BF16Nearest, values).values.bytes() == 2000);
}

TEST_CASE("an update of any master is the FP32 rule on what it held, rounded as its format says",
          "[masters]") {
  OpFixture f;
  const int64_t n = 1500;
  const Values start = normal_values(n, 2, 0.02);
  for (const MasterFormat format : formats) {
    INFO(static_cast<int>(format));
    const Masters m = masters(f, format, start), reference = masters(f, MasterFormat::FP32, n);
    const States ours(f, n), theirs(f, n);
    Values before(start.size());
    for (int64_t step = 1; step <= 3; ++step) {
      const Tensor gradient =
          f.floats(DType::F32, {n}, normal_values(n, static_cast<uint64_t>(10 + step), 1e-3));
      // What the update starts from: for a compensated BF16 both halves, from the definition.
      before = seen(f, m);
      if (format == MasterFormat::BF16Kahan)
        for (size_t i = 0; i < before.size(); ++i)
          before[i] += to_float(m.code.rest.as<BFloat16>()[static_cast<int64_t>(i)]);
      for (size_t i = 0; i < before.size(); ++i) reference.values.as<float>()[i] = before[i];
      AdamWUpdate op = update(m, ours, gradient, step, 1e-3f);
      op.first_element = 64;
      f->adamw(op);
      f->adamw(update(reference, theirs, gradient, step, 1e-3f));
      const Values exact = read_floats(reference.values), found = seen(f, m);
      for (size_t i = 0; i < exact.size(); ++i) {
        const float w = exact[i];
        float expected = w;
        switch (format) {
          case MasterFormat::FP32:
          case MasterFormat::BF16Remainder:
            break;
          case MasterFormat::BF16Kahan:
            expected = round_to_bfloat16(w);
            REQUIRE(to_float(m.code.rest.as<BFloat16>()[i]) == round_to_bfloat16(w - expected));
            break;
          case MasterFormat::BF16Nearest:
            expected = round_to_bfloat16(w);
            break;
          case MasterFormat::BF16Stochastic: {  // away from zero when the dropped share exceeds the draw
            const uint32_t draw = random_bits(op.rounding_key, 64 + i) >> 16;
            int exponent = 0;
            const double significand = std::frexp(std::abs(static_cast<double>(w)), &exponent) * 256;
            const double lower = std::floor(significand), dropped = (significand - lower) * 65536;
            const double magnitude = std::ldexp(lower + (static_cast<double>(draw) < dropped), exponent - 8);
            expected = static_cast<float>(w < 0 ? -magnitude : magnitude);
            break;
          }
          case MasterFormat::FP16Scaled: {
            double amax = 0;
            const size_t begin = i / 128 * 128, end = std::min(begin + 128, exact.size());
            for (size_t k = begin; k < end; ++k)
              amax = std::max(amax, std::abs(static_cast<double>(exact[k])));
            const double scale = std::exp2(std::floor(std::log2(65504 / amax)));
            int exponent = 0;
            std::frexp(static_cast<double>(w) * scale, &exponent);
            const double ulp = std::ldexp(1.0, std::max(exponent - 11, -24));
            expected = static_cast<float>(std::nearbyint(static_cast<double>(w) * scale / ulp) * ulp / scale);
            break;
          }
        }
        REQUIRE(found[i] == expected);
      }
    }
    CHECK(read_floats(ours.first.values) == read_floats(theirs.first.values));
  }
}

TEST_CASE("at a learning rate of 3e-5 a BF16 master rounded to nearest does not move, all others do",
          "[masters]") {
  OpFixture f;
  const int64_t n = 256, steps = 200;
  const double rate = 3e-5, way = rate * steps;
  // An ulp of BF16 at 0.02 is 2^-13 = 1.2e-4, so that 3e-5 is less than half of it.
  const Values start(n, 0.02f);
  std::map<MasterFormat, double> moved, first;
  for (const MasterFormat format : formats) {
    const Masters m = masters(f, format, start);
    const States s(f, n);
    const double begin = static_cast<double>(seen(f, m)[0]);
    const Tensor gradient = f.floats(DType::F32, {n}, Values(n, 1.0f));  // m / sqrt(v) is 1, once corrected
    for (int64_t step = 1; step <= steps; ++step) {
      AdamWUpdate op = update(m, s, gradient, step, static_cast<float>(rate));
      op.weight_decay = 0;
      f->adamw(op);
    }
    double mean = 0;
    for (const float w : seen(f, m)) mean += (begin - static_cast<double>(w)) / n;
    moved[format] = mean;
  }
  CHECK(moved[MasterFormat::BF16Nearest] == 0);
  CHECK(moved[MasterFormat::FP32] == Approx(way).epsilon(1e-3));
  CHECK(moved[MasterFormat::BF16Remainder] == moved[MasterFormat::FP32]);
  // Half an ulp of what is seen at the end, and the compensation's rounding, 2^-16 of the weight, in each
  // step.
  CHECK(std::abs(moved[MasterFormat::BF16Kahan] - way) <= 0.5 * 0x1p-13 + steps * 0x1p-16 * 0.02);
  // An ulp of FP16 is 2^-16 here: half of it in each step at most, of an update of two.
  CHECK(moved[MasterFormat::FP16Scaled] > way * (1 - 0x1p-17 / rate));
  // A step's rounding has a standard deviation of at most half an ulp; 256 weights and 200 steps of it.
  CHECK(std::abs(moved[MasterFormat::BF16Stochastic] - way) <= 5 * 0.5 * 0x1p-13 * std::sqrt(steps / 256.0));
}

TEST_CASE("pieces of a master round as the whole does, another key or place rounds otherwise", "[masters]") {
  OpFixture f;
  const int64_t n = 1024, half = 512;
  const Values start = normal_values(n, 4, 0.02);
  const auto run = [&](int64_t pieces, uint64_t key, int64_t shift) {
    const Masters m = masters(f, MasterFormat::BF16Stochastic, start);
    const States s(f, n);
    const Tensor gradient = f.floats(DType::F32, {n}, normal_values(n, 5));
    for (int64_t begin = 0; begin < n; begin += n / pieces) {
      const int64_t count = n / pieces;
      AdamWUpdate op = update(m, s, gradient, 1, 1e-3f);
      op.master = m.values.slice(begin, count);
      op.gradient = gradient.slice(begin, count);
      op.first.values = s.first.values.slice(begin, count);
      op.second.values = s.second.values.slice(begin, count);
      op.first_element = begin + shift;
      op.rounding_key += key;
      f->adamw(op);
    }
    return read_bytes(m.values);
  };
  const Bytes whole = run(1, 0, 0);
  CHECK(run(2, 0, 0) == whole);
  CHECK(run(n / half * 4, 0, 0) == whole);
  CHECK(run(1, 1, 0) != whole);
  CHECK(run(1, 0, 4) != whole);
}

TEST_CASE("the amax of masters is that of the numbers the model sees, whether the step is applied or not",
          "[masters]") {
  OpFixture f;
  const int64_t n = 3000;
  for (const MasterFormat format : formats)
    for (const uint32_t apply : {1u, 0u}) {
      const Masters m = masters(f, format, normal_values(n, 6));
      const States s(f, n);
      s.set(apply);
      const Bytes before = read_bytes(m.values);
      AdamWUpdate op = update(m, s, f.floats(DType::F32, {n}, normal_values(n, 7)), 1, 1e-2f);
      op.amax = f.zeros(DType::F32, {1});
      f->adamw(op);
      const Tensor measured = f.zeros(DType::F32, {1});
      f->measure_amax({f.floats(DType::F32, {n}, seen(f, m)), measured});
      CHECK(read_bytes(op.amax) == read_bytes(measured));
      CHECK((read_bytes(m.values) == before) == (apply == 0));
    }
}

TEST_CASE("masters have the same bits for 1, 2 and 4 threads", "[masters]") {
  const int64_t n = 20001;
  for (const MasterFormat format : formats) {
    std::vector<Bytes> results;
    for (const int threads : {1, 2, 4}) {
      OpFixture f(threads);
      const Masters m = masters(f, format, normal_values(n, 8));
      const States s(f, n);
      f->adamw(update(m, s, f.floats(DType::F32, {n}, normal_values(n, 9)), 1, 1e-2f));
      Bytes all = read_bytes(m.values);
      for (const Tensor& t : {m.code.rest, m.code.inverse}) {
        const Bytes bytes = read_bytes(t);
        all.insert(all.end(), bytes.begin(), bytes.end());
      }
      results.push_back(all);
    }
    CHECK(results[0] == results[1]);
    CHECK(results[0] == results[2]);
  }
}

TEST_CASE("masters whose tensors do not fit their format are refused", "[masters]") {
  OpFixture f;
  const Tensor values = f.zeros(DType::F32, {256});
  Masters m = masters(f, MasterFormat::FP16Scaled, 256);
  CHECK_NOTHROW(f->write_masters({values, m.values, m.code}));
  m.code.inverse = m.code.inverse.slice(0, 1);
  CHECK_THROWS(f->write_masters({values, m.values, m.code}));
  Masters kahan = masters(f, MasterFormat::BF16Kahan, 256);
  kahan.code.format = MasterFormat::BF16Remainder;
  CHECK_THROWS(f->read_masters({kahan.values, kahan.code, values}));
  CHECK_THROWS(f->read_masters({values, {}, values.slice(0, 100)}));
  const States s(f, 256);
  AdamWUpdate op = update(masters(f, MasterFormat::BF16Stochastic, 256), s, values, 1, 1e-3f);
  op.first_element = 2;
  CHECK_THROWS(f->adamw(op));
  op.first_element = 0;
  op.first = {f.zeros(DType::E4M3, {256}), f.zeros(DType::F32, {3}), 100};
  op.master = m.values;
  op.master_code = masters(f, MasterFormat::FP16Scaled, 256).code;
  CHECK_THROWS(f->adamw(op));  // blocks of 100 and 128 have no common span
}
