// What blocks keep for backward: activations as codes change what backward reads and nothing else.
#include "catch.h"
#include "error_of.h"
#include "model/tiny_model.h"

using namespace octet;
using test::TinyModel;

namespace {

TransformerOptions model_of(Recipe recipe, SavedActivations saved) {
  recipe.saved_activations = saved;
  return test::tiny(recipe);
}

void keeps_the_loss_and_nearly_the_gradients(TransformerOptions options) {
  options.recipe.saved_activations = SavedActivations::Storage;
  TinyModel reference(options);
  options.recipe.saved_activations = SavedActivations::FP8;
  TinyModel coded(options);
  const test::Batch batch = test::random_batch(options, 0);
  reference.train(batch);
  coded.train(batch);
  CHECK(coded.hash(coded.model->token_losses()) == reference.hash(reference.model->token_losses()));

  size_t changed = 0, matrices = 0;
  double worst = 0;
  for (const Parameter& parameter : reference.model->parameters()) {
    const std::vector<double> exact = reference.values(parameter.gradient),
                              other = coded.values(coded.parameter(parameter.name).gradient);
    INFO(parameter.name);
    if (!parameter.name.starts_with("blocks") && parameter.name != "embedding.weight") CHECK(exact == other);
    if (parameter.kind == ParameterKind::Vector) continue;
    ++matrices;
    changed += exact != other;
    worst = std::max(worst, test::relative_error(other, exact));
  }
  CHECK(changed > matrices / 2);  // backward did read codes
  // Each value is within 2^-4, with errors of random sign: in a sum of many they are less. Two blocks, three
  // coded tensors each on the way.
  CHECK(worst < 6 * 0x1p-4);
}

}  // namespace

TEST_CASE("activations kept as codes leave the loss as it is and the gradients near it") {
  for (const char* recipe : {"bf16", "fp8"}) {
    TransformerOptions options = test::tiny(recipe);
    options.recipe.weight_gradient = Format::FP32;
    keeps_the_loss_and_nearly_the_gradients(options);
    options.spec.activation = Activation::XIELU;
    options.spec.pre_norm = false;
    options.spec.post_norm = PostNorm::RMS;
    options.recipe.smooth_swiglu = SmoothSwiGLU::None;
    keeps_the_loss_and_nearly_the_gradients(options);
    options.spec.pre_norm = true;
    options.spec.post_norm = PostNorm::LayerScale;
    keeps_the_loss_and_nearly_the_gradients(options);
  }
}

TEST_CASE("an evaluation neither reads nor writes activations kept as codes") {
  TinyModel tiny(model_of(make_recipe("fp8"), SavedActivations::FP8));
  tiny.train(test::random_batch(tiny.options, 0));
  const Tensor codes = tiny.planned("blocks.0.ffn.gate_up.codes");
  const uint64_t kept = tiny.hash(codes);
  tiny.evaluate(test::random_batch(tiny.options, 1));
  CHECK(tiny.hash(codes) == kept);
  tiny.train(test::random_batch(tiny.options, 1));
  CHECK(tiny.hash(codes) != kept);  // negative control
}

// A block keeps 2 D + 2 F values a token for its norms and its activation; coded they are 1 + 1/16 bytes each
// instead of 2, and one block's worth of values remains.
TEST_CASE("activations kept as codes cost what their format says") {
  const auto bytes_of = [](int64_t layers, SavedActivations saved) {
    TransformerOptions options = model_of(make_recipe("fp8"), saved);
    options.spec.layers = layers;
    options.spec.width = 64;
    options.spec.ffn_width = 128;
    options.spec.context = 128;
    MemoryPlan plan;
    const Transformer model(nullptr, options, plan);
    return static_cast<int64_t>(plan.peak_bytes());
  };
  const int64_t tokens = 2 * 128, values = tokens * (2 * 64 + 2 * 128);
  const int64_t storage = bytes_of(8, SavedActivations::Storage) - bytes_of(6, SavedActivations::Storage);
  const int64_t coded = bytes_of(8, SavedActivations::FP8) - bytes_of(6, SavedActivations::FP8);
  CHECK(storage - coded == 2 * (2 * values - (values + values / 16)));
}

TEST_CASE("activations kept as codes are not recomputed") {
  TransformerOptions options = model_of(make_recipe("fp8"), SavedActivations::FP8);
  for (const Recompute policy : {Recompute::NormsAndSwiGLU, Recompute::Block}) {
    options.recompute = policy;
    MemoryPlan plan;
    CHECK(std::string(error_of([&] { Transformer(nullptr, options, plan); }).what()).find("recompute") !=
          std::string::npos);
  }
}

// Of a model without norms in front of its layers backward reads the codes of the stream, not the stream.
TEST_CASE("a stream that only FP8 products read is not kept, and the bits are those of a run that keeps it") {
  TransformerOptions options = test::tiny("fp8");
  options.spec.pre_norm = false;
  options.spec.post_norm = PostNorm::RMS;
  options.spec.activation = Activation::XIELU;
  options.recipe.smooth_swiglu = SmoothSwiGLU::None;
  const auto keeps_stream = [](const TinyModel& tiny) {
    for (const MemoryPlan::Item& item : tiny.items)
      if (item.name == "blocks.0.residual") return true;
    return false;
  };
  const test::Batch batch = test::random_batch(options, 0);
  TinyModel lean(options);
  CHECK_FALSE(keeps_stream(lean));
  lean.train(batch);
  options.recompute = Recompute::NormsAndSwiGLU;  // casts the stream again, so it is kept
  TinyModel keeping(options);
  CHECK(keeps_stream(keeping));
  keeping.train(batch);
  CHECK(lean.gradient_hashes() == keeping.gradient_hashes());

  options.recompute = Recompute::None;
  options.recipe.gemms.wgrad = GemmFormat::Storage;  // the weight gradient reads the stream itself
  CHECK(keeps_stream(TinyModel(options)));
}
