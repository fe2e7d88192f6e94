#include <limits>

#include "catch.h"
#include "device/op_fixture.h"
#include "numerics/moments.h"
#include "numerics/sums.h"

using namespace octet;

namespace {

struct Settings {
  float learning_rate = 1e-2f, beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f, weight_decay = 0.1f;
};

Tensor control_tensor(OpFixture& f, float scale = 1.0f, uint32_t apply = 1) {
  const Tensor tensor = f.zeros(DType::U8, {sizeof(UpdateControl)});
  *static_cast<UpdateControl*>(tensor.data) = {1.0f, scale, 1.0f, apply, 0};
  return tensor;
}

MomentTensor moment(OpFixture& f, DType dtype, int64_t n, int block) {
  MomentTensor m;
  m.values = f.zeros(dtype, {n});
  m.block = block;
  if (size_of(dtype) == 1) m.inverse = f.zeros(DType::F32, {block == 0 ? 1 : (n + block - 1) / block});
  return m;
}

AdamWUpdate update(const Settings& s, int64_t step, const Tensor& control) {
  AdamWUpdate op;
  op.learning_rate = s.learning_rate;
  op.beta1 = s.beta1;
  op.beta2 = s.beta2;
  op.epsilon = s.epsilon;
  op.weight_decay = s.weight_decay;
  op.step = step;
  op.control = static_cast<const UpdateControl*>(control.data);
  return op;
}

// One moment of the simulation: codes and scales in plain vectors.
struct SimulatedMoment {
  DType dtype;
  Moment which;
  size_t block;
  Bytes codes;
  Values inverse, plain;

  SimulatedMoment(DType type, Moment m, size_t n, int block_size)
      : dtype(type),
        which(m),
        block(block_size == 0 ? n : static_cast<size_t>(block_size)),
        codes(n),
        inverse((n + block - 1) / block),
        plain(n) {}
  bool coded() const { return size_of(dtype) == 1; }
  Format format() const { return dtype == DType::E4M3 ? Format::E4M3 : Format::E5M2; }
  float get(size_t i) const { return coded() ? decode(format(), codes[i]) * inverse[i / block] : plain[i]; }
  void set(const Values& values) {
    for (size_t i = 0; i < values.size(); ++i) plain[i] = rounded(dtype, values[i]);
    if (!coded()) return;
    for (size_t b = 0; b < inverse.size(); ++b) {
      const size_t end = std::min((b + 1) * block, values.size());
      float amax = 0;
      for (size_t i = b * block; i < end; ++i) amax = std::max(amax, std::abs(values[i]));
      const float max = format() == Format::E4M3 ? 448.0f : 57344.0f;
      const float scale = amax > 0 ? std::min(max / amax, 0x1p126f) : 1.0f;
      inverse[b] = amax > 0 ? std::max(amax / max, 0x1p-126f) : 1.0f;
      for (size_t i = b * block; i < end; ++i) {
        codes[i] = encode(format(), values[i] * scale);
        if (which == Moment::Second && values[i] > 0 && codes[i] == 0) codes[i] = 1;
      }
    }
  }
};

// The norm of these gradients; the partial sums between are made here.
void norm_of(OpFixture& f, const std::vector<Tensor>& gradients, GradientNorm op) {
  int64_t pieces = 0, next = 0;
  for (const Tensor& gradient : gradients) pieces += norm_pieces(gradient.elements());
  op.partials = f.zeros(DType::F64, {pieces});
  for (const Tensor& gradient : gradients) {
    const int64_t own = norm_pieces(gradient.elements());
    f->gradient_squares({gradient, op.partials.slice(next, own)});
    next += own;
  }
  f->gradient_norm(op);
}

}  // namespace

