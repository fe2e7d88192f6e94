#include "optimizer/optimizer.h"

#include <cmath>
#include <limits>

#include "catch.h"
#include "model/tiny_model.h"

using namespace octet;

namespace {

constexpr int64_t rows = 4, columns = 96;

// One matrix, one embedding and one vector with their optimizer.
struct Trio {
  explicit Trio(const OptimizerOptions& options, const Moments& moments = make_recipe("fp32").moments)
      : device(make_cpu_device(test::deterministic())) {
    MemoryPlan measured;
    build(measured, options, moments);
    arena = std::make_unique<test::Arena>(*device, measured.peak_bytes());
    MemoryPlan placed = arena->plan();
    build(placed, options, moments);
    items = placed.items();
    for (size_t i = 0; i < parameters.size(); ++i) {
      device->fill_normal(parameters[i].master, 0.5f, i);
      device->fill_normal(parameters[i].gradient, 0.1f, 100 + i);
    }
  }
  void build(MemoryPlan& plan, const OptimizerOptions& options, const Moments& moments) {
    parameters.clear();
    const auto add = [&](const char* name, ParameterKind kind, const Shape& shape) {
      Parameter p;
      p.name = name;
      p.kind = kind;
      p.master = plan.add(p.name, Category::Masters, DType::F32, shape);
      p.gradient = plan.add(p.name + ".gradient", Category::Gradients, DType::F32, shape);
      parameters.push_back(p);
    };
    add("matrix", ParameterKind::Matrix, {rows, columns});
    add("embedding", ParameterKind::Embedding, {rows, columns});
    add("gain", ParameterKind::Vector, {columns});
    loss_sum = plan.add("loss_sum", Category::Batch, DType::F64, {1});
    adamw = std::make_unique<Optimizer>(device.get(), options, Optimizer::States{moments}, parameters, plan);
  }
  std::vector<float> master(size_t i) const {
    const float* data = parameters[i].master.as<float>();
    return {data, data + parameters[i].master.elements()};
  }
  void set_loss(double loss) { *loss_sum.as<double>() = loss; }

  std::unique_ptr<Device> device;
  std::unique_ptr<test::Arena> arena;
  std::vector<Parameter> parameters;
  Tensor loss_sum;
  std::unique_ptr<Optimizer> adamw;
  std::vector<MemoryPlan::Item> items;
};

double norm_of(const Trio& trio) {
  double square = 0;
  for (const Parameter& p : trio.parameters)
    for (int64_t i = 0; i < p.gradient.elements(); ++i)
      square +=
          static_cast<double>(p.gradient.as<float>()[i]) * static_cast<double>(p.gradient.as<float>()[i]);
  return std::sqrt(square);
}

}  // namespace

TEST_CASE("only matrices and embeddings decay, and embeddings only when asked to") {
  for (bool decay_embeddings : {true, false}) {
    OptimizerOptions options;
    options.decay_embeddings = decay_embeddings;
    options.weight_decay = 0.5;
    Trio trio(options);
    for (const Parameter& p : trio.parameters) trio.device->zero(p.gradient);  // what is left is the decay
    std::vector<std::vector<float>> before;
    for (size_t i = 0; i < 3; ++i) before.push_back(trio.master(i));
    trio.adamw->step(trio.parameters, 0.125, 1, trio.loss_sum, 1);
    const float factors[] = {1 - 0.0625f, decay_embeddings ? 1 - 0.0625f : 1.0f, 1.0f};
    for (size_t i = 0; i < 3; ++i)
      for (size_t k = 0; k < before[i].size(); ++k)
        // Two FP32 roundings: of the product and of the difference.
        CHECK(std::abs(trio.master(i)[k] - factors[i] * before[i][k]) <=
              2 * 0x1p-24f * std::abs(before[i][k]));
  }
}

TEST_CASE("a parameter's own rate is that of its update, not of its decay") {
  const auto step = [](double factor, double decay) {
    OptimizerOptions options;
    options.weight_decay = decay;
    options.clip_norm = 0;
    Trio trio(options);
    trio.parameters[0].learning_rate_factor = factor;
    const std::vector<float> before = trio.master(0);
    trio.adamw->step(trio.parameters, 0.125, 1, trio.loss_sum, 1);
    std::vector<double> changes;
    for (size_t k = 0; k < before.size(); ++k)
      changes.push_back(static_cast<double>(trio.master(0)[k]) - static_cast<double>(before[k]));
    return changes;
  };
  // Weights are about 1/2: each FP32 rounding of one is at most 2^-25 of 2, and there are three.
  const double error = 3 * 2 * 0x1p-24;
  const std::vector<double> whole = step(1, 0), quarter = step(0.25, 0), decayed = step(0.25, 0.5),
                            both = step(1, 0.5);
  for (size_t k = 0; k < whole.size(); ++k) {
    CHECK(std::abs(quarter[k] - 0.25 * whole[k]) <= error);
    CHECK(std::abs((decayed[k] - quarter[k]) - (both[k] - whole[k])) <= 2 * error);  // the decay alone
  }
  CHECK(std::abs(whole[0]) > 100 * error);  // not nothing
}

