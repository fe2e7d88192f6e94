#include "kernels/rmsnorm.h"

#include "environment.h"
#include "kernel_cast.h"
#include "numerics/sums.h"

using namespace octet;

namespace {

Format format_of(DType storage) { return storage == DType::F32 ? Format::FP32 : Format::BF16; }

struct Case {
  int64_t tokens, width;
  DType storage;
};
// One element; no vectors; less than a step of a warp; several steps; chunks of tokens, whole and ragged;
// rows too wide to be kept in shared memory.
constexpr Case cases[] = {{1, 1, DType::F32},   {3, 13, DType::BF16},   {5, 64, DType::BF16},
                          {7, 776, DType::F32}, {6, 1024, DType::BF16}, {130, 24, DType::BF16},
                          {64, 3, DType::F32}};
constexpr Case wide{1, 12 * 1024 + 8, DType::BF16};

enum class Inputs : uint8_t { Alone, Added, AddedElsewhere };

Values row_values(const Case& c, uint64_t key, Hostility hostility) {
  Values values = hostile_values(c.tokens * c.width, key, hostility);
  for (float& v : values) v = std::abs(v) > 1e18f ? 1e18f : v;  // squares stay finite, but for one row
  if (c.tokens > 1) values[static_cast<size_t>(c.width)] = 3e38f;
  return values;
}

struct Forward {
  Tensor residual, branch, sum, rstd;
  CastTarget out;
};
Forward make_forward(OpFixture& f, const Case& c, const TargetKind& kind, Inputs inputs,
                     Hostility hostility) {
  Forward run;
  const Shape shape{c.tokens, c.width};
  run.residual = f.floats(c.storage, shape, row_values(c, 31, hostility));
  if (inputs != Inputs::Alone) run.branch = f.floats(c.storage, shape, normal_values(c.tokens * c.width, 32));
  if (inputs == Inputs::AddedElsewhere) run.sum = f.zeros(c.storage, shape);
  run.rstd = f.zeros(DType::F32, {c.tokens});
  run.out = make_target(f, kind, {c.tokens, c.width, c.storage, Copies::Both});
  return run;
}

void check_forward(OpFixture& f, const Case& c, const TargetKind& kind, Inputs inputs, Hostility hostility) {
  const Tensor gain = f.floats(DType::F32, {c.width}, normal_values(c.width, 33));
  const Forward expected = make_forward(f, c, kind, inputs, hostility),
                run = make_forward(f, c, kind, inputs, hostility);
  f->rmsnorm_forward(
      {expected.residual, expected.branch, expected.sum, gain, expected.rstd, 1e-5f, expected.out});
  KernelCast cast(run.out);
  const Tensor& sum = run.sum.empty() ? run.residual : run.sum;
  kernels::rmsnorm_forward({.storage = format_of(c.storage),
                            .residual = run.residual.data,
                            .branch = run.branch.empty() ? nullptr : run.branch.data,
                            .sum = inputs == Inputs::Alone ? nullptr : sum.data,
                            .gain = gain.as<float>(),
                            .rstd = run.rstd.as<float>(),
                            .epsilon = 1e-5f,
                            .tokens = c.tokens,
                            .width = c.width,
                            .out = cast.output()});
  cast.finish();
  check_same(expected.out, run.out);
  CHECK(differences(expected.rstd, run.rstd) == 0);
  CHECK(differences(expected.residual, run.residual) == 0);
  if (!run.sum.empty()) CHECK(differences(expected.sum, run.sum) == 0);
}

enum class GradientIn : uint8_t { None, Apart, InPlace };

void check_backward(OpFixture& f, const Case& c, const TargetKind& kind, GradientIn gradient_in,
                    DType gain_storage) {
  const Shape shape{c.tokens, c.width};
  const int64_t n = c.tokens * c.width;
  const Tensor x = f.floats(c.storage, shape, row_values(c, 42, Hostility::Finite));
  const Tensor gain = f.floats(DType::F32, {c.width}, normal_values(c.width, 43));
  Values rstds = normal_values(c.tokens, 44);
  for (float& v : rstds) v = std::abs(v);
  const Tensor rstd = f.floats(DType::F32, {c.tokens}, rstds);
  struct Side {
    Tensor out_gradient, gain_gradient, in;
    CastTarget out;
  };
  Side sides[2];
  for (Side& side : sides) {
    side.out_gradient = f.floats(c.storage, shape, hostile_values(n, 41, Hostility::Finite));
    side.gain_gradient = f.floats(gain_storage, {c.width}, normal_values(c.width, 45));
    side.out = make_target(f, kind, {c.tokens, c.width, c.storage, Copies::Both});
    if (gradient_in != GradientIn::None) side.in = f.floats(c.storage, shape, normal_values(n, 46));
    if (gradient_in == GradientIn::InPlace) side.out.high = side.in;
  }
  const Side &expected = sides[0], &run = sides[1];
  const bool weighted = gradient_in == GradientIn::None;  // as a branch's norm has it
  const float stream_factor = weighted ? 0.9f : 1.0f, branch_factor = weighted ? 0.3f : 1.0f;
  f->rmsnorm_backward({expected.out_gradient, x, gain, rstd, expected.gain_gradient, expected.in,
                       expected.out, stream_factor, branch_factor});
  std::vector<float> partial(static_cast<size_t>(kernels::rmsnorm_partial_elements(c.tokens, c.width)), NAN);
  KernelCast cast(run.out);
  kernels::rmsnorm_backward({.storage = format_of(c.storage),
                             .out_gradient = run.out_gradient.data,
                             .x = x.data,
                             .gain = gain.as<float>(),
                             .rstd = rstd.as<float>(),
                             .gradient_in = run.in.empty() ? nullptr : run.in.data,
                             .gain_gradient = run.gain_gradient.data,
                             .gain_gradient_storage = format_of(gain_storage),
                             .stream_factor = stream_factor,
                             .branch_factor = branch_factor,
                             .weighted_gradient = weighted ? run.out_gradient.data : nullptr,
                             .partial = partial.data(),
                             .tokens = c.tokens,
                             .width = c.width,
                             .out = cast.output()});
  cast.finish();
  check_same(expected.out, run.out);
  CHECK(differences(expected.gain_gradient, run.gain_gradient) == 0);
  CHECK(differences(expected.out_gradient, run.out_gradient) == 0);
}

}  // namespace

