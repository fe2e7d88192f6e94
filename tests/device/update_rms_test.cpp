// StableAdamW's root mean square of an update, and the learning rate it leaves.
#include <cmath>
#include <limits>

#include "catch.h"
#include "device/op_fixture.h"
#include "numerics/moments.h"
#include "numerics/sums.h"

using namespace octet;

namespace {

Tensor control_tensor(OpFixture& f, float scale, uint32_t apply = 1) {
  const Tensor tensor = f.zeros(DType::U8, {sizeof(UpdateControl)});
  *static_cast<UpdateControl*>(tensor.data) = {1.0f, scale, 1.0f, apply, 0};
  return tensor;
}

struct Second {
  MomentTensor tensor;
  Values values;  // as decoded
};
Second second_moment(OpFixture& f, DType type, const Values& v) {
  const auto n = static_cast<int64_t>(v.size());
  Second second;
  second.tensor.values = f.zeros(type, {n});
  if (type == DType::F32) {
    for (size_t i = 0; i < v.size(); ++i) second.tensor.values.as<float>()[i] = v[i];
    second.values = v;
    return second;
  }
  second.tensor.inverse = f.zeros(DType::F32, {(n + 127) / 128});
  second.values.resize(v.size());
  for (size_t begin = 0; begin < v.size(); begin += 128) {
    const size_t count = std::min<size_t>(128, v.size() - begin);
    uint8_t* codes = second.tensor.values.as<uint8_t>() + begin;
    const float inverse =
        encode_moment_block(Format::E5M2, Moment::Second, std::span(v).subspan(begin, count), codes);
    second.tensor.inverse.as<float>()[begin / 128] = inverse;
    decode_moment_block(Format::E5M2, {codes, count}, inverse, second.values.data() + begin);
  }
  return second;
}

UpdateSquares squares(const Tensor& gradient, const MomentTensor& second, const Tensor& control,
                      const Tensor& partials) {
  return {.gradient = gradient,
          .second = second,
          .beta2 = 0.95f,
          .epsilon = 1e-8f,
          .step = 7,
          .control = static_cast<const UpdateControl*>(control.data),
          .partials = partials};
}

float rms_of(OpFixture& f, const Tensor& gradient, const MomentTensor& second, const Tensor& control) {
  const int64_t n = gradient.elements();
  const Tensor partials = f.zeros(DType::F64, {norm_pieces(n)}), rms = f.zeros(DType::F32, {1});
  f->update_squares(squares(gradient, second, control, partials));
  f->update_rms({partials, n, rms});
  return *rms.as<float>();
}

double reference(const Values& gradient, const Values& v, double scale) {
  double sum = 0;
  const double beta2 = static_cast<double>(0.95f);
  for (size_t i = 0; i < gradient.size(); ++i) {
    const double g = scale * static_cast<double>(gradient[i]);
    const double next = beta2 * static_cast<double>(v[i]) + (1 - beta2) * g * g;
    sum += g * g /
           std::max(next / (1 - std::pow(beta2, 7)), static_cast<double>(1e-8f) * static_cast<double>(1e-8f));
  }
  return std::sqrt(sum / static_cast<double>(gradient.size()));
}

}  // namespace

TEST_CASE("the root mean square of an update is that of double arithmetic", "[update_rms]") {
  OpFixture f;
  for (const int64_t n : {1, 100, 16384, 40001})
    for (const DType gradient : {DType::F32, DType::BF16})
      for (const DType type : {DType::F32, DType::E5M2})
        for (const float scale : {1.0f, 0.37f}) {
          const Values g = normal_values(n, 1, 1e-3, gradient);
          Values v = normal_values(n, 2, 1.0);
          for (float& x : v) x = 1e-6f * x * x;
          const Second second = second_moment(f, type, v);
          const double expected = reference(g, second.values, static_cast<double>(scale)),
                       found = static_cast<double>(
                           rms_of(f, f.floats(gradient, {n}, g), second.tensor, control_tensor(f, scale)));
          // Each term has eight roundings to FP32 on its way; the root halves them, and is rounded once.
          CHECK(std::abs(found - expected) <= (8 * 0x1p-24 / 2 + 0x1p-24) * expected);
        }
}

