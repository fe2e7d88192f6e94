// Muon against its published equations in FP64, and what Newton-Schulz makes of singular values.
#include "optimizer/muon.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "catch.h"
#include "error_of.h"
#include "model/tiny_model.h"
#include "optimizer/newton_schulz.h"
#include "optimizer/optimizer.h"

using namespace octet;
using namespace octet::test;

namespace {

// ---- one matrix under Muon

struct Setting {
  int64_t rows, columns;
  DType storage = DType::F32;
  std::vector<int64_t> matrices = {};
  Moments moments = make_recipe("fp32").moments;
};

class Trained {
 public:
  explicit Trained(const Setting& setting, const OptimizerOptions& options = muon())
      : device_(make_cpu_device(test::deterministic())) {
    MemoryPlan measured;
    build(measured, setting, options);
    arena_ = std::make_unique<test::Arena>(*device_, measured.peak_bytes());
    MemoryPlan placed = arena_->plan();
    build(placed, setting, options);
    *loss_.as<double>() = 1;
    device_->fill_normal(parameters_[0].master, 0.5f, 1);
  }
  static OptimizerOptions muon() {
    OptimizerOptions options;
    options.name = OptimizerName::Muon;
    options.clip_norm = 0;
    return options;
  }
  void step(int64_t t, double learning_rate = 0.02) {
    device_->fill_normal(parameters_[0].gradient, 0.1f, 100 + static_cast<uint64_t>(t));
    optimizer_->step(parameters_, learning_rate, t, loss_, 1);
  }
  Parameter& parameter() { return parameters_[0]; }
  Optimizer& optimizer() { return *optimizer_; }
  Tensor loss() { return loss_; }
  const std::vector<MemoryPlan::Item>& items() const { return items_; }

