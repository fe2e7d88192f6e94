#include "kernels/swiglu.h"

#include "device/smooth_swiglu.h"
#include "environment.h"
#include "kernel_cast.h"
#include "numerics/elementary.h"

using namespace octet;

namespace {

Format format_of(DType storage) { return storage == DType::F32 ? Format::FP32 : Format::BF16; }

struct Case {
  int64_t tokens, width;
  DType storage;
};
// One element; no vectors; one step of a warp and less; two steps; over both, walking over the grid.
constexpr Case cases[] = {{1, 1, DType::F32},   {3, 13, DType::BF16},   {2, 64, DType::BF16},
                          {5, 520, DType::F32}, {9, 1032, DType::BF16}, {70, 24, DType::BF16},
                          {67, 3, DType::F32}};

Tensor gate_up_of(OpFixture& f, const Case& c, Hostility hostility) {
  Values values = hostile_values(c.tokens * 2 * c.width, 21, hostility);
  for (size_t i = 0; i < values.size(); i += 97) values[i] = i % 2 ? 300.0f : -300.0f;  // sigmoid is 0 or 1
  return f.floats(c.storage, {c.tokens, 2 * c.width}, values);
}

struct Pair {
  CastTarget expected, out;
};
Pair targets(OpFixture& f, const TargetKind& kind, const TargetShape& shape) {
  return {make_target(f, kind, shape), make_target(f, kind, shape)};
}

SmoothSwiGLU mode_of(const TargetKind& kind) {
  if (kind.by_row && kind.by_column) return SmoothSwiGLU::Dual;
  return kind.by_row ? SmoothSwiGLU::Token : kind.by_column ? SmoothSwiGLU::Channel : SmoothSwiGLU::None;
}

void check_forward(OpFixture& f, const Case& c, const TargetKind& kind, const Tensor& gate_up) {
  const Pair pair = targets(f, kind, {c.tokens, c.width, c.storage, Copies::Both});
  f->swiglu_forward({gate_up, mode_of(kind), pair.expected});
  KernelCast cast(pair.out);
  kernels::swiglu_forward({.storage = format_of(c.storage),
                           .gate_up = gate_up.data,
                           .tokens = c.tokens,
                           .width = c.width,
                           .out = cast.output()});
  cast.finish();
  check_same(pair.expected, pair.out);
}

void check_backward(OpFixture& f, const Case& c, const TargetKind& kind, const Tensor& gate_up) {
  const Tensor h_gradient = f.floats(c.storage, {c.tokens, c.width}, normal_values(c.tokens * c.width, 22));
  const Pair pair = targets(f, kind, {c.tokens, 2 * c.width, c.storage, Copies::Both});
  f->swiglu_backward({gate_up, h_gradient, pair.expected});
  KernelCast cast(pair.out);
  kernels::swiglu_backward({.storage = format_of(c.storage),
                            .gate_up = gate_up.data,
                            .h_gradient = h_gradient.data,
                            .tokens = c.tokens,
                            .width = c.width,
                            .out = cast.output()});
  cast.finish();
  check_same(pair.expected, pair.out);
}

}  // namespace

TEST_CASE("SwiGLU and its codes have the CPU device's bits, in every mode and shape", "[swiglu]") {
  for (const Case& c : cases) {
    for (const Hostility hostility : {Hostility::Finite, Hostility::Broken}) {
      OpFixture f(1);
      const Tensor gate_up = gate_up_of(f, c, hostility);
      for (const TargetKind& kind : producer_kinds()) {
        if (hostility == Hostility::Broken && !kind.by_row) continue;
        INFO(c.tokens << " x " << c.width << " " << name_of(c.storage) << ", " << kind.name);
        check_forward(f, c, kind, gate_up);
      }
    }
  }
}

TEST_CASE("SwiGLU's gradients and their codes have the CPU device's bits, in every shape", "[swiglu]") {
  for (const Case& c : cases) {
    for (const Hostility hostility : {Hostility::Finite, Hostility::Broken}) {
      OpFixture f(1);
      const Tensor gate_up = gate_up_of(f, c, hostility);
      for (const TargetKind& kind : producer_kinds()) {
        if (hostility == Hostility::Broken && !kind.by_row) continue;
        INFO(c.tokens << " x " << c.width << " " << name_of(c.storage) << ", " << kind.name);
        check_backward(f, c, kind, gate_up);
      }
    }
  }
}

TEST_CASE("SwiGLU is the same in every schedule, its column amaxes too", "[swiglu]") {
  OpFixture f(1);
  const Case c{40, 40, DType::BF16};
  const Tensor gate_up = gate_up_of(f, c, Hostility::Finite);
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    INFO(schedule);
    check_forward(f, c, target_kind("dual"), gate_up);
    check_backward(f, c, target_kind("dual"), gate_up);
  }
}

TEST_CASE("more columns than fit in shared memory send their amaxes straight to global memory", "[swiglu]") {
  OpFixture f(1);
  const Case c{1, 24 * 1024 + 8, DType::BF16};
  check_forward(f, c, target_kind("dual"), gate_up_of(f, c, Hostility::Finite));
}

TEST_CASE("SwiGLU computed in another order is noticed", "[swiglu]") {
  // gate * (sigmoid * up) instead of (gate * sigmoid) * up: one rounding elsewhere.
  OpFixture f(1);
  const Case c{4, 512, DType::F32};
  const Tensor gate_up = f.floats(c.storage, {c.tokens, 2 * c.width}, normal_values(4 * 1024, 23));
  CastTarget expected = make_target(f, target_kind("current"), {c.tokens, c.width, c.storage, Copies::None});
  f->swiglu_forward({gate_up, SmoothSwiGLU::None, expected});
  const Tensor other = f.zeros(c.storage, {c.tokens, c.width});
  for (int64_t t = 0; t < c.tokens; ++t) {
    const float *const gate = gate_up.as<float>() + t * 2 * c.width, *const up = gate + c.width;
    for (int64_t i = 0; i < c.width; ++i)
      other.as<float>()[t * c.width + i] = gate[i] * (vector_sigmoid(gate[i]) * up[i]);
  }
  CHECK(differences(expected.high, other) > 0);
}