TEST_CASE("O1: a hundred FP32 steps follow a double reference within 1e-6", "[adamw]") {
  const int64_t n = 37;
  OpFixture f;
  const Settings s;
  const Values start = normal_values(n, 1);
  const Tensor master = f.floats(DType::F32, {n}, start), control = control_tensor(f, 0.5f);
  const MomentTensor first = moment(f, DType::F32, n, 128), second = moment(f, DType::F32, n, 128);
  std::vector<double> w(start.begin(), start.end()), m(w.size()), v(w.size()), wrong(w);
  const auto d = [](float x) { return static_cast<double>(x); };
  for (int64_t t = 1; t <= 100; ++t) {
    const Values gradient = normal_values(n, static_cast<uint64_t>(1000 + t), 0.1);
    AdamWUpdate op = update(s, t, control);
    op.master = master;
    op.gradient = f.floats(DType::F32, {n}, gradient);
    op.first = first;
    op.second = second;
    f->adamw(op);
    const double rate =
        d(s.learning_rate) * std::sqrt(1 - std::pow(d(s.beta2), t)) / (1 - std::pow(d(s.beta1), t));
    for (size_t i = 0; i < w.size(); ++i) {
      const double g = 0.5 * d(gradient[i]);
      m[i] = d(s.beta1) * m[i] + (1 - d(s.beta1)) * g;
      v[i] = d(s.beta2) * v[i] + (1 - d(s.beta2)) * g * g;
      w[i] = (1 - d(s.learning_rate) * d(s.weight_decay)) * w[i] -
             rate * m[i] / (std::sqrt(v[i]) + d(s.epsilon));
      // The control: epsilon added to the corrected root, as in the original Adam.
      const double corrected = std::sqrt(v[i] / (1 - std::pow(d(s.beta2), t)));
      wrong[i] = (1 - d(s.learning_rate) * d(s.weight_decay)) * wrong[i] -
                 d(s.learning_rate) * m[i] / (1 - std::pow(d(s.beta1), t)) / (corrected + 1e-3);
    }
  }
  const Values result = read_floats(master);
  CHECK(relative_error(result, w) <= 1e-6);
  CHECK(relative_error(result, wrong) > 1e-6);
}

TEST_CASE("epsilon is added to the uncorrected root, and decay comes before the step", "[adamw]") {
  OpFixture f;
  Settings s;
  s.epsilon = 0.5f;
  s.learning_rate = 0.125f;
  s.weight_decay = 1.0f;
  AdamWUpdate op = update(s, 1, control_tensor(f));
  op.master = f.floats(DType::F32, {1}, {2.0f});
  op.gradient = f.floats(DType::F32, {1}, {1.0f});
  op.first = moment(f, DType::F32, 1, 128);
  op.second = moment(f, DType::F32, 1, 128);
  f->adamw(op);
  const double m = 0.1, v = 0.05, rate = 0.125 * std::sqrt(0.05) / 0.1;
  CHECK(static_cast<double>(op.master.as<float>()[0]) ==
        Approx((1 - 0.125) * 2.0 - rate * m / (std::sqrt(v) + 0.5)).epsilon(1e-6));
}