TEST_CASE("one gradient a hundred times what v knows is seen, where v follows, the mean square is one",
          "[update_rms]") {
  OpFixture f;
  const int64_t n = 4096;
  const Tensor control = control_tensor(f, 1.0f);
  const Values v(static_cast<size_t>(n), static_cast<float>(1e-6 * (1 - std::pow(0.95, 6))));
  const Second second = second_moment(f, DType::F32, v);
  const Values calm(static_cast<size_t>(n), 1e-3f), spike(static_cast<size_t>(n), 0.1f);
  CHECK(rms_of(f, f.floats(DType::F32, {n}, calm), second.tensor, control) == Approx(1).epsilon(0.01));
  // v takes up 5 % of the square at once, so that the ratio is (1 - b2^7) / 0.05 at most.
  const double bound = std::sqrt((1 - std::pow(0.95, 7)) / 0.05);
  const float found = rms_of(f, f.floats(DType::F32, {n}, spike), second.tensor, control);
  CHECK(found > 2.3f);
  CHECK(static_cast<double>(found) <= bound);
  // Where v is far below epsilon^2, epsilon^2 stands for it.
  const Second zero = second_moment(f, DType::F32, Values(static_cast<size_t>(n), 0.0f));
  CHECK(rms_of(f, f.zeros(DType::F32, {n}), zero.tensor, control) == 0.0f);
  CHECK(rms_of(f, f.floats(DType::F32, {n}, Values(static_cast<size_t>(n), 1e-9f)), zero.tensor, control) ==
        Approx(0.1).epsilon(1e-6));
}

TEST_CASE("partial sums of shards are the whole's, for any number of threads, a refused step leaves zeros",
          "[update_rms]") {
  const int64_t n = 5 * norm_piece + 77;
  const Values g = normal_values(n, 3, 1e-3), v(static_cast<size_t>(n), 1e-6f);
  std::vector<Bytes> results;
  for (const int threads : {1, 2, 4}) {
    OpFixture f(threads);
    const Tensor gradient = f.floats(DType::F32, {n}, g), control = control_tensor(f, 1.0f);
    const Second second = second_moment(f, DType::E5M2, v);
    const Tensor whole = f.zeros(DType::F64, {norm_pieces(n)}),
                 shards = f.zeros(DType::F64, {norm_pieces(n)});
    f->update_squares(squares(gradient, second.tensor, control, whole));
    for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 2}, {2, 1}, {3, 3}}) {
      const int64_t from = begin * norm_piece, elements = std::min(count * norm_piece, n - from);
      MomentTensor part = second.tensor;
      part.values = part.values.slice(from, elements);
      part.inverse = part.inverse.slice(from / 128, (elements + 127) / 128);
      f->update_squares(squares(gradient.slice(from, elements), part, control, shards.slice(begin, count)));
    }
    CHECK(read_bytes(whole) == read_bytes(shards));
    results.push_back(read_bytes(whole));
    const Tensor stop = control_tensor(f, 1.0f, 0);
    f->update_squares(squares(gradient, second.tensor, stop, whole));
    CHECK(read_bytes(whole) == Bytes(whole.bytes(), 0));
    CHECK_THROWS(f->update_squares(squares(gradient, second.tensor, control, whole.slice(0, 2))));
  }
  CHECK(results[0] == results[1]);
  CHECK(results[0] == results[2]);
}

TEST_CASE("a learning rate is divided by the root mean square above one, decay included", "[update_rms]") {
  OpFixture f;
  const int64_t n = 300;
  const Values start = normal_values(n, 4), gradient = normal_values(n, 5);
  const auto run = [&](float rate, float rms) {
    AdamWUpdate op{};
    op.master = f.floats(DType::F32, {n}, start);
    op.gradient = f.floats(DType::F32, {n}, gradient);
    op.first.values = f.zeros(DType::F32, {n});
    op.second.values = f.zeros(DType::F32, {n});
    op.learning_rate = rate;
    op.beta1 = 0.9f;
    op.beta2 = 0.95f;
    op.epsilon = 1e-8f;
    op.weight_decay = 0.1f;
    op.step = 1;
    op.control = static_cast<const UpdateControl*>(control_tensor(f, 1.0f).data);
    if (rms >= 0) op.update_rms = f.floats(DType::F32, {1}, {rms});
    f->adamw(op);
    return read_floats(op.master);
  };
  const Values plain = run(1e-2f, -1);
  CHECK(run(1e-2f, 1.0f) == plain);
  CHECK(run(1e-2f, 0.3f) == plain);
  CHECK(run(1e-2f, 4.0f) == run(0.25e-2f, -1));  // a power of two, so exact
  CHECK(run(1e-2f, 4.0f) != plain);
  CHECK(run(1e-2f, std::numeric_limits<float>::infinity()) == start);
}
