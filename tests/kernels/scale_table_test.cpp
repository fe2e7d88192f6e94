#include "kernels/scale_table.h"

#include "array.h"
#include "catch.h"
#include "device/scale_table.h"

using namespace octet;

namespace {

// A table with sites of every format, scaling and rule, and amaxes of every kind.
struct Fixture {
  static constexpr int64_t sites = 333;
  static constexpr Scaling scalings[] = {Scaling::Current, Scaling::Quantile, Scaling::Following};
  explicit Fixture(int window)
      : history(DType::F32, {window, sites}),
        amax(DType::F32, {sites}),
        scale(DType::F32, {sites}),
        inverse(DType::F32, {sites}),
        counters(DType::U64, {sites, 3}) {
    for (int64_t i = 0; i < sites; ++i) {
      const Format formats[] = {Format::E4M3, Format::E5M2, Format::BF16, Format::FP32};
      casts.push_back({.format = formats[i % 4],
                       .scaling = i % 3 ? Scaling::Delayed : scalings[i % 9 / 3],
                       .rule = i % 5 < 2 ? ScaleRule::Exact : ScaleRule::PowerOfTwo});
    }
    for (Array* array : {&history, &amax, &scale, &inverse}) {
      randomize(*array, Values::Broken, 5);
      for (int64_t i = 0; i < array->elements(); ++i) array->set(i, std::fabs(array->get(i)));
    }
    for (int64_t i = 0; i < sites; i += 7) scale.set(i, 0.0f);  // no history yet
    count(1);
  }
  // Sites that saw nothing, that saturated or flushed nothing, some, all.
  void count(uint64_t key) {
    for (int64_t i = 0; i < sites; ++i) {
      const uint64_t bits = random_bits(key, static_cast<uint64_t>(i)), all = bits % 11 ? bits >> 8 : 0;
      const uint64_t some[] = {0, all / 20000, all / 7, all};
      auto* at = counters.as<uint64_t>() + 3 * i;
      at[0] = all;
      at[1] = some[bits >> 4 & 3];
      at[2] = some[bits >> 6 & 3];
    }
  }
  ScaleTable table() const {
    ScaleTable table;
    for (const Cast& cast : casts) table.add({.name = "site", .cast = cast});
    table.amax_history = history;
    table.amax = amax;
    table.scale = scale;
    table.inverse_scale = inverse;
    table.counters = counters;
    return table;
  }
  std::vector<Cast> casts;
  Array history, amax, scale, inverse, counters;
};

}  // namespace

TEST_CASE("the scale table's update has the bits of the CPU's, step after step") {
  for (const AmaxAlgorithm algorithm : {AmaxAlgorithm::Max, AmaxAlgorithm::MostRecent}) {
    for (const int window : {1, 2, 16}) {
      for (const int margin : {0, 3, -2, 1000}) {
        const DelayedScaling options{.window = window, .algorithm = algorithm, .margin = margin};
        const AdaptiveScaling adaptive{.above = 1e-3, .saturated = 0.01, .flushed = 0.1};
        Fixture ours(window), theirs(window);
        const Fixture before(window);
        ScaleTable table = theirs.table();
        for (int64_t step = 0; step < 2; ++step) {
          kernels::update_scale_table({.sites = Fixture::sites,
                                       .casts = ours.casts.data(),
                                       .options = options,
                                       .adaptive = adaptive,
                                       .newest = step % window,
                                       .amax_history = ours.history.as<float>(),
                                       .amax = ours.amax.as<float>(),
                                       .scale = ours.scale.as<float>(),
                                       .inverse_scale = ours.inverse.as<float>(),
                                       .counters = ours.counters.as<uint64_t>()});
          specification().scale_table_update(
              {.table = &table, .options = options, .step = step, .adaptive = adaptive});
          INFO("window " << window << ", margin " << margin << ", step " << step);
          CHECK(differences(ours.history, theirs.history) == 0);
          CHECK(differences(ours.amax, theirs.amax) == 0);
          CHECK(differences(ours.scale, theirs.scale) == 0);
          CHECK(differences(ours.inverse, theirs.inverse) == 0);
          CHECK(differences(ours.counters, theirs.counters) == 0);
          for (int64_t i = 0; i < Fixture::sites; ++i) {
            REQUIRE(ours.counters.as<uint64_t>()[3 * i] == 0);
            ours.amax.set(i, before.amax.get(i));
            theirs.amax.set(i, before.amax.get(i));
          }
          ours.count(static_cast<uint64_t>(step) + 2);
          theirs.count(static_cast<uint64_t>(step) + 2);
        }
        int64_t moved[3] = {};
        for (int64_t i = 0; i < Fixture::sites; i += 3)
          moved[i % 9 / 3] += differences(ours.scale.tensor().slice(i, 1), before.scale.tensor().slice(i, 1));
        CHECK(moved[0] == 0);  // current scaling: left alone
        CHECK(moved[1] > 5);
        CHECK(moved[2] > 5);
      }
    }
  }
}

TEST_CASE("a step that was not applied leaves the scale table as it was, without its amaxes") {
  Fixture ours(4), theirs(4);
  const Fixture before(4);
  ScaleTable table = theirs.table();
  UpdateControl control{};
  const kernels::ScaleTableArguments arguments{.sites = Fixture::sites,
                                               .casts = ours.casts.data(),
                                               .options = {.window = 4},
                                               .newest = 1,
                                               .amax_history = ours.history.as<float>(),
                                               .amax = ours.amax.as<float>(),
                                               .scale = ours.scale.as<float>(),
                                               .inverse_scale = ours.inverse.as<float>(),
                                               .counters = ours.counters.as<uint64_t>(),
                                               .apply = &control.apply};
  kernels::update_scale_table(arguments);
  specification().scale_table_update(
      {.table = &table, .options = {.window = 4}, .step = 1, .control = &control});
  for (const Fixture* f : {&ours, &theirs}) {
    CHECK(differences(f->history, before.history) == 0);
    CHECK(differences(f->scale, before.scale) == 0);
    CHECK(differences(f->inverse, before.inverse) == 0);
    for (int64_t i = 0; i < Fixture::sites; ++i) REQUIRE(f->amax.get(i) == 0.0f);
    for (int64_t i = 0; i < 3 * Fixture::sites; ++i) REQUIRE(f->counters.as<uint64_t>()[i] == 0);
  }
  control.apply = 1;
  for (int64_t i = 0; i < Fixture::sites; ++i) {
    ours.amax.set(i, 5.0f);
    theirs.amax.set(i, 5.0f);
  }
  kernels::update_scale_table(arguments);
  specification().scale_table_update(
      {.table = &table, .options = {.window = 4}, .step = 1, .control = &control});
  CHECK(differences(ours.history, theirs.history) == 0);
  CHECK(differences(ours.history, before.history) > 0);
}
