// The regulariser of queries and keys fused with RoPE: the bits of the CPU device.
#include <cmath>

#include "environment.h"
#include "kernel_cast.h"
#include "kernels/launch_error.h"
#include "kernels/rope.h"

using namespace octet;

namespace {

Format format_of(DType storage) { return storage == DType::F32 ? Format::FP32 : Format::BF16; }

struct Problem {
  DType storage;
  int64_t tokens, context;
  int heads, kv_heads, head_width;
  QkNorm kind = QkNorm::RMS;
  bool biased = false;

  int64_t columns() const { return static_cast<int64_t>(heads + 2 * kv_heads) * head_width; }
  int64_t kept() const { return static_cast<int64_t>(heads + kv_heads) * head_width; }
};
// A pair; no vectors; one, three and four pieces a head, ragged; what a warp holds several of, one of; the
// widest; more tokens than a chunk.
std::vector<Problem> problems() {
  std::vector<Problem> list;
  for (const QkNorm kind : {QkNorm::RMS, QkNorm::RMSFrozen, QkNorm::Tanh}) {
    for (const Problem& p : {Problem{DType::F32, 1, 1, 1, 1, 2}, Problem{DType::BF16, 5, 3, 3, 1, 6},
                             Problem{DType::F32, 4, 4, 3, 2, 16}, Problem{DType::BF16, 5, 5, 2, 1, 48},
                             Problem{DType::F32, 3, 2, 2, 1, 42}, Problem{DType::BF16, 131, 40, 4, 2, 64},
                             Problem{DType::BF16, 3, 3, 5, 1, 128}, Problem{DType::F32, 2, 2, 1, 1, 512}}) {
      for (const bool biased : {false, true}) {
        list.push_back(p);
        list.back().kind = kind;
        list.back().biased = biased;
      }
    }
  }
  return list;
}
std::string text_of(const Problem& p) {
  return std::string(name_of(p.storage)) + ", kind " + std::to_string(static_cast<int>(p.kind)) + ", " +
         std::to_string(p.tokens) + " tokens, heads of " + std::to_string(p.head_width) +
         (p.biased ? ", bias" : "");
}

struct Inputs {
  Inputs(OpFixture& f, const Problem& p, Hostility hostility) {
    Values x = hostile_values(p.tokens * p.columns(), 51, hostility);
    for (float& v : x) v = std::abs(v) > 1e15f ? 3.0f : v;
    qkv = f.floats(p.storage, {p.tokens, p.columns()}, x);
    if (p.biased) bias = f.floats(DType::F32, {p.columns()}, normal_values(p.columns(), 52));
    Values c, s;
    const int64_t half = p.head_width / 2;
    for (int64_t i = 0; i < p.context * half; ++i) {
      c.push_back(std::cos(0.37f * static_cast<float>(i)));
      s.push_back(std::sin(0.37f * static_cast<float>(i)));
    }
    cosine = f.floats(DType::F32, {p.context, half}, c);
    sine = f.floats(DType::F32, {p.context, half}, s);
    const int64_t gains = p.kind == QkNorm::RMS ? p.head_width : p.kind == QkNorm::Tanh ? 1 : 0;
    if (gains > 0) {
      query_gain = f.floats(DType::F32, {gains}, normal_values(gains, 53));
      key_gain = f.floats(DType::F32, {gains}, normal_values(gains, 54));
    }
    gradient = f.floats(p.storage, {p.tokens, p.columns()},
                        hostile_values(p.tokens * p.columns(), 55, Hostility::Finite));
  }
  Tensor qkv, bias, cosine, sine, query_gain, key_gain, gradient;
};
float* floats_or_null(const Tensor& t) { return t.empty() ? nullptr : t.as<float>(); }

kernels::RopeShape shape_of(const Problem& p, const Inputs& in) {
  return {.tokens = p.tokens,
          .context = p.context,
          .heads = p.heads,
          .kv_heads = p.kv_heads,
          .head_width = p.head_width,
          .cosine = in.cosine.as<float>(),
          .sine = in.sine.as<float>()};
}
kernels::RopeNorm norm_of(const Problem& p, const Inputs& in, const Tensor& kept) {
  return {.kind = p.kind,
          .kept = kept.data,
          .query_gain = floats_or_null(in.query_gain),
          .key_gain = floats_or_null(in.key_gain),
          .epsilon = 1e-5f};
}

Tensor copy_of(OpFixture& f, const Tensor& t) {
  const Tensor copy = f.zeros(t.dtype, t.shape);
  f->copy(copy, t);
  return copy;
}

// Forward, then backward from what it kept.
void check_both(OpFixture& f, const Problem& p, const TargetKind& kind, Hostility hostility) {
  const Inputs in(f, p, hostility);
  const Tensor theirs = copy_of(f, in.qkv), ours = copy_of(f, in.qkv),
               their_kept = f.zeros(p.storage, {p.tokens, p.kept()}),
               our_kept = f.zeros(p.storage, {p.tokens, p.kept()});
  const QueryKeyNorm norm{p.kind, their_kept, in.query_gain, in.key_gain, 1e-5f};
  f->rope_forward({theirs, in.bias, in.cosine, in.sine, p.heads, p.kv_heads, p.head_width, norm});
  kernels::rope_forward({.storage = format_of(p.storage),
                         .qkv = ours.data,
                         .bias = floats_or_null(in.bias),
                         .shape = shape_of(p, in),
                         .norm = norm_of(p, in, our_kept)});
  CHECK(differences(theirs, ours) == 0);
  CHECK(differences(their_kept, our_kept) == 0);
  if (p.tokens > 1) CHECK(differences(ours, in.qkv) > 0);

  const TargetShape shape{p.tokens, p.columns(), p.storage, Copies::Both};
  struct Side {
    CastTarget out;
    Tensor bias, query, key;
  };
  Side sides[2];
  for (Side& side : sides) {
    side.out = make_target(f, kind, shape);
    side.out.high = copy_of(f, in.gradient);  // in place
    if (p.biased) side.bias = f.floats(DType::F32, {p.columns()}, normal_values(p.columns(), 56));
    if (in.query_gain.empty()) continue;
    side.query = f.floats(DType::F32, in.query_gain.shape, normal_values(in.query_gain.elements(), 57));
    side.key = f.floats(DType::F32, in.key_gain.shape, normal_values(in.key_gain.elements(), 58));
  }
  f->rope_backward({sides[0].out.high, sides[0].bias, in.cosine, in.sine, p.heads, p.kv_heads, p.head_width,
                    sides[0].out, norm, sides[0].query, sides[0].key});
  const kernels::RopeShape rope = shape_of(p, in);
  std::vector<float> partial(static_cast<size_t>(std::max(kernels::rope_partial_elements(rope),
                                                          kernels::gain_partial_elements(rope))),
                             NAN);
  KernelCast cast(sides[1].out);
  kernels::rope_backward({.storage = format_of(p.storage),
                          .qkv_gradient = sides[1].out.high.data,
                          .bias_gradient = floats_or_null(sides[1].bias),
                          .query_gain_gradient = floats_or_null(sides[1].query),
                          .key_gain_gradient = floats_or_null(sides[1].key),
                          .partial = partial.data(),
                          .shape = rope,
                          .norm = norm_of(p, in, our_kept),
                          .out = cast.output()});
  cast.finish();
  check_same(sides[0].out, sides[1].out);
  if (p.biased) CHECK(differences(sides[0].bias, sides[1].bias) == 0);
  if (in.query_gain.empty()) return;
  CHECK(differences(sides[0].query, sides[1].query) == 0);
  CHECK(differences(sides[0].key, sides[1].key) == 0);
}

}  // namespace

