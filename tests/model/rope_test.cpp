#include "model/rope.h"

#include "catch.h"
#include "model/tiny_model.h"

using namespace octet;

TEST_CASE("RoPE frequencies fall geometrically from 1") {
  TransformerSpec spec;
  spec.width = 32;
  spec.heads = 4;  // Dh = 8
  spec.rope_base = 10000;
  const std::vector<double> frequencies = rope_frequencies(spec);
  REQUIRE(frequencies.size() == 4);
  const double expected[] = {1, 0.1, 0.01, 0.001};  // 10000^(-i/4)
  for (size_t i = 0; i < 4; ++i) CHECK(frequencies[i] == Approx(expected[i]).epsilon(1e-14));
}

TEST_CASE("Llama-3 scaling keeps fast pairs, stretches slow ones and blends between") {
  TransformerSpec spec;
  spec.head_width = 128;
  spec.rope_base = 500000;
  const std::vector<double> plain = rope_frequencies(spec);
  spec.rope_scaling = {
      .factor = 8, .low_frequency_factor = 1, .high_frequency_factor = 4, .original_context = 8192};
  const std::vector<double> scaled = rope_frequencies(spec);
  int kept = 0, blended = 0, stretched = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double wavelength = 2 * 3.14159265358979323846 / plain[i];
    if (wavelength < 8192 / 4.0) {
      CHECK(scaled[i] == plain[i]);
      ++kept;
    } else if (wavelength > 8192) {
      CHECK(scaled[i] == plain[i] / 8);
      ++stretched;
    } else {
      CHECK(scaled[i] < plain[i]);
      CHECK(scaled[i] > plain[i] / 8);
      ++blended;
    }
  }
  // 500000^(-i/64) = 2 pi / 2048 at i = 28.2, = 2 pi / 8192 at i = 35.0.
  CHECK(kept == 29);
  CHECK(blended == 6);
  CHECK(stretched == 29);
}

TEST_CASE("the table holds cosines and sines of position times frequency") {
  const TransformerSpec spec = test::tiny("fp32").spec;
  const std::unique_ptr<Device> device = make_cpu_device({});
  MemoryPlan measured;
  plan_rope(spec, measured);
  const test::Arena arena(*device, measured.peak_bytes());
  MemoryPlan placed = arena.plan();
  const RopeTable table = plan_rope(spec, placed);
  fill_rope(spec, *device, table);
  const int64_t pairs = spec.head_width_() / 2;
  for (int64_t position = 0; position < spec.context; ++position)
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const double angle = static_cast<double>(position) * rope_frequencies(spec)[static_cast<size_t>(pair)];
      CHECK(table.cosine.as<float>()[position * pairs + pair] == static_cast<float>(std::cos(angle)));
      CHECK(table.sine.as<float>()[position * pairs + pair] == static_cast<float>(std::sin(angle)));
    }
}