TEST_CASE("O3: moments in any format are bit-equal to a simulation", "[adamw]") {
  struct Case {
    DType first, second, gradient;
    int64_t n;
    int block;
  };
  const Case c = GENERATE(Case{DType::E4M3, DType::E5M2, DType::F32, 1, 128},
                          Case{DType::E4M3, DType::E5M2, DType::F32, 1000, 128},  // the last block is short
                          Case{DType::E4M3, DType::E5M2, DType::BF16, 5000, 128},
                          Case{DType::E4M3, DType::E5M2, DType::F32, 5000, 0},  // one scale for the tensor
                          Case{DType::E5M2, DType::E4M3, DType::F32, 3001, 256},
                          Case{DType::BF16, DType::BF16, DType::F32, 3001, 128},
                          Case{DType::F32, DType::E5M2, DType::F32, 777, 100},
                          Case{DType::E4M3, DType::F32, DType::BF16, 777, 0});
  OpFixture f;
  const Settings s;
  const size_t n = static_cast<size_t>(c.n);
  Values w = normal_values(c.n, 5);
  const Tensor master = f.floats(DType::F32, {c.n}, w), control = control_tensor(f, 0.75f);
  const MomentTensor first = moment(f, c.first, c.n, c.block), second = moment(f, c.second, c.n, c.block);
  SimulatedMoment m(c.first, Moment::First, n, c.block), v(c.second, Moment::Second, n, c.block);
  bool floored = false;
  for (int64_t t = 1; t <= 5; ++t) {
    Values gradient = normal_values(c.n, static_cast<uint64_t>(50 + t), 1e-3, c.gradient);
    for (size_t i = 0; i < n; ++i) {  // many binades, so that the floor is used
      gradient[i] = std::ldexp(gradient[i], -static_cast<int>(i % 12));
    }
    AdamWUpdate op = update(s, t, control);
    op.master = master;
    op.gradient = f.floats(c.gradient, {c.n}, gradient);
    op.first = first;
    op.second = second;
    f->adamw(op);

    const double lr = static_cast<double>(s.learning_rate);
    const double correction = std::sqrt(1 - std::pow(static_cast<double>(s.beta2), static_cast<double>(t))) /
                              (1 - std::pow(static_cast<double>(s.beta1), static_cast<double>(t)));
    const float decay = static_cast<float>(lr * static_cast<double>(s.weight_decay)),
                rate = static_cast<float>(lr * correction);
    Values new_m(n), new_v(n);
    for (size_t i = 0; i < n; ++i) {
      const float g = 0.75f * gradient[i];
      const float kept_m = s.beta1 * m.get(i), added_m = (1.0f - s.beta1) * g;
      const float square = g * g;
      const float kept_v = s.beta2 * v.get(i), added_v = (1.0f - s.beta2) * square;
      new_m[i] = kept_m + added_m;
      new_v[i] = kept_v + added_v;
      const float ratio = new_m[i] / (std::sqrt(new_v[i]) + s.epsilon);
      const float decayed = decay * w[i], step = rate * ratio;
      const float change = decayed + step;
      w[i] = w[i] - change;
    }
    m.set(new_m);
    v.set(new_v);
    for (size_t i = 0; i < n && v.coded(); ++i) floored |= v.codes[i] == 1;
    CHECK(read_floats(master) == w);
    if (m.coded()) {
      CHECK(read_bytes(first.values) == m.codes);
      CHECK(read_floats(first.inverse) == m.inverse);
    } else {
      CHECK(read_floats(first.values) == m.plain);
    }
    if (v.coded()) {
      CHECK(read_bytes(second.values) == v.codes);
      CHECK(read_floats(second.inverse) == v.inverse);
    } else {
      CHECK(read_floats(second.values) == v.plain);
    }
  }
  if (c.second == DType::E5M2 && c.n == 5000 && c.block == 0) CHECK(floored);
}

TEST_CASE("O2: FP8 moments take one byte an element and four a block", "[adamw]") {
  OpFixture f;
  const MomentTensor m = moment(f, DType::E4M3, 1000, 128);
  CHECK(m.values.bytes() == 1000);
  CHECK(m.inverse.bytes() == 8 * 4);
  // A tensor of scales that does not fit is refused.
  AdamWUpdate op = update({}, 1, control_tensor(f));
  op.master = op.gradient = f.zeros(DType::F32, {1000});
  op.first = m;
  op.second = moment(f, DType::E5M2, 1000, 128);
  CHECK_NOTHROW(f->adamw(op));
  op.second.block = 64;
  CHECK_THROWS(f->adamw(op));
}

TEST_CASE("a positive second moment is never stored as zero", "[adamw]") {
  OpFixture f;
  const int64_t n = 128;
  Values gradient(static_cast<size_t>(n), 1e-9f);
  gradient[0] = 1.0f;
  gradient[1] = 0.0f;
  AdamWUpdate op = update({}, 1, control_tensor(f));
  op.master = f.zeros(DType::F32, {n});
  op.gradient = f.floats(DType::F32, {n}, gradient);
  op.first = moment(f, DType::E4M3, n, 128);
  op.second = moment(f, DType::E5M2, n, 128);
  f->adamw(op);
  CHECK(op.second.values.as<uint8_t>()[0] == encode_e5m2(57344.0f));
  CHECK(op.second.values.as<uint8_t>()[1] == 0);  // a gradient that was always zero stays zero
  CHECK(op.second.values.as<uint8_t>()[2] == 1);
  CHECK(encode_e5m2(1e-9f * 1e-9f * 57344.0f) == 0);  // the control: rounding alone would flush it
}

