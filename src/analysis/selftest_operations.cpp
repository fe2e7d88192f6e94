// The cases of octet selftest: every Device operation, on random and on adversarial numbers, at shapes that
// are no multiple of anything.
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "analysis/selftest.h"
#include "base/random.h"
#include "numerics/bfloat16.h"

namespace octet {
namespace {

using Values = std::vector<float>;

constexpr float infinity = std::numeric_limits<float>::infinity();

Values normal(int64_t count, uint64_t key, double deviation = 1) {
  Values values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(deviation * random_normal(random_key(key, Purpose::Test), i));
  return values;
}

// Normal numbers over many binades, with zeros, subnormals of every format and the largest finite ones.
Values hard(int64_t count, uint64_t key) {
  Values values = normal(count, key);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t draw = random_bits(random_key(key, Purpose::Test, 1), i);
    values[i] *= std::ldexp(1.0f, static_cast<int>(draw % 24) - 12);
    if (draw % 17 == 0) values[i] = 0;
    if (draw % 19 == 0) values[i] = 1e-39f;
    if (draw % 23 == 0) values[i] = draw & 1024 ? 448.0f : -57344.0f;
    if (draw % 29 == 0) values[i] = -0.0f;
  }
  return values;
}

std::string both(DType storage, const std::string& rest) {
  return fmt::format("{}, {}", name_of(storage), rest);
}

// ---- casts

enum class Copies { Row, Column, Both };
struct CastVariant {
  const char* name;
  Copies copies = Copies::Both;
  bool row_scales = false, column_scales = false, row_factor = false, column_factor = false;
  Scaling scaling = Scaling::Current;
  ScaleRule rule = ScaleRule::PowerOfTwo;
  Rounding rounding = Rounding::Nearest;
  bool counted = true;
  float history = 0;  // the site's scale from earlier steps
  float poison = 0;   // one value of the tensor; 0: none
};

constexpr int64_t cast_rows = 67, cast_columns = 149;

CastTarget cast_target(Workbench& w, const CastVariant& v, Format format, int64_t rows, int64_t columns) {
  CastTarget out;
  const DType codes = dtype_of(format);
  if (v.copies != Copies::Column) out.row = w.zeros(codes, {rows, columns});
  if (v.copies != Copies::Row) out.column = w.zeros(codes, {columns, rows});
  out.cast = {format, v.scaling, v.rule, v.rounding};
  out.site = w.site(v.history);
  if (!v.counted) out.site.counters = nullptr;
  if (v.row_scales) out.row_inverse_scale = w.zeros(DType::F32, {rows});
  if (v.column_scales) out.column_inverse_scale = w.zeros(DType::F32, {columns});
  if (v.row_factor) {
    Values factors = normal(rows, 77);
    out.row_factor = w.floats(DType::F32, {rows}, factors);
    out.column_site = w.site(v.history);
  }
  out.rounding_key = 12345;
  return out;
}

void compare_target(Workbench& w, const CastTarget& out) {
  if (!out.high.empty()) w.output("high", out.high);
  if (!out.row.empty()) w.output("row codes", out.row);
  if (!out.column.empty()) w.output("column codes", out.column);
  if (!out.row_inverse_scale.empty()) w.output("row scales", out.row_inverse_scale);
  if (!out.column_inverse_scale.empty()) w.output("column scales", out.column_inverse_scale);
  if (out.site.scale) w.output("site", out.site);
  if (out.column_site.scale) w.output("column site", out.column_site);
}

const CastVariant cast_variants[] = {
    {.name = "current"},
    {.name = "current, row only", .copies = Copies::Row},
    {.name = "current, column only", .copies = Copies::Column},
    {.name = "current exact", .rule = ScaleRule::Exact},
    {.name = "delayed, first step", .scaling = Scaling::Delayed},
    {.name = "delayed", .scaling = Scaling::Delayed, .history = 8},
    {.name = "delayed, saturating", .scaling = Scaling::Delayed, .counted = false, .history = 4096},
    {.name = "per row and per column", .row_scales = true, .column_scales = true},
    {.name = "per row", .row_scales = true},
    {.name = "per column", .column_scales = true},
    {.name = "row factors", .row_factor = true},
    {.name = "row factors and row scales", .row_scales = true, .row_factor = true},
    {.name = "column factors", .copies = Copies::Row, .column_factor = true},
    {.name = "stochastic", .rounding = Rounding::Stochastic},
    {.name = "with an infinity", .poison = infinity},
    {.name = "with a NaN", .row_scales = true, .column_scales = true, .poison = NAN},
};

void add_casts(std::vector<SelftestCase>& cases) {
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const Format format : {Format::E4M3, Format::E5M2}) {
      for (const CastVariant& v : cast_variants) {
        cases.push_back({"cast", both(storage, fmt::format("{}, {}", name_of(dtype_of(format)), v.name)), 0,
                         [=](Workbench& w) {
                           Values values = hard(cast_rows * cast_columns, 1);
                           if (v.poison != 0) values[5 * cast_columns + 7] = v.poison;
                           CastOperation op;
                           op.source = w.floats(storage, {cast_rows, cast_columns}, values);
                           if (v.column_factor)
                             op.column_factor = w.floats(DType::F32, {cast_columns}, normal(cast_columns, 2));
                           op.out = cast_target(w, v, format, cast_rows, cast_columns);
                           op.out.high = w.zeros(DType::BF16, {cast_rows, cast_columns});
                           w.device().cast(op);
                           compare_target(w, op.out);
                         }});
      }
    }
  }
  for (const Format format : {Format::E4M3, Format::E5M2}) {  // F2
    cases.push_back({"cast", fmt::format("all 65,536 BF16 numbers to {}", name_of(dtype_of(format))), 0,
                     [=](Workbench& w) {
                       std::vector<BFloat16> all(65536);
                       for (size_t i = 0; i < all.size(); ++i) all[i] = {static_cast<uint16_t>(i)};
                       CastOperation op;
                       op.source = w.bytes(DType::BF16, {256, 256}, all.data());
                       const CastVariant once{.name = "", .scaling = Scaling::Delayed, .history = 1};
                       op.out = cast_target(w, once, format, 256, 256);
                       w.device().cast(op);
                       compare_target(w, op.out);
                     }});
  }
}

