#include "kernels/activation.h"

#include "device/smooth_swiglu.h"
#include "environment.h"
#include "kernel_cast.h"
#include "kernels/launch_error.h"

using namespace octet;

namespace {

Format format_of(DType storage) { return storage == DType::F32 ? Format::FP32 : Format::BF16; }

struct Case {
  int64_t tokens, width;
  DType storage;
};
// One element; no vectors; one step of a warp and less; two steps; over both; chunks of tokens, whole and
// ragged.
constexpr Case cases[] = {{1, 1, DType::F32},   {3, 13, DType::BF16},   {2, 64, DType::BF16},
                          {5, 520, DType::F32}, {9, 1032, DType::BF16}, {130, 24, DType::BF16},
                          {64, 3, DType::F32}};
constexpr Activation activations[] = {Activation::GELU, Activation::ReLU2, Activation::XIELU};
const char* name_of(Activation a) {
  return a == Activation::GELU ? "gelu" : a == Activation::ReLU2 ? "relu2" : "xielu";
}

Tensor input_of(OpFixture& f, const Case& c, Hostility hostility) {
  Values values = hostile_values(c.tokens * c.width, 21, hostility);
  for (size_t i = 0; i < values.size(); i += 97) values[i] = i % 2 ? 300.0f : -300.0f;
  return f.floats(c.storage, {c.tokens, c.width}, values);
}
SmoothSwiGLU mode_of(const TargetKind& kind) {
  if (kind.by_row && kind.by_column) return SmoothSwiGLU::Dual;
  return kind.by_row ? SmoothSwiGLU::Token : kind.by_column ? SmoothSwiGLU::Channel : SmoothSwiGLU::None;
}

void check_forward(OpFixture& f, Activation activation, const Case& c, const TargetKind& kind,
                   const Tensor& x) {
  const TargetShape shape{c.tokens, c.width, c.storage, Copies::Both};
  const CastTarget expected = make_target(f, kind, shape), out = make_target(f, kind, shape);
  const Tensor p = f.floats(DType::F32, {1}, {0.3f}), n = f.floats(DType::F32, {1}, {-0.9f});
  f->activation_forward({activation, x, p, n, mode_of(kind), expected});
  KernelCast cast(out);
  kernels::activation_forward({.activation = activation,
                               .storage = format_of(c.storage),
                               .x = x.data,
                               .positive = p.as<float>(),
                               .negative = n.as<float>(),
                               .tokens = c.tokens,
                               .width = c.width,
                               .out = cast.output()});
  cast.finish();
  check_same(expected, out);
}

void check_backward(OpFixture& f, Activation activation, const Case& c, const TargetKind& kind,
                    const Tensor& x) {
  const Tensor h_gradient = f.floats(c.storage, {c.tokens, c.width}, normal_values(c.tokens * c.width, 22));
  const TargetShape shape{c.tokens, c.width, c.storage, Copies::Both};
  const CastTarget expected = make_target(f, kind, shape), out = make_target(f, kind, shape);
  const Tensor p = f.floats(DType::F32, {1}, {0.3f}), n = f.floats(DType::F32, {1}, {-0.9f});
  const Tensor their_p = f.floats(DType::F32, {1}, {0.25f}), their_n = f.floats(DType::F32, {1}, {-7.0f}),
               our_p = f.floats(DType::F32, {1}, {0.25f}), our_n = f.floats(DType::F32, {1}, {-7.0f});
  f->activation_backward({activation, x, h_gradient, p, n, their_p, their_n, expected});
  std::vector<float> partial(static_cast<size_t>(kernels::activation_partial_elements(c.tokens)), NAN);
  KernelCast cast(out);
  kernels::activation_backward({.activation = activation,
                                .storage = format_of(c.storage),
                                .x = x.data,
                                .h_gradient = h_gradient.data,
                                .positive = p.as<float>(),
                                .negative = n.as<float>(),
                                .positive_gradient = our_p.as<float>(),
                                .negative_gradient = our_n.as<float>(),
                                .partial = partial.data(),
                                .tokens = c.tokens,
                                .width = c.width,
                                .out = cast.output()});
  cast.finish();
  check_same(expected, out);
  CHECK(differences(their_p, our_p) == 0);
  CHECK(differences(their_n, our_n) == 0);
  const bool moved = *our_p.as<float>() != 0.25f || *our_n.as<float>() != -7.0f;
  CHECK(moved == (activation == Activation::XIELU));
}

}  // namespace

TEST_CASE("activations and their codes have the CPU device's bits, in every mode and shape", "[activation]") {
  for (const Activation activation : activations) {
    for (const Case& c : cases) {
      for (const Hostility hostility : {Hostility::Finite, Hostility::Broken}) {
        OpFixture f(1);
        const Tensor x = input_of(f, c, hostility);
        for (const TargetKind& kind : producer_kinds()) {
          if (hostility == Hostility::Broken && !kind.by_row) continue;
          INFO(name_of(activation) << " " << c.tokens << " x " << c.width << ", " << kind.name);
          check_forward(f, activation, c, kind, x);
          check_backward(f, activation, c, kind, x);
        }
      }
    }
  }
}

TEST_CASE("xIELU is the same in every schedule, its parameters' gradients too", "[activation]") {
  OpFixture f(1);
  const Case c{140, 40, DType::BF16};
  const Tensor x = input_of(f, c, Hostility::Finite);
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    INFO(schedule);
    check_forward(f, Activation::XIELU, c, target_kind("dual"), x);
    check_backward(f, Activation::XIELU, c, target_kind("dual"), x);
  }
}

TEST_CASE("a gated activation has no kernel here", "[activation]") {
  const float x = 1;
  float out = 0;
  CHECK_THROWS_AS(kernels::activation_forward({.activation = Activation::SwiGLU,
                                               .storage = Format::FP32,
                                               .x = &x,
                                               .tokens = 1,
                                               .width = 1,
                                               .out = {.high = &out, .storage = Format::FP32}}),
                  gpu::LaunchError);
}