TEST_CASE("regularised queries and keys have the CPU device's bits, backward and gains too",
          "[query_key_norm]") {
  size_t turn = 0;
  for (const Problem& p : problems()) {
    const std::vector<TargetKind> kinds = producer_kinds();
    OpFixture f(1);
    INFO(text_of(p));
    check_both(f, p, kinds[turn % kinds.size()], turn % 5 == 4 ? Hostility::Broken : Hostility::Finite);
    ++turn;
  }
}

TEST_CASE("regularised queries and keys are the same in every schedule", "[query_key_norm]") {
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "3");
    INFO(schedule);
    for (const QkNorm kind : {QkNorm::RMS, QkNorm::Tanh}) {
      OpFixture f(1);
      check_both(f, {DType::BF16, 70, 30, 3, 1, 24, kind, true}, target_kind("dual"), Hostility::Finite);
    }
  }
}

TEST_CASE("a head too wide for a warp is refused", "[query_key_norm]") {
  float x[2000] = {}, kept[2000] = {}, table[514] = {};
  CHECK_THROWS_AS(kernels::rope_forward({.storage = Format::FP32,
                                         .qkv = x,
                                         .shape = {.tokens = 1,
                                                   .context = 1,
                                                   .heads = 1,
                                                   .kv_heads = 1,
                                                   .head_width = 514,
                                                   .cosine = table,
                                                   .sine = table},
                                         .norm = {.kind = QkNorm::RMSFrozen, .kept = kept}}),
                  gpu::LaunchError);
}