// What a producer is asked for: nothing, current, delayed with history, per row and column.
const CastVariant producer_variants[] = {
    {.name = "no codes"},
    {.name = "current E4M3"},
    {.name = "delayed E4M3", .scaling = Scaling::Delayed, .counted = false, .history = 16},
    {.name = "delayed E4M3, first step", .scaling = Scaling::Delayed, .counted = false},
};
CastTarget producer_target(Workbench& w, const CastVariant& v, DType storage, int64_t rows, int64_t columns) {
  CastTarget out;
  if (&v != &producer_variants[0]) out = cast_target(w, v, Format::E4M3, rows, columns);
  out.high = w.zeros(storage, {rows, columns});
  return out;
}

// ---- norms, RoPE, SwiGLU

void add_norms(std::vector<SelftestCase>& cases) {
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const CastVariant& v : producer_variants) {
      for (const int64_t width : {int64_t{1}, int64_t{200}, int64_t{1031}, int64_t{2048}}) {
        const std::string variant = both(storage, fmt::format("{}, 70 x {}", v.name, width));
        constexpr int64_t rows = 70;
        cases.push_back({"rmsnorm forward", variant, 0, [=, &v](Workbench& w) {
                           RmsNormForward op;
                           op.residual = w.floats(storage, {rows, width}, normal(rows * width, 1, 3));
                           op.branch = w.floats(storage, {rows, width}, normal(rows * width, 2));
                           op.residual_out = w.zeros(storage, {rows, width});
                           op.gain = w.floats(DType::F32, {width}, normal(width, 3));
                           op.rstd = w.zeros(DType::F32, {rows});
                           op.out = producer_target(w, v, storage, rows, width);
                           w.device().rmsnorm_forward(op);
                           w.output("sum", op.residual_out);
                           w.output("rstd", op.rstd);
                           compare_target(w, op.out);
                         }});
        cases.push_back(
            {"rmsnorm backward", variant, 0, [=, &v](Workbench& w) {
               RmsNormBackward op;
               op.out_gradient = w.floats(storage, {rows, width}, normal(rows * width, 1, 1e-3));
               op.residual = w.floats(storage, {rows, width}, normal(rows * width, 2));
               op.gain = w.floats(DType::F32, {width}, normal(width, 3));
               Values rstd = normal(rows, 4);
               for (float& x : rstd) x = std::fabs(x) + 0.1f;
               op.rstd = w.floats(DType::F32, {rows}, rstd);
               op.gain_gradient = w.floats(DType::F32, {width}, normal(width, 5));
               op.residual_gradient_in = w.floats(storage, {rows, width}, normal(rows * width, 6, 1e-3));
               op.residual_gradient = producer_target(w, v, storage, rows, width);
               op.residual_gradient.high = op.residual_gradient_in;
               w.device().rmsnorm_backward(op);
               w.output("gain gradient", op.gain_gradient);
               compare_target(w, op.residual_gradient);
             }});
      }
    }
  }
}