TEST_CASE("RMSNorm and its codes have the CPU device's bits, in every shape and kind of cast", "[rmsnorm]") {
  for (const Case& c : cases) {
    size_t turn = 0;
    for (const TargetKind& kind : producer_kinds()) {
      OpFixture f(1);
      const auto inputs = static_cast<Inputs>(turn++ % 3);
      INFO(c.tokens << " x " << c.width << " " << name_of(c.storage) << ", " << kind.name);
      check_forward(f, c, kind, inputs, Hostility::Finite);
    }
    for (const Inputs inputs : {Inputs::Alone, Inputs::Added, Inputs::AddedElsewhere}) {
      OpFixture f(1);
      INFO(c.tokens << " x " << c.width << " " << name_of(c.storage) << ", inputs " << int(inputs));
      check_forward(f, c, target_kind("current"), inputs, Hostility::Broken);
    }
  }
}

TEST_CASE("RMSNorm's gradients and their codes have the CPU device's bits, in every shape and kind of cast",
          "[rmsnorm]") {
  for (const Case& c : cases) {
    size_t turn = 0;
    for (const TargetKind& kind : producer_kinds()) {
      OpFixture f(1);
      const auto gradient_in = static_cast<GradientIn>(turn % 3);
      const DType gain_storage = turn++ % 2 ? DType::BF16 : DType::F32;
      INFO(c.tokens << " x " << c.width << " " << name_of(c.storage) << ", " << kind.name);
      check_backward(f, c, kind, gradient_in, gain_storage);
    }
  }
}

TEST_CASE("rows that do not fit in shared memory give the same bits", "[rmsnorm]") {
  OpFixture f(1);
  check_forward(f, wide, target_kind("current"), Inputs::Added, Hostility::Finite);
  check_backward(f, wide, target_kind("current"), GradientIn::Apart, DType::F32);
}

TEST_CASE("RMSNorm is the same in every schedule", "[rmsnorm]") {
  const Case c{66, 40, DType::BF16};
  for (const char* schedule : schedules) {
    OpFixture f(1);
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    INFO(schedule);
    check_forward(f, c, target_kind("dual"), Inputs::Added, Hostility::Finite);
    check_backward(f, c, target_kind("dual"), GradientIn::InPlace, DType::F32);
  }
}

