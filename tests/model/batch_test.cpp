// How a batch is cut into micro-batches, and a micro-batch into chunks of the head, is only a matter of
// memory.
#include "catch.h"
#include "model/tiny_model.h"

using namespace octet;
using test::TinyModel;

namespace {

// Two orders of one sum of n FP32 terms differ by at most n 2^-24 of the terms' magnitudes (n additions on
// each side, half an ulp each, against the mean of both). Terms of random sign add up to 1/sqrt(n) of their
// magnitudes.
double reordering_bound(int64_t terms) {
  const auto n = static_cast<double>(terms);
  return n * std::sqrt(n) * 0x1p-24;
}

}  // namespace

TEST_CASE("accumulated micro-batches give the gradient of the whole batch") {
  for (const char* recipe : {"fp32", "bf16"}) {
    INFO(recipe);
    TransformerOptions options = test::tiny(recipe);
    options.micro_batch = 4;
    const test::Batch batch = test::random_batch(options, 0);
    TinyModel whole(options);
    whole.train(batch);

    options.micro_batch = 2;
    TinyModel halves(options);
    const auto half = static_cast<std::ptrdiff_t>(batch.tokens.size() / 2);
    std::vector<double> first_half_alone;
    for (int64_t micro = 0; micro < 2; ++micro) {
      const int32_t* tokens = batch.tokens.data() + micro * half;
      const int32_t* targets = batch.targets.data() + micro * half;
      halves.model->forward_backward(tokens, targets, whole.gradient_scale(), {0, micro});
      if (micro == 0) first_half_alone = halves.values(halves.parameter("head.weight").gradient);
    }
    for (const Parameter& p : whole.model->parameters()) {
      INFO(p.name);
      const std::vector<double> expected = whole.values(p.gradient);
      CHECK(test::relative_error(halves.values(halves.parameter(p.name).gradient), expected) <=
            reordering_bound(4 * options.spec.context));
    }
    CHECK(halves.loss_sum() == Approx(whole.loss_sum()).epsilon(1e-12));
    // Negative control: one micro-batch forgotten.
    CHECK(test::relative_error(first_half_alone, whole.values(whole.parameter("head.weight").gradient)) >
          0.1);
  }
}

TEST_CASE("the size of the head's chunks does not matter") {
  for (const char* recipe : {"fp32", "bf16", "fp8"})
    for (bool tied : {false, true}) {
      INFO(recipe << (tied ? ", tied" : ""));
      TransformerOptions options = test::tiny(recipe);
      options.spec.tied_head = tied;
      const std::string table = tied ? "embedding.weight" : "head.weight";
      const test::Batch batch = test::random_batch(options, 0);
      const int64_t tokens = options.micro_batch * options.spec.context;
      options.head_chunk = 1024;
      TinyModel whole(options);
      whole.train(batch);
      for (int64_t chunk : {int64_t{1}, int64_t{7}, int64_t{16}, tokens}) {
        INFO("chunk " << chunk);
        options.head_chunk = chunk;
        TinyModel chunked(options);
        chunked.train(batch);
        // A row of logits is one sum whatever its neighbours; only the table's gradient is a sum over chunks.
        CHECK(chunked.hash(chunked.model->token_losses()) == whole.hash(whole.model->token_losses()));
        for (const Parameter& p : whole.model->parameters()) {
          if (p.name == table) continue;
          INFO(p.name);
          CHECK(chunked.hash(chunked.parameter(p.name).gradient) == whole.hash(p.gradient));
        }
        CHECK(test::relative_error(chunked.values(chunked.parameter(table).gradient),
                                   whole.values(whole.parameter(table).gradient)) <=
              reordering_bound(tokens));
      }
    }
}

TEST_CASE("ignored targets cost nothing and teach nothing") {
  const TransformerOptions options = test::tiny("fp32");
  test::Batch batch = test::random_batch(options, 0);
  for (int32_t& target : batch.targets) target = -1;
  TinyModel tiny(options);
  tiny.train(batch);
  CHECK(tiny.loss_sum() == 0.0);
  for (const Parameter& p : tiny.model->parameters())
    for (double g : tiny.values(p.gradient)) REQUIRE(g == 0.0);
  // Negative control: one target counts.
  batch.targets[5] = 3;
  tiny.train(batch);
  CHECK(tiny.loss_sum() > 0.0);
}