Values rope_table(int64_t context, int64_t half, bool sine) {
  Values table(static_cast<size_t>(context * half));
  for (int64_t s = 0; s < context; ++s) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(s) * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
      table[static_cast<size_t>(s * half + i)] = static_cast<float>(sine ? std::sin(angle) : std::cos(angle));
    }
  }
  return table;
}

void add_rope(std::vector<SelftestCase>& cases) {
  constexpr int64_t windows = 2, context = 37, rows = windows * context;
  constexpr int heads = 4, kv_heads = 2;
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const CastVariant& v : producer_variants) {
      for (const int head_width : {6, 64}) {
        for (const bool biased : {false, true}) {
          const int64_t width = (heads + 2 * kv_heads) * head_width;
          const std::string variant =
              both(storage, fmt::format("{}, heads of {}{}", v.name, head_width, biased ? ", bias" : ""));
          const auto tables = [=](Workbench& w, Tensor& cosine, Tensor& sine) {
            cosine =
                w.floats(DType::F32, {context, head_width / 2}, rope_table(context, head_width / 2, false));
            sine = w.floats(DType::F32, {context, head_width / 2}, rope_table(context, head_width / 2, true));
          };
          if (&v == &producer_variants[0]) {
            cases.push_back({"rope forward", variant, 0, [=](Workbench& w) {
                               RopeForward op{};
                               op.qkv = w.floats(storage, {rows, width}, normal(rows * width, 1));
                               if (biased) op.bias = w.floats(DType::F32, {width}, normal(width, 2));
                               tables(w, op.cosine, op.sine);
                               op.heads = heads;
                               op.kv_heads = kv_heads;
                               op.head_width = head_width;
                               w.device().rope_forward(op);
                               w.output("qkv", op.qkv);
                             }});
          }
          cases.push_back(
              {"rope backward", variant, 0, [=, &v](Workbench& w) {
                 RopeBackward op{};
                 op.qkv_gradient = w.floats(storage, {rows, width}, normal(rows * width, 1, 1e-3));
                 if (biased) op.bias_gradient = w.floats(DType::F32, {width}, normal(width, 2));
                 tables(w, op.cosine, op.sine);
                 op.heads = heads;
                 op.kv_heads = kv_heads;
                 op.head_width = head_width;
                 op.out = producer_target(w, v, storage, rows, width);
                 op.out.high = op.qkv_gradient;
                 w.device().rope_backward(op);
                 if (biased) w.output("bias gradient", op.bias_gradient);
                 compare_target(w, op.out);
               }});
        }
      }
    }
  }
}

void add_swiglu(std::vector<SelftestCase>& cases) {
  struct Mode {
    SmoothSwiGLU mode;
    CastVariant v;
  };
  const Mode modes[] = {
      {SmoothSwiGLU::None, {.name = "none"}},
      {SmoothSwiGLU::None,
       {.name = "none, delayed", .scaling = Scaling::Delayed, .counted = false, .history = 16}},
      {SmoothSwiGLU::Token, {.name = "token", .row_scales = true}},
      {SmoothSwiGLU::Channel, {.name = "channel", .column_scales = true}},
      {SmoothSwiGLU::Dual, {.name = "dual", .row_scales = true, .column_scales = true}},
  };
  constexpr int64_t rows = 70;
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const int64_t width : {int64_t{5}, int64_t{264}}) {
      for (const Mode& m : modes) {
        cases.push_back({"swiglu forward", both(storage, fmt::format("{}, {} x {}", m.v.name, rows, width)),
                         0, [=](Workbench& w) {
                           SwiGluForward op;
                           Values values = normal(rows * 2 * width, 1, 4);
                           values[0] = 200;  // an outlier in one channel
                           values[static_cast<size_t>(width)] = 200;
                           op.gate_up = w.floats(storage, {rows, 2 * width}, values);
                           op.mode = m.mode;
                           op.out = cast_target(w, m.v, Format::E4M3, rows, width);
                           op.out.high = w.zeros(storage, {rows, width});
                           w.device().swiglu_forward(op);
                           compare_target(w, op.out);
                         }});
      }
      for (const CastVariant& v : producer_variants) {
        cases.push_back({"swiglu backward", both(storage, fmt::format("{}, {} x {}", v.name, rows, width)), 0,
                         [=, &v](Workbench& w) {
                           SwiGluBackward op;
                           op.gate_up = w.floats(storage, {rows, 2 * width}, normal(rows * 2 * width, 1, 4));
                           op.h_gradient = w.floats(storage, {rows, width}, normal(rows * width, 2, 1e-3));
                           op.out = producer_target(w, v, storage, rows, 2 * width);
                           w.device().swiglu_backward(op);
                           compare_target(w, op.out);
                         }});
      }
    }
  }
}