 private:
  void build(MemoryPlan& plan, const Setting& setting, const OptimizerOptions& options) {
    Parameter p;
    p.name = "matrix";
    p.matrices = setting.matrices;
    const Shape shape{setting.rows, setting.columns};
    p.master = plan.add(p.name, Category::Masters, DType::F32, shape);
    p.gradient = plan.add("gradient", Category::Gradients, DType::F32, shape);
    parameters_ = {p};
    loss_ = plan.add("loss", Category::Batch, DType::F64, {1});
    optimizer_ = std::make_unique<Optimizer>(
        device_.get(), options, Optimizer::States{setting.moments, nullptr, {}, 0, setting.storage},
        parameters_, plan);
    items_ = plan.items();
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<test::Arena> arena_;
  std::vector<Parameter> parameters_;
  Tensor loss_;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<MemoryPlan::Item> items_;
};

Dense rows_of(const Dense& x, int64_t begin, int64_t count) {
  Dense y(count, x.columns);
  std::copy_n(x.values.begin() + begin * x.columns, count * x.columns, y.values.begin());
  return y;
}

// The direction of a step from the momentum before it, normalised; wide.
struct Start {
  Dense direction;
  bool tall;
  double error;
};
Start start_of(const Dense& momentum, const Dense& gradient, double r) {
  const double beta = static_cast<double>(0.95f), rest = static_cast<double>(1.0f - 0.95f);
  const Dense m = sum(beta, momentum, rest, gradient), direction = sum(rest, gradient, beta, m);
  const double length = norm(direction) + 1e-7;
  // Roundings of m and of the direction, five of terms that are no larger than these; of the norm, what it
  // is divided by, the quotient and the product; and of storage, twice.
  const double size = beta * beta * norm(momentum) + (rest + beta * rest) * norm(gradient);
  Dense x = sum(1 / length, direction, 0, direction);
  const bool tall = x.rows > x.columns;
  if (tall) x = transposed(x);
  return {x, tall, (5 * unit * size / length + 4 * unit + 2 * r) * 2};  // twice: the norm moves with it
}

struct RandomMatrix {
  explicit RandomMatrix(const Setting& setting, uint64_t key = 5)
      : device(make_cpu_device(test::deterministic())) {
    Parameter p;
    p.name = "matrix";
    MemoryPlan measured;
    plan(measured, p, setting);
    arena = std::make_unique<test::Arena>(*device, measured.peak_bytes());
    MemoryPlan placed = arena->plan();
    plan(placed, p, setting);
    const Tensor values = p.master;
    device->fill_normal(values, 1.0f, key);
    for (int64_t i = 0; i < x.elements(); ++i) {
      if (x.dtype == DType::F32)
        x.as<float>()[i] = values.as<float>()[i];
      else
        x.as<BFloat16>()[i] = to_bfloat16(values.as<float>()[i]);
    }
  }
  void plan(MemoryPlan& memory, Parameter& p, const Setting& setting) {
    const Shape shape{setting.rows, setting.columns};
    p.master = memory.add("values", Category::Masters, DType::F32, shape);
    p.gradient = p.master;
    x = memory.add("x", Category::Scratch, setting.storage, shape);
    muon = Muon(device.get(), {0.95f, 5, setting.storage}, {&p, 1}, memory);
  }
  std::unique_ptr<Device> device;
  std::unique_ptr<test::Arena> arena;
  Tensor x;
  Muon muon;
};

}  // namespace

TEST_CASE("an update of Muon is that of the published equations, within its roundings") {
  for (const auto& [rows, columns] :
       {std::pair<int64_t, int64_t>{24, 40}, {40, 24}, {32, 32}, {1, 5}, {3, 1}}) {
    INFO(rows << " x " << columns);
    Trained trained({rows, columns});
    Dense plain(1, 1);
    for (int64_t t = 1; t <= 2; ++t) {
      const Dense before = dense_of(trained.parameter().master),
                  momentum = dense_of(trained.optimizer().states()[0].first.values);
      trained.step(t);
      const Dense gradient = dense_of(trained.parameter().gradient),
                  after = dense_of(trained.parameter().master);
      const Start start = start_of(momentum, gradient, 0);
      Iterated x{start.direction, start.error};
      for (int i = 0; i < 5; ++i) x = iterate(x, 0);
      const double lr = static_cast<double>(0.02f),
                   scale = 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns)));
      Dense wanted =
          sum(1 - lr * static_cast<double>(0.1f), before, -lr * scale, start.tall ? transposed(x.x) : x.x);
      // The scale is rounded and multiplies twice; then the masters' four roundings.
      const double bound = lr * scale * (x.error + 4 * unit * norm(x.x)) +
                           unit * (norm(after) + 4 * lr * (norm(before) + scale * norm(x.x)));
      INFO("bound " << bound << ", error " << norm(sum(1, after, -1, wanted)) << ", step "
                    << lr * scale * norm(x.x));
      CHECK(norm(sum(1, after, -1, wanted)) <= bound);
      CHECK(bound < 1e-2 * lr * scale * norm(x.x));  // it says something
      // Negative controls: momentum without Nesterov, and four iterations.
      if (t == 1 || std::min(rows, columns) == 1) continue;  // then the direction is the gradient's
      const Dense m = sum(static_cast<double>(0.95f), momentum, static_cast<double>(1.0f - 0.95f), gradient);
      Iterated other{sum(1 / norm(m), m, 0, m), 0}, fewer{start.direction, 0};
      if (start.tall) other.x = transposed(other.x);
      for (int i = 0; i < 5; ++i) other = iterate(other, 0);
      for (int i = 0; i < 4; ++i) fewer = iterate(fewer, 0);
      for (const Dense& control : {other.x, fewer.x}) {
        wanted = sum(1 - lr * static_cast<double>(0.1f), before, -lr * scale,
                     start.tall ? transposed(control) : control);
        CHECK(norm(sum(1, after, -1, wanted)) > 10 * bound);
      }
    }
  }
}

