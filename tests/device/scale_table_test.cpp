#include "device/scale_table.h"

#include <limits>

#include "catch.h"
#include "device/op_fixture.h"

using namespace octet;

namespace {

const Cast current{Format::E4M3}, delayed{Format::E4M3, Scaling::Delayed};

// A planned table of one current and one delayed site, and of others.
struct Planned {
  OpFixture f;
  ScaleTable table;
  explicit Planned(int window, const std::vector<Cast>& others = {}) {
    table.add({"current", 0, current});
    table.add({"delayed", 1, delayed});
    for (const Cast& cast : others) table.add({"other", 2, cast});
    MemoryPlan measuring;
    table.plan(measuring, window);
    const Tensor arena = f.zeros(DType::U8, {static_cast<int64_t>(measuring.peak_bytes())});
    MemoryPlan placing(arena.data, arena.bytes());
    table.plan(placing, window);
  }
  void step(int64_t number, float amax_of_both, const DelayedScaling& options) {
    table.amax.as<float>()[0] = table.amax.as<float>()[1] = amax_of_both;
    f->scale_table_update({&table, options, number});
  }
};

}  // namespace

TEST_CASE("a site's pointers lead into the table, and counters only while statistics are on",
          "[scale_table]") {
  Planned p(4);
  CHECK(p.table.amax_history.shape == Shape{4, 2});
  const Site site = p.table.site(1);
  CHECK(site.scale == p.table.scale.as<float>() + 1);
  CHECK(site.inverse_scale == p.table.inverse_scale.as<float>() + 1);
  CHECK(site.amax == p.table.amax.as<float>() + 1);
  CHECK(site.counters == nullptr);
  p.table.count = true;
  CHECK(static_cast<void*>(p.table.site(1).counters) ==
        static_cast<void*>(p.table.counters.as<uint64_t>() + 3));
  CHECK(p.table.site(-1).scale == nullptr);
}

TEST_CASE("a table without sites plans nothing and updates nothing", "[scale_table]") {
  OpFixture f;
  ScaleTable table;
  MemoryPlan plan;
  table.plan(plan, 16);
  CHECK(plan.peak_bytes() == 0);
  CHECK_NOTHROW(f->scale_table_update({&table, {}, 3}));
}

TEST_CASE("a step's amaxes enter the ring and delayed scales follow them, current ones do not",
          "[scale_table]") {
  Planned p(3);
  const DelayedScaling options{3, AmaxAlgorithm::Max, 0};
  // A spike at step 1 is felt after steps 1, 2 and 3: exactly `window` refreshes.
  const float amaxes[] = {1.0f, 64.0f, 1.0f, 1.0f, 1.0f, 1.0f};
  const float expected[] = {256.0f, 4.0f, 4.0f, 4.0f, 256.0f, 256.0f};
  for (int64_t t = 0; t < 6; ++t) {
    p.step(t, amaxes[t], options);
    CAPTURE(t);
    CHECK(p.table.scale.as<float>()[1] == expected[t]);
    CHECK(p.table.inverse_scale.as<float>()[1] == 1.0f / expected[t]);
    CHECK(p.table.scale.as<float>()[0] == 0.0f);
    CHECK(p.table.amax.as<float>()[0] == 0.0f);
    CHECK(p.table.amax.as<float>()[1] == 0.0f);
    for (int64_t site : {0, 1}) CHECK(p.table.amax_history.as<float>()[(t % 3) * 2 + site] == amaxes[t]);
  }
}

TEST_CASE("zero and non-finite amaxes keep the scale", "[scale_table]") {
  Planned p(3);
  const DelayedScaling options{3, AmaxAlgorithm::Max, 0};
  p.step(0, 2.0f, options);
  CHECK(p.table.scale.as<float>()[1] == 128.0f);
  int64_t t = 1;
  for (const float odd : {0.0f, std::numeric_limits<float>::infinity(), 0.0f}) {
    p.step(t++, odd, options);
    CHECK(p.table.scale.as<float>()[1] == 128.0f);
  }
}