// ---- head and embedding

void add_ends(std::vector<SelftestCase>& cases, Libraries libraries) {
  // log and exp in FP64 may differ by an ulp of FP64 between libraries: a tie of the last rounding at most.
  const double bound = libraries == Libraries::Same ? 0 : 0x1p-20;
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const int64_t vocabulary : {int64_t{1}, int64_t{257}, int64_t{3001}}) {
      cases.push_back(
          {"cross entropy", both(storage, fmt::format("5 x {}", vocabulary)), bound, [=](Workbench& w) {
             CrossEntropy op;
             op.logits = w.floats(storage, {5, vocabulary}, normal(5 * vocabulary, 1, 5));
             const auto v = static_cast<int32_t>(vocabulary);
             const int32_t targets[] = {0, v - 1, -1, v / 2, v / 3};
             op.targets = w.bytes(DType::I32, {5}, targets);
             op.loss = w.zeros(DType::F32, {5});
             op.gradient_scale = 1e-3f;
             op.z_loss = 1e-4f;
             w.device().cross_entropy(op);
             w.output("loss", op.loss);
             w.output("gradient", op.logits);
           }});
    }
    for (const int64_t width : {int64_t{3}, int64_t{136}}) {
      constexpr int64_t tokens = 300, vocabulary = 41;
      std::vector<int32_t> ids(tokens);
      for (size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<int32_t>(random_bits(random_key(9, Purpose::Test), i) % vocabulary);
      cases.push_back(
          {"embedding forward", both(storage, fmt::format("width {}", width)), 0, [=](Workbench& w) {
             EmbeddingForward op;
             op.out = w.zeros(storage, {tokens, width});
             op.tokens = w.bytes(DType::I32, {tokens}, ids.data());
             op.table = w.floats(storage, {vocabulary, width}, normal(vocabulary * width, 1));
             w.device().embedding_forward(op);
             w.output("out", op.out);
           }});
      for (const DType gradient : {DType::F32, DType::BF16}) {
        cases.push_back(
            {"embedding backward", both(storage, fmt::format("into {}, width {}", name_of(gradient), width)),
             0, [=](Workbench& w) {
               EmbeddingBackward op;
               op.table_gradient = w.floats(gradient, {vocabulary, width}, normal(vocabulary * width, 1));
               op.tokens = w.bytes(DType::I32, {tokens}, ids.data());
               op.out_gradient = w.floats(storage, {tokens, width}, normal(tokens * width, 2));
               w.device().embedding_backward(op);
               w.output("gradient", op.table_gradient);
             }});
      }
    }
  }
}

// ---- update