TEST_CASE(
    "five iterations bring singular values near one, from one per cent of the norm on into 0.68 to 1.14") {
  // The polynomial itself, on a fine grid.
  double least = 2, most = 0, least_small = 2, most_small = 0;
  for (int i = 0; i <= 300000; ++i) {
    double s = std::pow(10.0, -3.0 * i / 300000);
    const double from = s;
    for (int k = 0; k < 5; ++k) s = polynomial(s);
    if (from >= 0.01) least = std::min(least, s), most = std::max(most, s);
    if (from >= 0.00151) least_small = std::min(least_small, s), most_small = std::max(most_small, s);
  }
  CHECK(least > 0.68);
  CHECK(most < 1.14);
  CHECK(least_small > 0.68);
  CHECK(most_small < 1.21);

  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{24, 40}, {40, 24}, {16, 96}}) {
    RandomMatrix made({rows, columns});
    const Dense before = dense_of(made.x);
    std::vector<double> from = singular_values(before);
    for (double& s : from) s /= norm(before);
    Iterated exact{sum(1 / (norm(before) + 1e-7), before, 0, before), 4 * unit};
    if (rows > columns) exact.x = transposed(exact.x);
    for (int i = 0; i < 5; ++i) exact = iterate(exact, 0);
    made.muon.orthogonalise(made.x);
    std::vector<double> after = singular_values(dense_of(made.x));
    for (double& s : after) s /= 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns)));
    REQUIRE(from.front() > 0.01);
    INFO(rows << " x " << columns << ": " << from.front() << " to " << from.back() << " becomes "
              << after.front() << " to " << after.back() << ", error " << exact.error);
    CHECK(after.front() >= 0.68 - exact.error);
    CHECK(after.back() <= 1.14 + exact.error);
    CHECK(from.front() < 0.68 - exact.error);  // negative control: normalised alone they are not there
  }
}

TEST_CASE("in BF16 singular values stay within the last iteration's roundings of the polynomial's range") {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{24, 40}, {40, 24}, {16, 96}}) {
    RandomMatrix made({rows, columns, DType::BF16});
    const Dense before = dense_of(made.x);
    const std::vector<double> from = singular_values(before);
    made.muon.orthogonalise(made.x);
    const Dense x = dense_of(made.x);
    const double scale = 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns)));
    std::vector<double> after = singular_values(x);
    for (double& s : after) s /= scale;
    // From anywhere in [0.21, 1.4] the polynomial leads into [0.68, 1.21]; what the last iteration's
    // roundings add, for a matrix like the result.
    Iterated last{sum(1 / scale, rows > columns ? transposed(x) : x, 0, rows > columns ? transposed(x) : x),
                  0};
    const double slack = iterate(last, 0x1p-8).error;
    INFO(rows << " x " << columns << ": " << from.front() / norm(before) << " to "
              << from.back() / norm(before) << " becomes " << after.front() << " to " << after.back()
              << ", slack " << slack);
    CHECK(after.front() >= 0.68 - slack);
    CHECK(after.back() <= 1.21 + slack);
    CHECK(from.front() / norm(before) < 0.68 - slack);  // negative control
  }
}

TEST_CASE("a parameter of several matrices is made orthogonal matrix by matrix") {
  for (const DType storage : {DType::F32, DType::BF16}) {
    Trained fused({16, 24, storage, {8, 5, 3}}), whole({16, 24, storage});
    for (Trained* trained : {&fused, &whole}) trained->step(1);
    // Each matrix by itself, from the same direction.
    const Dense gradient = dense_of(fused.parameter().gradient), after = dense_of(fused.parameter().master);
    Trained again({16, 24, storage, {8, 5, 3}});
    const Dense before = dense_of(again.parameter().master);
    const int64_t begins[] = {0, 8, 13}, counts[] = {8, 5, 3};
    for (int i = 0; i < 3; ++i) {
      Trained one({counts[i], 24, storage});
      std::memcpy(one.parameter().master.data, again.parameter().master.as<float>() + begins[i] * 24,
                  one.parameter().master.bytes());
      std::memcpy(one.parameter().gradient.data, fused.parameter().gradient.as<float>() + begins[i] * 24,
                  one.parameter().gradient.bytes());
      one.optimizer().step({&one.parameter(), 1}, 0.02, 1, one.loss(), 1);
      CHECK(dense_of(one.parameter().master).values == rows_of(after, begins[i], counts[i]).values);
    }
    CHECK(dense_of(whole.parameter().gradient).values == gradient.values);
    CHECK(dense_of(whole.parameter().master).values != after.values);
    CHECK(before.values != after.values);
  }
}