TEST_CASE("the scale a cast uses depends on earlier steps only", "[scale_table]") {
  Planned p(2);
  const DelayedScaling options{2, AmaxAlgorithm::MostRecent, 1};
  const Tensor codes = p.f.zeros(DType::E4M3, {1, 1});
  const auto cast = [&](float value) {
    CastOperation op;
    op.source = p.f.floats(DType::F32, {1, 1}, {value});
    op.out.row = codes;
    op.out.cast = delayed;
    op.out.site = p.table.site(1);
    p.f->cast(op);
    return *op.out.site.inverse_scale;
  };
  CHECK(cast(1.0f) == 1.0f / 256.0f);  // no history yet: its own
  p.f->scale_table_update({&p.table, options, 0});
  CHECK(cast(100.0f) == 1.0f / 128.0f);  // from step 0, one binade left free
  CHECK(cast(0.01f) == 1.0f / 128.0f);
  p.f->scale_table_update({&p.table, options, 1});
  CHECK(cast(1.0f) == 0.5f);  // 448 / 100 -> 4, margin -> 2
}

TEST_CASE("sites that follow their counters count in every step, and an update takes and clears the counts",
          "[scale_table]") {
  Planned p(2, {{Format::E4M3, Scaling::Quantile}, {Format::E5M2, Scaling::Following}});
  const DelayedScaling options{2, AmaxAlgorithm::Max, 0};
  const AdaptiveScaling adaptive{.above = 0.125, .saturated = 0.25, .flushed = 0.25};
  CHECK(p.table.site(1).counters == nullptr);
  // Eight values, `saturated` of them 100 times what the present scale maps to the largest code, `flushed`
  // too small for it; the others half of it, so that the first cast of a site has amax 1.
  const auto cast = [&](int site, int saturated, int flushed) {
    const Cast& rule = p.table.sites[static_cast<size_t>(site)].cast;
    const float scale = p.table.scale.as<float>()[site];
    const float most = scale == 0 ? 2 : max_of(rule.format) / scale;
    std::vector<float> values(8, most / 2);
    for (int i = 0; i < saturated; ++i) values[static_cast<size_t>(i)] = 100 * most;
    for (int i = 0; i < flushed; ++i) values[static_cast<size_t>(7 - i)] = most * 0x1p-40f;
    CastOperation op;
    op.source = p.f.floats(DType::F32, {1, 8}, values);
    op.out.row = p.f.zeros(dtype_of(rule.format), {1, 8});
    op.out.cast = rule;
    op.out.site = p.table.site(site);
    REQUIRE(op.out.site.counters != nullptr);
    p.f->cast(op);
  };
  UpdateControl control{};
  int64_t step = 0;
  const auto update = [&](uint32_t apply) {
    control.apply = apply;
    p.f->scale_table_update({&p.table, options, step++, &control, adaptive});
    for (int64_t i = 0; i < p.table.counters.elements(); ++i) CHECK(p.table.counters.as<uint64_t>()[i] == 0);
    return std::pair(p.table.scale.as<float>()[2], p.table.scale.as<float>()[3]);
  };
  const std::pair<float, float> first(448.0f, 32768.0f);  // E5M2's 57344 rounded down to a power of two
  cast(2, 0, 0);
  cast(3, 0, 0);
  CHECK(update(0) == std::pair(0.0f, 0.0f));  // a step that is not applied leaves no trace
  cast(2, 0, 0);
  cast(3, 0, 0);
  CHECK(update(1) == first);
  cast(2, 1, 0);  // two casts of a step: 2 of 16 are above, as many as are wanted
  cast(2, 1, 0);
  cast(3, 1, 1);  // and neither share passes its limit
  cast(3, 1, 1);
  CHECK(update(1) == first);
  cast(2, 8, 0);  // eight times as many: 1 + 7/16
  cast(3, 3, 3);  // both pass: down
  CHECK(update(1) == std::pair(static_cast<float>(448.0 / (1 + 7.0 / 16)), 16384.0f));
  cast(3, 0, 3);
  CHECK(update(1).second == 32768.0f);
  CHECK(update(1).second == 32768.0f);  // nothing was cast
  cast(2, 8, 0);
  cast(3, 3, 0);
  const std::pair<float, float> last(p.table.scale.as<float>()[2], p.table.scale.as<float>()[3]);
  CHECK(update(0) == last);
  CHECK(p.table.inverse_scale.as<float>()[2] == 1.0f / last.first);
}

TEST_CASE("a window other than the planned one is refused", "[scale_table]") {
  Planned p(3);
  CHECK_THROWS(p.step(0, 1.0f, {4, AmaxAlgorithm::Max, 0}));
}
