// The cases of octet selftest for attention, in storage precision and in FP8.
#include <fmt/format.h>

#include <cmath>

#include "analysis/selftest_cases.h"

namespace octet::selftest {

void add_attention(std::vector<SelftestCase>& cases, Libraries libraries) {
  struct Heads {
    int context, heads, kv_heads, head_width;
  };
  for (const Heads& h : {Heads{64, 4, 4, 64}, Heads{100, 4, 2, 64}, Heads{48, 2, 1, 128}}) {
    constexpr int windows = 2;
    const int64_t rows = windows * h.context, width = (h.heads + 2 * h.kv_heads) * h.head_width,
                  out_width = h.heads * h.head_width;
    const std::string variant = fmt::format("BF16, context {}, {} heads on {}, width {}", h.context, h.heads,
                                            h.kv_heads, h.head_width);
    const float scale = 1.0f / std::sqrt(static_cast<float>(h.head_width));
    // A library may round probabilities (and in backward the scores' gradients) to BF16 between the products,
    // half an ulp of at most 2^-8 each; the result is rounded once more on both sides.
    const double forward = libraries == Libraries::Same ? 0 : 3 * 0x1p-8,
                 backward = libraries == Libraries::Same ? 0 : 6 * 0x1p-8;
    cases.push_back({"attention forward", variant, forward, [=](Workbench& w) {
                       AttentionForward op{};
                       op.qkv = w.floats(DType::BF16, {rows, width}, normal(rows * width, 1));
                       op.log_sum_exp = w.zeros(DType::F32, {windows, h.heads, h.context});
                       op.context = h.context;
                       op.heads = h.heads;
                       op.kv_heads = h.kv_heads;
                       op.head_width = h.head_width;
                       op.softmax_scale = scale;
                       op.out.high = w.zeros(DType::BF16, {rows, out_width});
                       w.device().attention_forward(op);
                       w.output("out", op.out.high);
                       w.output("log sum exp", op.log_sum_exp);
                     }});
    cases.push_back(
        {"attention backward", variant, backward, [=](Workbench& w) {
           AttentionForward forward_op{};
           forward_op.qkv = w.floats(DType::BF16, {rows, width}, normal(rows * width, 1));
           forward_op.log_sum_exp = w.zeros(DType::F32, {windows, h.heads, h.context});
           forward_op.context = h.context;
           forward_op.heads = h.heads;
           forward_op.kv_heads = h.kv_heads;
           forward_op.head_width = h.head_width;
           forward_op.softmax_scale = scale;
           forward_op.out.high = w.zeros(DType::BF16, {rows, out_width});
           w.device().attention_forward(forward_op);
           AttentionBackward op{};
           op.qkv = forward_op.qkv;
           op.out = forward_op.out.high;
           op.out_gradient = w.floats(DType::BF16, {rows, out_width}, normal(rows * out_width, 2));
           op.log_sum_exp = forward_op.log_sum_exp;
           op.qkv_gradient = w.zeros(DType::BF16, {rows, width});
           op.context = h.context;
           op.heads = h.heads;
           op.kv_heads = h.kv_heads;
           op.head_width = h.head_width;
           op.softmax_scale = scale;
           w.device().attention_backward(op);
           w.output("gradient", op.qkv_gradient);
         }});
  }
}

namespace {
enum class Until : uint8_t { Forward, Backward };
}  // namespace

void add_float8_attention(std::vector<SelftestCase>& cases, Libraries libraries) {
  struct Heads {
    int context, heads, kv_heads, head_width;
    float history;  // of the sites whose codes are made inside; 0: they start
  };
  for (const Heads& h : {Heads{64, 2, 2, 128, 0}, Heads{100, 4, 2, 128, 64}, Heads{48, 2, 1, 128, 0}}) {
    constexpr int windows = 2;
    const int64_t rows = windows * h.context, width = (h.heads + 2 * h.kv_heads) * h.head_width,
                  out_width = h.heads * h.head_width;
    const std::string variant =
        fmt::format("F8, context {}, {} heads on {}, width {}, {}", h.context, h.heads, h.kv_heads,
                    h.head_width, h.history > 0 ? "with history" : "without history");
    const bool same = libraries == Libraries::Same;
    // Where a library rounds the probabilities before or after it divides by their sum, and which of two
    // neighbouring codes a result becomes, each is half an ulp on either side: of E4M3 forward; backward, of
    // E5M2 for dS and the result, and of E4M3 for probabilities and output.
    const double forward = same ? 0 : 4 * 0x1p-4, backward = same ? 0 : 4 * 0x1p-3 + 4 * 0x1p-4;
    const auto attend = [=](Workbench& w, Until until) {
      // A power-of-two scale that every library multiplies exactly. Books that a GPU's library does not keep:
      // counters.
      const auto site = [&](float scale) {
        Site made = w.site(scale);
        if (!same) made.counters = nullptr;
        return made;
      };
      const auto beforehand = [&](Format format, const Shape& shape, float history) {
        CodesBeforehand made;
        made.cast = {format, Scaling::Delayed, ScaleRule::PowerOfTwo, Rounding::Nearest};
        made.codes = w.zeros(dtype_of(format), shape);
        made.site = site(history);
        return made;
      };
      const auto cast = [&](Format format, const Shape& shape, uint64_t key) {
        CastOperation op;
        op.source = w.floats(DType::BF16, shape, normal(shape.elements(), key));
        op.out.row = w.zeros(dtype_of(format), shape);
        op.out.cast.format = format;
        op.out.site = site(0);
        w.device().cast(op);
        return op.out;
      };
      const CastTarget qkv = cast(Format::E4M3, {rows, width}, 1);
      AttentionForward op{};
      op.qkv = qkv.row;
      op.qkv_inverse_scale = qkv.site.inverse_scale;
      op.log_sum_exp = w.zeros(DType::F32, {windows, h.heads, h.context});
      op.context = h.context;
      op.heads = h.heads;
      op.kv_heads = h.kv_heads;
      op.head_width = h.head_width;
      op.softmax_scale = 1.0f / std::sqrt(static_cast<float>(h.head_width));
      op.out_codes = beforehand(Format::E4M3, {rows, out_width}, h.history);
      op.out.high = w.zeros(DType::BF16, {rows, out_width});
      w.device().attention_forward(op);
      if (until == Until::Forward) {
        w.output("out", op.out.high);
        w.output("log sum exp", op.log_sum_exp);
        w.output("site of out", op.out_codes.site);
        return;
      }
      const CastTarget out_gradient = cast(Format::E5M2, {rows, out_width}, 2);
      AttentionBackward back{};
      back.qkv = op.qkv;
      back.qkv_inverse_scale = op.qkv_inverse_scale;
      back.out = op.out_codes.codes;
      back.out_inverse_scale = op.out_codes.site.inverse_scale;
      back.out_gradient = out_gradient.row;
      back.out_gradient_inverse_scale = out_gradient.site.inverse_scale;
      back.log_sum_exp = op.log_sum_exp;
      back.qkv_gradient = w.zeros(DType::BF16, {rows, width});
      back.context = h.context;
      back.heads = h.heads;
      back.kv_heads = h.kv_heads;
      back.head_width = h.head_width;
      back.softmax_scale = op.softmax_scale;
      back.score_gradient = beforehand(Format::E5M2, {1}, 16 * h.history);
      back.score_gradient.codes = {};
      back.qkv_gradient_codes = beforehand(Format::E5M2, {rows, width}, 16 * h.history);
      w.device().attention_backward(back);
      w.output("gradient", back.qkv_gradient);
      w.output("site of the scores' gradient", back.score_gradient.site);
      w.output("site of the gradient", back.qkv_gradient_codes.site);
    };
    SelftestCase one{"attention forward", variant, forward, [=](Workbench& w) { attend(w, Until::Forward); }};
    one.float8_attention = true;
    cases.push_back(one);
    one.operation = "attention backward";
    one.bound = backward;
    one.run = [=](Workbench& w) { attend(w, Until::Backward); };
    cases.push_back(one);
  }
}

}  // namespace octet::selftest