TEST_CASE("Muon plans no second moment, stores its momentum as the recipe says, and decays") {
  for (const char* recipe : {"fp32", "bf16", "fp8"}) {
    Trained trained({16, 128, DType::BF16, {}, make_recipe(recipe).moments});
    trained.step(1);
    const Optimizer::State& state = trained.optimizer().states()[0];
    CHECK(state.second.values.empty());
    CHECK(state.first.values.dtype == dtype_of(make_recipe(recipe).moments.first));
    CHECK(state.first.inverse.empty() == (std::string(recipe) != "fp8"));
    for (const MemoryPlan::Item& item : trained.items()) CHECK(item.category != Category::SecondMoments);
  }
  // Without a gradient what is left is the decay.
  Trained still({8, 16});
  const Dense before = dense_of(still.parameter().master);
  std::memset(still.parameter().gradient.data, 0, still.parameter().gradient.bytes());
  still.optimizer().step({&still.parameter(), 1}, 0.125, 1, still.loss(), 1);
  const Dense after = dense_of(still.parameter().master);
  for (size_t i = 0; i < before.values.size(); ++i)
    CHECK(std::fabs(after.values[i] - (1 - 0.125 * static_cast<double>(0.1f)) * before.values[i]) <=
          2 * unit * std::fabs(before.values[i]));
}

TEST_CASE("the size of the gradients does not matter to Muon, clipping changes its momentum only") {
  Trained plain({24, 40}), clipped({24, 40}, [] {
    OptimizerOptions options = Trained::muon();
    options.clip_norm = 0x1p-3;
    return options;
  }());
  for (Trained* trained : {&plain, &clipped}) trained->step(1);
  CHECK(clipped.optimizer().read_control().scale < 0.5f);
  const Dense one = dense_of(plain.parameter().master), other = dense_of(clipped.parameter().master);
  // Directions of the same matrix but for their roundings, as above, and 1e-7 beside a norm of 1e-2.
  CHECK(norm(sum(1, one, -1, other)) < 1e-4 * norm(one));
  const Dense m = dense_of(plain.optimizer().states()[0].first.values),
              its = dense_of(clipped.optimizer().states()[0].first.values);
  CHECK(norm(its) < 0.5 * norm(m));
}

TEST_CASE("a step that is not applied changes nothing of Muon's") {
  for (const char* recipe : {"fp32", "fp8"}) {
    Trained trained({16, 128, DType::BF16, {}, make_recipe(recipe).moments});
    trained.step(1);
    const auto state = [&] {
      std::vector<char> bytes;
      const MomentTensor& first = trained.optimizer().states()[0].first;
      for (const Tensor& tensor : {trained.parameter().master, first.values, first.inverse}) {
        const char* data = static_cast<const char*>(tensor.data);
        bytes.insert(bytes.end(), data, data + tensor.bytes());
      }
      return bytes;
    };
    const std::vector<char> before = state();
    *trained.loss().as<double>() = NAN;
    trained.step(2);
    CHECK(trained.optimizer().read_control().apply == 0);
    CHECK(state() == before);
    *trained.loss().as<double>() = 1;
    trained.step(2);
    CHECK(state() != before);
  }
}

TEST_CASE("Muon's root mean square is not measured, update clipping leaves its step alone") {
  OptimizerOptions clipping = Trained::muon();
  clipping.update_clipping = true;
  Trained plain({16, 24}), measured({16, 24}, clipping);
  for (Trained* trained : {&plain, &measured}) trained->step(1);
  CHECK(measured.optimizer().update_rms().as<float>()[0] == 0.0f);
  CHECK(dense_of(plain.parameter().master).values == dense_of(measured.parameter().master).values);
}

TEST_CASE("a matrix of which a rank has a part is refused by Muon") {
  const auto device = make_cpu_device(test::deterministic());
  MemoryPlan plan;
  Parameter p;
  p.name = "blocks.0.ffn.down.weight";
  p.master = plan.add("m", Category::Masters, DType::F32, {int64_t{1} << 15});
  p.gradient = plan.add("g", Category::Gradients, DType::F32, {256, 256});
  p.shard = int64_t{1} << 15;
  const Error error = error_of([&] { Muon(device.get(), {0.95f, 5, DType::BF16}, {&p, 1}, plan); });
  CHECK(std::string(error.what()).find("blocks.0.ffn.down.weight") != std::string::npos);
  CHECK(error.hint().find("parallel.zero") != std::string::npos);
}