TEST_CASE("a step that is not applied changes nothing", "[adamw]") {
  OpFixture f;
  const int64_t n = 300;
  AdamWUpdate op = update({}, 1, control_tensor(f));
  op.master = f.floats(DType::F32, {n}, normal_values(n, 1));
  op.gradient = f.floats(DType::F32, {n}, normal_values(n, 2));
  op.first = moment(f, DType::E4M3, n, 128);
  op.second = moment(f, DType::E5M2, n, 128);
  f->adamw(op);
  const auto state = [&] {
    Bytes all;
    for (const Tensor& t :
         {op.master, op.first.values, op.first.inverse, op.second.values, op.second.inverse}) {
      const Bytes bytes = read_bytes(t);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  };
  const Bytes before = state();
  op.gradient.as<float>()[5] = std::numeric_limits<float>::quiet_NaN();
  const Tensor stop = control_tensor(f, 1.0f, 0);
  op.control = static_cast<const UpdateControl*>(stop.data);
  op.step = 2;
  f->adamw(op);
  CHECK(state() == before);
  const Tensor go = control_tensor(f);
  op.control = static_cast<const UpdateControl*>(go.data);
  f->adamw(op);
  CHECK(state() != before);
}

TEST_CASE("AdamW hands on the amax of the masters as a cast would measure it, applied or not", "[adamw]") {
  for (const uint32_t apply : {1u, 0u}) {
    for (const float broken : {0.0f, std::numeric_limits<float>::infinity()}) {
      OpFixture f;
      const int64_t n = 5000;
      const Tensor control = control_tensor(f, 1.0f, apply);
      AdamWUpdate op = update({}, 1, control);
      op.master = f.floats(DType::F32, {n}, normal_values(n, 1));
      if (broken != 0) op.master.as<float>()[777] = broken;
      op.gradient = f.floats(DType::F32, {n}, normal_values(n, 2));
      op.first = moment(f, DType::E4M3, n, 128);
      op.second = moment(f, DType::E5M2, n, 128);
      op.amax = f.floats(DType::F32, {1}, {0.0f});
      f->adamw(op);
      const Tensor measured = f.floats(DType::F32, {1}, {0.0f});
      f->measure_amax({op.master, measured});
      CHECK(read_bytes(op.amax) == read_bytes(measured));
      CHECK_FALSE(*measured.as<float>() <= 1);  // an infinite weight becomes NaN
      // It rises, as the amax of the pieces of a tensor does.
      *op.amax.as<float>() = 1e30f;
      f->adamw(op);
      CHECK_FALSE(*op.amax.as<float>() < 1e30f);
      op.amax = f.floats(DType::F32, {2}, {0.0f, 0.0f});
      CHECK_THROWS(f->adamw(op));
    }
  }
}

TEST_CASE("a cast with a known amax has the codes, scale and counts of one that measures it", "[cast]") {
  OpFixture f;
  const Tensor source = f.floats(DType::F32, {33, 70}, normal_values(33 * 70, 3));
  const auto cast = [&](const Tensor& amax) {
    CastOperation op;
    op.source = source;
    op.amax = amax;
    op.out.cast = {Format::E4M3, Scaling::Current, ScaleRule::PowerOfTwo, Rounding::Nearest};
    op.out.row = f.zeros(DType::E4M3, {33, 70});
    op.out.column = f.zeros(DType::E4M3, {70, 33});
    const Tensor numbers = f.zeros(DType::F32, {3}), counters = f.zeros(DType::U64, {3});
    op.out.site = {numbers.as<float>(), numbers.as<float>() + 1, numbers.as<float>() + 2,
                   static_cast<CastCounters*>(counters.data)};
    f->cast(op);
    Bytes all;
    for (const Tensor& t : {op.out.row, op.out.column, numbers, counters}) {
      const Bytes bytes = read_bytes(t);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  };
  const Tensor amax = f.floats(DType::F32, {1}, {0.0f});
  f->measure_amax({source, amax});
  const Bytes measured = cast({});
  CHECK(cast(amax) == measured);
  *amax.as<float>() *= 2;  // the control
  CHECK(cast(amax) != measured);
}

TEST_CASE("AdamW and the gradient norm have the same bits for 1, 2 and 4 threads", "[adamw]") {
  const int64_t n = 70001;
  std::vector<Bytes> results;
  for (const int threads : {1, 2, 4}) {
    OpFixture f(threads);
    const Tensor control = control_tensor(f);
    const Tensor gradient = f.floats(DType::F32, {n}, normal_values(n, 2)), loss = f.zeros(DType::F64, {1});
    const std::vector<Tensor> gradients = {gradient};
    norm_of(f, gradients, {{}, loss, 1.0, 1.0f, static_cast<UpdateControl*>(control.data)});
    AdamWUpdate op = update({}, 1, control);
    op.master = f.floats(DType::F32, {n}, normal_values(n, 1));
    op.gradient = gradient;
    op.first = moment(f, DType::E4M3, n, 0);
    op.second = moment(f, DType::E5M2, n, 0);
    f->adamw(op);
    Bytes all = read_bytes(control);
    for (const Tensor& t : {op.master, op.first.values, op.second.values, op.second.inverse}) {
      const Bytes bytes = read_bytes(t);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    results.push_back(all);
  }
  CHECK(results[0] == results[1]);
  CHECK(results[0] == results[2]);
}

// ---- gradient norm
// ------------------------------------------------------------------------------------------------

TEST_CASE("the gradient norm covers every tensor and decides clipping", "[gradient_norm]") {
  OpFixture f;
  const Values a = normal_values(40001, 1), b = normal_values(77, 2, 3.0, DType::BF16);
  const std::vector<Tensor> gradients = {f.floats(DType::F32, {40001}, a), f.floats(DType::BF16, {7, 11}, b)};
  double squares = 0;
  for (const Values& values : {a, b}) {
    for (const float v : values) squares += static_cast<double>(v) * static_cast<double>(v);
  }
  const double norm = std::sqrt(squares);
  const Tensor loss = f.zeros(DType::F64, {1});
  *loss.as<double>() = 96.0;
  UpdateControl control{};
  const float clip = GENERATE(0.0f, 1.0f, 1e6f);
  norm_of(f, gradients, {{}, loss, 32.0, clip, &control});
  // Double sums; one rounding to FP32.
  CHECK(std::abs(static_cast<double>(control.gradient_norm) - norm) <= 0x1p-24 * norm * 1.001);
  CHECK(control.loss == 3.0f);
  CHECK(control.apply == 1);
  CHECK(control.scale == (clip == 1.0f ? 1.0f / control.gradient_norm : 1.0f));
}

TEST_CASE("a non-finite loss or gradient anywhere stops the update", "[gradient_norm]") {
  OpFixture f;
  const float infinity = std::numeric_limits<float>::infinity(),
              nan = std::numeric_limits<float>::quiet_NaN();
  const DType dtype = GENERATE(DType::F32, DType::BF16);
  const std::vector<Tensor> gradients = {f.zeros(dtype, {20000}), f.zeros(dtype, {3})};
  const Tensor loss = f.zeros(DType::F64, {1});
  UpdateControl control{};
  const auto apply = [&] {
    norm_of(f, gradients, {{}, loss, 1.0, 1.0f, &control});
    return control.apply;
  };
  CHECK(apply() == 1);
  CHECK(control.nonfinite_piece == 0);
  for (const float bad : {infinity, -infinity, nan}) {
    // Pieces of 16384 values: two of the first gradient, then the second's.
    for (const auto& [tensor, element, piece] :
         {std::tuple<size_t, int64_t, uint32_t>{0, 0, 1}, {0, 19999, 2}, {1, 0, 3}}) {
      if (dtype == DType::F32) {
        gradients[tensor].as<float>()[element] = bad;
      } else {
        gradients[tensor].as<BFloat16>()[element] = to_bfloat16(bad);
      }
      CHECK(apply() == 0);
      CHECK(control.nonfinite_piece == piece);
      if (dtype == DType::F32) {
        gradients[tensor].as<float>()[element] = 0;
      } else {
        gradients[tensor].as<BFloat16>()[element] = to_bfloat16(0);
      }
    }
    *loss.as<double>() = static_cast<double>(bad);
    CHECK(apply() == 0);
    CHECK(control.nonfinite_piece == 0);
    *loss.as<double>() = 0;
  }
  CHECK(apply() == 1);
}

TEST_CASE("gradients whose squares overflow FP32 still have a norm", "[gradient_norm]") {
  OpFixture f;
  const std::vector<Tensor> gradients = {f.floats(DType::F32, {2}, {3e30f, 4e30f})};
  UpdateControl control{};
  norm_of(f, gradients, {{}, f.zeros(DType::F64, {1}), 1.0, 1.0f, &control});
  CHECK(control.apply == 1);
  CHECK(static_cast<double>(control.gradient_norm) == Approx(5e30).epsilon(1e-6));
}
