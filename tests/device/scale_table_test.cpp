#include "device/scale_table.h"

#include <limits>

#include "catch.h"
#include "device/op_fixture.h"

using namespace octet;

namespace {

const Cast current{Format::E4M3}, delayed{Format::E4M3, Scaling::Delayed};

// A planned table of one current and one delayed site.
struct Planned {
  OpFixture f;
  ScaleTable table;
  explicit Planned(int window) {
    table.add({"current", 0, current});
    table.add({"delayed", 1, delayed});
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

TEST_CASE("a window other than the planned one is refused", "[scale_table]") {
  Planned p(3);
  CHECK_THROWS(p.step(0, 1.0f, {4, AmaxAlgorithm::Max, 0}));
}
