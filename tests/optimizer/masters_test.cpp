// The optimizer with masters and moments in other formats, and its update clipping: a whole model, its plan,
// its checkpointable states.
#include <cmath>
#include <map>

#include "catch.h"
#include "model/tiny_model.h"
#include "numerics/masters.h"
#include "optimizer/optimizer.h"

using namespace octet;

namespace {

constexpr MasterFormat formats[] = {MasterFormat::FP32,        MasterFormat::BF16Remainder,
                                    MasterFormat::BF16Kahan,   MasterFormat::BF16Stochastic,
                                    MasterFormat::BF16Nearest, MasterFormat::FP16Scaled};

// A tiny model and its optimizer, trained on a few batches.
struct Trained {
  explicit Trained(const Recipe& recipe, const OptimizerOptions& adamw = {}, int steps = 4)
      : device(make_cpu_device(test::deterministic())) {
    const TransformerOptions options = test::tiny(recipe);
    MemoryPlan measured;
    build(options, adamw, measured);
    items = measured.items();
    arena = std::make_unique<test::Arena>(*device, measured.peak_bytes());
    MemoryPlan placed = arena->plan();
    build(options, adamw, placed);
    model->initialize();
    for (int64_t step = 0; step < steps; ++step) {
      const test::Batch batch = test::random_batch(options, static_cast<uint64_t>(step % 2));
      model->zero_gradients();
      device->zero(model->loss_sum());
      model->forward_backward(batch.tokens.data(), batch.targets.data(),
                              1.0f / static_cast<float>(batch.tokens.size()), {step, 0});
      optimizer->step(model->parameters(), 3e-3, step + 1, model->loss_sum(),
                      static_cast<double>(batch.tokens.size()));
      model->refresh_working_weights(step + 1);
      losses.push_back(optimizer->read_control().loss);
    }
  }
  void build(const TransformerOptions& options, const OptimizerOptions& adamw, MemoryPlan& plan) {
    optimizer.reset();
    model = std::make_unique<Transformer>(device.get(), options, plan);
    optimizer = std::make_unique<Optimizer>(
        device.get(), adamw, Optimizer::States{options.recipe.moments, nullptr, {}, options.seed},
        model->parameters(), plan);
  }
  int64_t master_bytes(const std::string& prefix) const {
    int64_t bytes = 0;
    for (const MemoryPlan::Item& item : items)
      if (item.name == prefix || item.name.rfind(prefix + ".", 0) == 0)
        if (item.category == Category::Masters)
          bytes += item.shape.elements() * static_cast<int64_t>(size_of(item.dtype));
    return bytes;
  }
  bool has_copy(const std::string& name) const {
    for (const MemoryPlan::Item& item : items)
      if (item.name == name + ".copy") return true;
    return false;
  }

  std::unique_ptr<Device> device;
  std::unique_ptr<test::Arena> arena;
  std::unique_ptr<Transformer> model;
  std::unique_ptr<Optimizer> optimizer;
  std::vector<MemoryPlan::Item> items;
  std::vector<float> losses;
};

Recipe with(const char* name, MasterFormat master) {
  Recipe recipe = make_recipe(name);
  recipe.master = master;
  return recipe;
}

}  // namespace

TEST_CASE(
    "masters take the bytes their format says, vectors stay FP32, a plain BF16 is its own working copy") {
  for (const MasterFormat format : formats) {
    INFO(static_cast<int>(format));
    const Trained trained(with("bf16", format), {}, 0);
    for (const Parameter& p : trained.model->parameters()) {
      const int64_t n = p.master.elements(), found = trained.master_bytes(p.name);
      const bool vector = p.kind == ParameterKind::Vector;
      const int64_t blocks = (n + 127) / 128;
      const std::map<MasterFormat, int64_t> bytes = {
          {MasterFormat::FP32, 4 * n},        {MasterFormat::BF16Remainder, 4 * n},
          {MasterFormat::BF16Kahan, 4 * n},   {MasterFormat::BF16Stochastic, 2 * n},
          {MasterFormat::BF16Nearest, 2 * n}, {MasterFormat::FP16Scaled, 2 * n + 4 * blocks}};
      CHECK(found == (vector ? 4 * n : bytes.at(format)));
      CHECK((p.master.dtype == DType::F32) == (vector || format == MasterFormat::FP32));
      if (vector) continue;
      const bool plain = format == MasterFormat::BF16Kahan || format == MasterFormat::BF16Stochastic ||
                         format == MasterFormat::BF16Nearest;
      CHECK(trained.has_copy(p.name) == !plain);
    }
  }
}

