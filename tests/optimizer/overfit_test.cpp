// The whole chain learns: a model can memorise one small batch in every precision.
#include "catch.h"
#include "model/tiny_model.h"
#include "optimizer/optimizer.h"

using namespace octet;
using test::TinyModel;

namespace {

struct Memorised {
  double first, last;  // mean loss in nats
};

struct Run {
  int64_t steps = 150;
  double learning_rate = 1e-2;
};

Memorised memorise(const TransformerOptions& options, const Run& run = {}) {
  TinyModel tiny(options);
  OptimizerOptions adamw_options;
  adamw_options.weight_decay = 0;
  MemoryPlan measured;
  {
    const Optimizer sizes(tiny.device.get(), adamw_options, {options.recipe.moments},
                          tiny.model->parameters(), measured);
  }
  const test::Arena arena(*tiny.device, measured.peak_bytes());
  MemoryPlan placed = arena.plan();
  Optimizer adamw(tiny.device.get(), adamw_options, {options.recipe.moments}, tiny.model->parameters(),
                  placed);

  const test::Batch batch = test::random_batch(options, 1);
  // Different beginnings: from its first token on, a window can be told from the other.
  REQUIRE(batch.tokens.front() != batch.tokens[static_cast<size_t>(options.spec.context)]);
  const auto tokens = static_cast<double>(batch.tokens.size());
  Memorised losses{};
  for (int64_t step = 0; step < run.steps; ++step) {
    tiny.model->zero_gradients();
    tiny.device->zero(tiny.model->loss_sum());
    tiny.train(batch, {step, 0});
    adamw.step(tiny.model->parameters(), run.learning_rate, step + 1, tiny.model->loss_sum(), tokens);
    tiny.model->update_scales(step);
    tiny.model->refresh_working_weights(step + 1);
    losses.last = static_cast<double>(adamw.read_control().loss);
    if (step == 0) losses.first = losses.last;
  }
  return losses;
}

// Random targets cannot be guessed: the batch starts near ln V and only memory brings it down. 0.05 nats are
// less than 2 % of that; a model that ignored its input would stay near the batch's unigram entropy, above 2
// nats.
void is_memorised(const TransformerOptions& options) {
  const Memorised losses = memorise(options);
  CHECK(losses.first > 3.0);
  CHECK(losses.last < 0.02);
}

}  // namespace

TEST_CASE("a batch is memorised in fp32 and bf16") {
  is_memorised(test::tiny("fp32"));
  is_memorised(test::tiny("bf16"));
}

TEST_CASE("a batch is memorised in fp8, in every Smooth-SwiGLU mode and with both scalings") {
  for (SmoothSwiGLU mode : test::smooth_modes)
    for (Scaling scaling : {Scaling::Current, Scaling::Delayed}) {
      INFO(test::name_of(mode) << ", scaling " << static_cast<int>(scaling));
      is_memorised(test::tiny(test::fp8(mode, scaling)));
    }
}

TEST_CASE("a batch is memorised with tied head, biases, z-loss and stochastic rounding") {
  TransformerOptions options = test::tiny("fp8");
  options.spec.tied_head = true;
  options.spec.qkv_bias = true;
  options.z_loss = 1e-4;
  options.recipe.grad.rounding = Rounding::Stochastic;
  is_memorised(options);
}

TEST_CASE("negative control: without learning nothing is memorised") {
  const Memorised losses = memorise(test::tiny("fp8"), {.steps = 3, .learning_rate = 0.0});
  CHECK(losses.last == losses.first);
}