TEST_CASE("only matrices and embeddings have FP8 moments") {
  Trio trio({}, make_recipe("fp8").moments);
  const std::vector<Optimizer::State>& states = trio.adamw->states();
  for (size_t i : {0, 1}) {
    CHECK(states[i].first.values.dtype == DType::E4M3);
    CHECK(states[i].second.values.dtype == DType::E5M2);
    CHECK(states[i].first.inverse.elements() == rows * columns / 128);
  }
  CHECK(states[2].first.values.dtype == DType::F32);
  CHECK(states[2].second.values.dtype == DType::F32);
  CHECK(states[2].first.inverse.empty());
}

TEST_CASE("moments take the bytes their formats say") {
  const auto bytes = [](const Moments& moments, Category category) {
    size_t sum = 0;
    for (const MemoryPlan::Item& item : Trio({}, moments).items)
      if (item.category == category) sum += item.bytes;
    return static_cast<int64_t>(sum);
  };
  constexpr int64_t tables = 2 * rows * columns, vector = 4 * columns;
  Moments moments = make_recipe("fp8").moments;
  CHECK(bytes(moments, Category::FirstMoments) == tables + 4 * (tables / 128) + vector);
  CHECK(bytes(moments, Category::SecondMoments) == tables + 4 * (tables / 128) + vector);
  moments.block = 0;  // one scale a tensor
  CHECK(bytes(moments, Category::FirstMoments) == tables + 4 * 2 + vector);
  moments.first = Format::BF16;
  CHECK(bytes(moments, Category::FirstMoments) == 2 * tables + vector);
  CHECK(bytes(make_recipe("bf16").moments, Category::FirstMoments) == 4 * tables + vector);
}

TEST_CASE("clipping measures the global norm before the update") {
  OptimizerOptions options;
  options.clip_norm = 0.25;
  Trio trio(options);
  const double norm = norm_of(trio);
  REQUIRE(norm > options.clip_norm);
  trio.set_loss(30.0);
  trio.adamw->step(trio.parameters, 1e-3, 1, trio.loss_sum, 10);
  const UpdateControl control = trio.adamw->read_control();
  // n squares are summed and a root is taken: n 2^-24 is the worst of FP32 sums in any order.
  const double tolerance = static_cast<double>(2 * rows * columns + columns) * 0x1p-24;
  CHECK(control.gradient_norm == Approx(norm).epsilon(tolerance));
  CHECK(control.scale == Approx(options.clip_norm / norm).epsilon(tolerance));
  CHECK(control.loss == 3.0f);
  CHECK(control.apply == 1);
}

TEST_CASE("gradients below the threshold are not clipped, and zero switches clipping off") {
  OptimizerOptions options;
  for (double clip : {1e6, 0.0}) {
    options.clip_norm = clip;
    Trio trio(options);
    trio.adamw->step(trio.parameters, 1e-3, 1, trio.loss_sum, 1);
    CHECK(trio.adamw->read_control().scale == 1.0f);
  }
}

TEST_CASE("a step with a non-finite gradient or loss changes nothing") {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(),
                  infinity = std::numeric_limits<float>::infinity();
  for (const char* recipe : {"bf16", "fp8"})
    for (float poison : {nan, infinity})
      for (bool in_loss : {false, true}) {
        Trio trio({}, make_recipe(recipe).moments);
        trio.adamw->step(trio.parameters, 1e-3, 1, trio.loss_sum, 1);
        const auto state = [&] {
          std::vector<uint64_t> hashes;
          for (size_t i = 0; i < 3; ++i) {
            const Optimizer::State& s = trio.adamw->states()[i];
            for (const Tensor& t :
                 {trio.parameters[i].master, s.first.values, s.second.values, s.first.inverse})
              hashes.push_back(hash64(t.data, t.bytes()));
          }
          return hashes;
        };
        const std::vector<uint64_t> before = state();
        const float healthy = trio.parameters[0].gradient.as<float>()[7];
        if (in_loss)
          trio.set_loss(static_cast<double>(poison));
        else
          trio.parameters[0].gradient.as<float>()[7] = poison;
        trio.adamw->step(trio.parameters, 1e-3, 2, trio.loss_sum, 1);
        CHECK(trio.adamw->read_control().apply == 0);
        CHECK(state() == before);
        // Negative control: healthy again, the same step does update.
        trio.set_loss(1.0);
        trio.parameters[0].gradient.as<float>()[7] = healthy;
        trio.adamw->step(trio.parameters, 1e-3, 2, trio.loss_sum, 1);
        CHECK(trio.adamw->read_control().apply == 1);
        CHECK(state() != before);
      }
}