void add_update(std::vector<SelftestCase>& cases) {
  constexpr int64_t count = 20000;
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const double scale : {1e-3, 10.0}) {
      cases.push_back(
          {"gradient norm", both(storage, scale > 1 ? "clipped" : "not clipped"), 0, [=](Workbench& w) {
             const Tensor gradients[] = {w.floats(storage, {count}, normal(count, 1, scale)),
                                         w.floats(storage, {3}, normal(3, 2, scale)),
                                         w.floats(storage, {16384}, normal(16384, 3, scale))};
             const double loss = 12.5;
             const Tensor sum = w.bytes(DType::F64, {1}, &loss);
             const Tensor control = w.zeros(DType::U32, {4});
             w.device().gradient_norm({.gradients = gradients,
                                       .loss_sum = sum,
                                       .loss_divisor = 4,
                                       .clip_norm = 1,
                                       .control = static_cast<UpdateControl*>(control.data)});
             w.output("control", control);
           }});
    }
  }
  cases.push_back({"accumulate sum", "F32, 1000", 0, [](Workbench& w) {
                     const double start = 3;
                     const Tensor sum = w.bytes(DType::F64, {1}, &start);
                     w.device().accumulate_sum(sum, w.floats(DType::F32, {1000}, normal(1000, 1)));
                     w.output("sum", sum);
                   }});
  struct Moments {
    DType first, second;
    int block;
  };
  const Moments moments[] = {{DType::F32, DType::F32, 128},
                             {DType::BF16, DType::BF16, 128},
                             {DType::E4M3, DType::E5M2, 128},
                             {DType::E4M3, DType::E4M3, 32},
                             {DType::E4M3, DType::E5M2, 0}};
  for (const Moments& m : moments) {
    for (const DType gradient : {DType::F32, DType::BF16}) {
      for (const uint32_t apply : {1u, 0u}) {
        cases.push_back(
            {"adamw",
             fmt::format("{} gradient, moments {} {} block {}{}", name_of(gradient), name_of(m.first),
                         name_of(m.second), m.block, apply ? ", 3 steps" : ", step refused"),
             0, [=](Workbench& w) {
               constexpr int64_t n = 1000;
               const auto moment = [&](DType type) {
                 MomentTensor tensor;
                 tensor.values = w.zeros(type, {n});
                 tensor.block = m.block;
                 if (size_of(type) == 1)
                   tensor.inverse = w.zeros(DType::F32, {m.block == 0 ? 1 : (n + m.block - 1) / m.block});
                 return tensor;
               };
               AdamWUpdate op{};
               op.master = w.floats(DType::F32, {n}, normal(n, 1));
               op.first = moment(m.first);
               op.second = moment(m.second);
               op.learning_rate = 1e-2f;
               op.beta1 = 0.9f;
               op.beta2 = 0.95f;
               op.epsilon = 1e-8f;
               op.weight_decay = 0.1f;
               const UpdateControl control{1, 0.5f, 1, apply};
               op.control = static_cast<const UpdateControl*>(w.bytes(DType::U32, {4}, &control).data);
               for (op.step = 1; op.step <= 3; ++op.step) {
                 op.gradient = w.floats(gradient, {n}, hard(n, static_cast<uint64_t>(op.step)));
                 w.device().adamw(op);
               }
               w.output("master", op.master);
               w.output("first", op.first.values);
               w.output("second", op.second.values);
               if (!op.first.inverse.empty()) w.output("first scales", op.first.inverse);
               if (!op.second.inverse.empty()) w.output("second scales", op.second.inverse);
             }});
      }
    }
  }
}

// ---- products

struct Product {
  DType a, b, out;
  bool a_transposed = false, b_transposed = false, outer = false, accumulate = false;
  GemmClass gemm_class = GemmClass::Fprop;
};

std::vector<uint8_t> random_codes(int64_t count, uint64_t key) {
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<uint8_t>(random_bits(random_key(key, Purpose::Test), i));
    if ((codes[i] & 0x7f) >= 0x60) codes[i] = static_cast<uint8_t>(codes[i] & 0xbf);  // no NaN, no overflow
  }
  return codes;
}