TEST_CASE("a sum of squares in another order changes bits of RMSNorm", "[rmsnorm]") {
  OpFixture f(1);
  const Case c{8, 1024, DType::F32};
  const Tensor gain = f.floats(DType::F32, {c.width}, Values(1024, 1.0f));
  const Tensor x = f.floats(c.storage, {c.tokens, c.width}, normal_values(8 * 1024, 51));
  const Tensor rstd = f.zeros(DType::F32, {c.tokens}), other = f.zeros(DType::F32, {c.tokens});
  kernels::Output none;
  const Tensor out = f.zeros(c.storage, {c.tokens, c.width});
  none.high = out.data;
  none.storage = Format::FP32;
  kernels::rmsnorm_forward({.storage = Format::FP32,
                            .residual = x.data,
                            .gain = gain.as<float>(),
                            .rstd = rstd.as<float>(),
                            .epsilon = 0.0f,
                            .tokens = c.tokens,
                            .width = c.width,
                            .out = none});
  for (int64_t t = 0; t < c.tokens; ++t) {
    float squares = 0.0f;
    for (int64_t i = 0; i < c.width; ++i)
      squares += x.as<float>()[t * c.width + i] * x.as<float>()[t * c.width + i];
    other.as<float>()[t] = 1.0f / std::sqrt(squares / static_cast<float>(c.width));
  }
  CHECK(differences(rstd, other) > 0);
}

// ---- a branch that is scaled or normalised before it is added, and a sum that is not normalised

namespace {

struct Added {
  bool normalised, norm_follows;
};

void check_added(OpFixture& f, const Case& c, const TargetKind& kind, Added added, Hostility hostility) {
  const Shape shape{c.tokens, c.width};
  const Tensor gain = f.floats(DType::F32, {c.width}, normal_values(c.width, 33)),
               branch_gain = f.floats(DType::F32, {c.width}, normal_values(c.width, 34)),
               branch = f.floats(c.storage, shape, row_values(c, 32, hostility));
  struct Side {
    Tensor residual, sum, rstd, branch_rstd;
    CastTarget out;
  };
  Side sides[2];
  for (Side& side : sides) {
    side.residual = f.floats(c.storage, shape, normal_values(c.tokens * c.width, 31));
    side.sum = f.zeros(c.storage, shape);
    side.rstd = f.zeros(DType::F32, {c.tokens});
    side.branch_rstd = f.zeros(DType::F32, {c.tokens});
    side.out = make_target(f, kind, {c.tokens, c.width, c.storage, Copies::Both});
    if (!added.norm_follows) side.out.high = side.sum;
  }
  const Side &expected = sides[0], &run = sides[1];
  RmsNormForward op;
  op.residual = expected.residual;
  op.branch = branch;
  op.residual_out = expected.sum;
  if (added.norm_follows) op.gain = gain, op.rstd = expected.rstd;
  op.branch_gain = branch_gain;
  if (added.normalised) op.branch_rstd = expected.branch_rstd;
  if (added.normalised && added.norm_follows) op.stream_factor = 0.9f, op.branch_factor = 0.3f;
  op.out = expected.out;
  f->rmsnorm_forward(op);
  KernelCast cast(run.out);
  kernels::rmsnorm_forward({.storage = format_of(c.storage),
                            .residual = run.residual.data,
                            .branch = branch.data,
                            .sum = run.sum.data,
                            .gain = added.norm_follows ? gain.as<float>() : nullptr,
                            .rstd = added.norm_follows ? run.rstd.as<float>() : nullptr,
                            .branch_gain = branch_gain.as<float>(),
                            .branch_rstd = added.normalised ? run.branch_rstd.as<float>() : nullptr,
                            .stream_factor = op.stream_factor,
                            .branch_factor = op.branch_factor,
                            .epsilon = 1e-5f,
                            .tokens = c.tokens,
                            .width = c.width,
                            .out = cast.output()});
  cast.finish();
  check_same(expected.out, run.out);
  CHECK(differences(expected.sum, run.sum) == 0);
  CHECK(differences(expected.rstd, run.rstd) == 0);
  CHECK(differences(expected.branch_rstd, run.branch_rstd) == 0);
  CHECK((*run.branch_rstd.as<float>() != 0) == added.normalised);
}
constexpr Added ways[] = {{false, false}, {false, true}, {true, false}, {true, true}};

}  // namespace