TEST_CASE("a BF16 master with its remainder trains with the bits of an FP32 master") {
  for (const char* recipe : {"bf16", "fp8"}) {
    const Trained fp32(with(recipe, MasterFormat::FP32)),
        remainder(with(recipe, MasterFormat::BF16Remainder)),
        nearest(with(recipe, MasterFormat::BF16Nearest));
    CHECK(remainder.losses == fp32.losses);
    CHECK(nearest.losses != fp32.losses);  // the control
    for (size_t i = 0; i < fp32.model->parameters().size(); ++i) {
      const Parameter &a = fp32.model->parameters()[i], &b = remainder.model->parameters()[i];
      for (int64_t k = 0; k < a.master.elements(); ++k) {
        const float x = a.master.as<float>()[k];
        if (b.kind == ParameterKind::Vector) {
          REQUIRE(b.master.as<float>()[k] == x);
        } else {
          const StoredMaster stored{b.master.as<uint16_t>()[k], b.master_code.rest.as<uint16_t>()[k]};
          REQUIRE(load_master(MasterFormat::BF16Remainder, stored, 1) == x);
        }
      }
    }
  }
}

TEST_CASE("every master learns, in BF16 and FP8, and a repeat has the same bits") {
  for (const char* recipe : {"bf16", "fp8"})
    for (const MasterFormat format : formats) {
      INFO(recipe << ", " << static_cast<int>(format));
      const Trained first(with(recipe, format), {}, 12), again(with(recipe, format), {}, 12);
      CHECK(first.losses == again.losses);
      CHECK(first.losses.back() < first.losses.front());
    }
}

TEST_CASE("recipes that read FP32 masters refuse others") {
  MemoryPlan plan;
  Recipe fp32 = with("fp32", MasterFormat::BF16Stochastic);
  CHECK_THROWS_AS(Transformer(nullptr, test::tiny(fp32), plan), Error);
  Recipe channel = with("fp8", MasterFormat::BF16Kahan);
  channel.smooth_swiglu = SmoothSwiGLU::Channel;
  CHECK_THROWS_AS(Transformer(nullptr, test::tiny(channel), plan), Error);
  channel.master = MasterFormat::FP32;
  CHECK_NOTHROW(Transformer(nullptr, test::tiny(channel), plan));
}

TEST_CASE("expanded moments take 2.08 bytes a weight, FP16 and E4M3 ones 3.06, they learn") {
  const auto bytes_a_weight = [](const Moments& moments) {
    Recipe recipe = make_recipe("fp8");
    recipe.moments = moments;
    const Trained trained(recipe, {}, 12);
    CHECK(trained.losses.back() < trained.losses.front());
    int64_t bytes = 0, weights = 0;
    for (size_t i = 0; i < trained.model->parameters().size(); ++i) {
      const Parameter& p = trained.model->parameters()[i];
      if (p.kind == ParameterKind::Vector || p.master.elements() % 128 != 0) continue;
      weights += p.master.elements();
      const Optimizer::State& state = trained.optimizer->states()[i];
      for (const MomentTensor* m : {&state.first, &state.second})
        bytes += static_cast<int64_t>(m->values.bytes() + m->inverse.bytes() + m->exponents.bytes());
    }
    return static_cast<double>(bytes) / static_cast<double>(weights);
  };
  CHECK(bytes_a_weight({Format::E4M3, Format::E4M3, 128, true}) == 2 + 2 * 5.0 / 128);   // COAT's (max, k)
  CHECK(bytes_a_weight({Format::E4M3, Format::E4M3, 128, false}) == 2 + 2 * 4.0 / 128);  // nanotron's formats
  CHECK(bytes_a_weight({Format::E4M3, Format::FP16, 128, false}) == 3 + 2 * 4.0 / 128);  // FP8-LM's formats
}

TEST_CASE("update clipping: the mean square of each tensor is measured, and divides its rate above one") {
  OptimizerOptions clipping;
  clipping.update_clipping = true;
  // In the first step g^2 / v_hat is 1 for every weight with a gradient.
  const Trained one(make_recipe("bf16"), clipping, 1);
  const float* rms = one.optimizer->update_rms().as<float>();
  for (size_t i = 0; i < one.model->parameters().size(); ++i) CHECK(rms[i] <= 1.0f + 1e-5f);
  const Trained clipped(make_recipe("bf16"), clipping, 6), plain(make_recipe("bf16"), {}, 6);
  CHECK(clipped.losses[0] == plain.losses[0]);
  CHECK(clipped.losses != plain.losses);  // two batches in turn: what v does not know yet exceeds 1
  float largest = 0;
  rms = clipped.optimizer->update_rms().as<float>();
  for (size_t i = 0; i < clipped.model->parameters().size(); ++i) largest = std::max(largest, rms[i]);
  CHECK(largest > 1.0f);
  CHECK(std::isfinite(largest));
  for (size_t i = 0; i < plain.model->parameters().size(); ++i)
    CHECK(plain.optimizer->update_rms().as<float>()[i] == 0.0f);  // nobody asked
}