void add_products(std::vector<SelftestCase>& cases, Libraries libraries) {
  const Product products[] = {
      {DType::F32, DType::F32, DType::F32},
      {DType::BF16, DType::BF16, DType::BF16},
      {DType::BF16, DType::BF16, DType::BF16, false, true, false, false, GemmClass::Dgrad},
      {DType::BF16, DType::BF16, DType::F32, true, true, false, true, GemmClass::Wgrad},
      {DType::E4M3, DType::E4M3, DType::BF16},
      {DType::E4M3, DType::E4M3, DType::BF16, false, false, true},
      {DType::E5M2, DType::E4M3, DType::BF16, false, false, false, false, GemmClass::Dgrad},
      {DType::E5M2, DType::E4M3, DType::F32, false, false, false, true, GemmClass::Wgrad},
      {DType::E5M2, DType::E4M3, DType::F32, false, false, true, true, GemmClass::Wgrad},
      {DType::E5M2, DType::E4M3, DType::BF16, false, false, false, true, GemmClass::Wgrad},
  };
  constexpr int64_t m = 96, n = 80, k = 208;
  for (const Product& p : products) {
    // Both sums are within k 2^-24 of the exact one relative to sum |a b|, which random signs put sqrt(k)
    // above the sum; then each is rounded to BF16 (2^-9 of a value).
    const double sums = 2 * std::sqrt(static_cast<double>(k)) * static_cast<double>(k) * 0x1p-24;
    // cuBLASLt's fast accumulation in fprop keeps at least 13 bits of each partial sum.
    const double fast = p.gemm_class == GemmClass::Fprop && size_of(p.a) == 1 ? 0x1p-9 : 0;
    const double bound = libraries == Libraries::Same ? 0 : sums + fast + (p.out == DType::BF16 ? 0x1p-8 : 0);
    cases.push_back(
        {"matmul",
         fmt::format("{}: {} x {} -> {}{}{}", name_of(p.gemm_class), name_of(p.a), name_of(p.b),
                     name_of(p.out), p.outer ? ", outer scales" : "", p.accumulate ? ", accumulated" : ""),
         bound, [=](Workbench& w) {
           const auto operand = [&](DType type, bool transposed, int64_t outer, uint64_t key) {
             Operand x;
             const Shape shape = transposed ? Shape{k, outer} : Shape{outer, k};
             x.transposed = transposed;
             if (size_of(type) == 1) {
               x.values = w.bytes(type, shape, random_codes(outer * k, key).data());
               Values scales(static_cast<size_t>(outer));
               for (size_t i = 0; i < scales.size(); ++i)
                 scales[i] = std::ldexp(1.0f, -static_cast<int>(i % 5));
               x.inverse_scale = w.floats(DType::F32, {outer}, scales).as<float>();
               x.granularity = p.outer ? ScaleGranularity::Outer : ScaleGranularity::Tensor;
             } else {
               x.values = w.floats(type, shape, normal(outer * k, key));
             }
             return x;
           };
           Matmul op;
           op.a = operand(p.a, p.a_transposed, m, 1);
           op.b = operand(p.b, p.b_transposed, n, 2);
           op.out = w.floats(p.out, {m, n}, normal(m * n, 3));
           op.accumulate = p.accumulate;
           op.gemm_class = p.gemm_class;
           w.device().matmul(op);
           w.output("out", op.out);
         }});
  }
}

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
    // 2^-9 each; the result is rounded once more on both sides.
    const double forward = libraries == Libraries::Same ? 0 : 3 * 0x1p-9,
                 backward = libraries == Libraries::Same ? 0 : 6 * 0x1p-9;
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

// ---- the rest

void add_memory(std::vector<SelftestCase>& cases) {
  cases.push_back({"copy", "F32 to BF16 and back", 0, [](Workbench& w) {
                     const Tensor wide = w.floats(DType::F32, {1003}, hard(1003, 1));
                     const Tensor narrow = w.zeros(DType::BF16, {1003}), back = w.zeros(DType::F32, {1003});
                     w.device().copy(narrow, wide);
                     w.device().copy(back, narrow);
                     w.output("narrow", narrow);
                     w.output("back", back);
                   }});
  cases.push_back({"fill", "F32 and BF16", 0, [](Workbench& w) {
                     const Tensor wide = w.zeros(DType::F32, {1003}), narrow = w.zeros(DType::BF16, {1003});
                     w.device().fill(wide, 1.00390625f);
                     w.device().fill(narrow, 1.00390625f);
                     w.output("wide", wide);
                     w.output("narrow", narrow);
                   }});
  cases.push_back({"fill normal", "F32", 0, [](Workbench& w) {
                     const Tensor values = w.zeros(DType::F32, {1003});
                     w.device().fill_normal(values, 0.02f, 42);
                     w.output("values", values);
                   }});
}

}  // namespace

std::vector<SelftestCase> selftest_operations(Libraries libraries) {
  std::vector<SelftestCase> cases;
  add_memory(cases);
  add_casts(cases);
  add_norms(cases);
  add_rope(cases);
  add_swiglu(cases);
  add_ends(cases, libraries);
  add_update(cases);
  add_products(cases, libraries);
  add_attention(cases, libraries);
  return cases;
}

}  // namespace octet