TEST_CASE("a scaled or normalised branch and its sum have the CPU device's bits", "[rmsnorm]") {
  for (const Case& c : cases) {
    size_t turn = 0;
    for (const TargetKind& kind : producer_kinds()) {
      OpFixture f(1);
      INFO(c.tokens << " x " << c.width << " " << name_of(c.storage) << ", " << kind.name);
      check_added(f, c, kind, ways[turn++ % 4], Hostility::Finite);
      check_added(f, c, kind, ways[turn % 4], Hostility::Broken);
    }
  }
  for (const Added& way : ways) {
    OpFixture f(1);
    check_added(f, wide, target_kind("current"), way, Hostility::Finite);
  }
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    OpFixture f(1);
    check_added(f, {20, 264, DType::BF16}, target_kind("dual"), {true, true}, Hostility::Finite);
  }
}

TEST_CASE("a sum that is not normalised, of a branch as it is, has the CPU device's bits", "[rmsnorm]") {
  OpFixture f(1);
  const Case c{5, 64, DType::BF16};
  const Tensor branch = f.floats(c.storage, {c.tokens, c.width}, normal_values(c.tokens * c.width, 32));
  CastTarget targets[2];
  for (CastTarget& out : targets) {
    out = make_target(f, target_kind("current"), {c.tokens, c.width, c.storage, Copies::Both});
    out.high = f.floats(c.storage, {c.tokens, c.width}, normal_values(c.tokens * c.width, 31));
  }
  RmsNormForward op;
  op.residual = targets[0].high;
  op.branch = branch;
  op.out = targets[0];
  f->rmsnorm_forward(op);
  KernelCast cast(targets[1]);
  kernels::rmsnorm_forward({.storage = format_of(c.storage),
                            .residual = targets[1].high.data,
                            .branch = branch.data,
                            .sum = targets[1].high.data,
                            .gain = nullptr,
                            .rstd = nullptr,
                            .epsilon = 1e-5f,
                            .tokens = c.tokens,
                            .width = c.width,
                            .out = cast.output()});
  cast.finish();
  check_same(targets[0], targets[1]);
}

TEST_CASE("the backward of a scale has the CPU device's bits", "[rmsnorm]") {
  for (const Case& c : cases) {
    OpFixture f(1);
    const Shape shape{c.tokens, c.width};
    const Tensor out_gradient =
                     f.floats(c.storage, shape, hostile_values(c.tokens * c.width, 41, Hostility::Finite)),
                 x = f.floats(c.storage, shape, row_values(c, 42, Hostility::Broken)),
                 gain = f.floats(DType::F32, {c.width}, normal_values(c.width, 43));
    CastTarget targets[2];
    Tensor gain_gradients[2];
    for (size_t i = 0; i < 2; ++i) {
      targets[i] = make_target(f, target_kind("current"), {c.tokens, c.width, c.storage, Copies::Both});
      gain_gradients[i] = f.floats(DType::F32, {c.width}, normal_values(c.width, 45));
    }
    f->rmsnorm_backward({out_gradient, x, gain, {}, gain_gradients[0], {}, targets[0]});
    std::vector<float> partial(static_cast<size_t>(kernels::rmsnorm_partial_elements(c.tokens, c.width)),
                               NAN);
    KernelCast cast(targets[1]);
    kernels::rmsnorm_backward({.storage = format_of(c.storage),
                               .out_gradient = out_gradient.data,
                               .x = x.data,
                               .gain = gain.as<float>(),
                               .rstd = nullptr,
                               .gain_gradient = gain_gradients[1].data,
                               .gain_gradient_storage = Format::FP32,
                               .partial = partial.data(),
                               .tokens = c.tokens,
                               .width = c.width,
                               .out = cast.output()});
    cast.finish();
    check_same(targets[0], targets[1]);
    CHECK(differences(gain_gradients[0], gain_gradients[1]) == 0);
  }
}
