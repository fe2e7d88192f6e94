// Casts and the operations that end in one.
#include <fmt/format.h>

#include <cmath>
#include <iterator>
#include <limits>

#include "analysis/selftest_cases.h"
#include "base/random.h"
#include "device/scales.h"
#include "numerics/bfloat16.h"

namespace octet::selftest {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

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
  float history = 0;                                       // the site's scale from earlier steps
  float poison = 0;                                        // one value of the tensor; 0: none
  ScaleGranularity granularity = ScaleGranularity::Outer;  // of row and column scales
  float smooth_quant = 0;                                  // alpha
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
  out.granularity = v.granularity;
  if (v.row_scales) out.row_inverse_scale = w.zeros(DType::F32, scale_shape(v.granularity, rows, columns));
  if (v.column_scales)
    out.column_inverse_scale = w.zeros(DType::F32, scale_shape(v.granularity, columns, rows));
  if (v.row_factor) {
    Values factors = normal(rows, 77);
    out.row_factor = w.floats(DType::F32, {rows}, factors);
    out.column_site = w.site(v.history);
  }
  if (v.smooth_quant > 0) {
    Values weight_amax = normal(columns, 78, 0.1);
    for (size_t i = 0; i < weight_amax.size(); ++i)
      weight_amax[i] = i % 17 == 3 ? 0 : std::fabs(weight_amax[i]);
    out.channel_weight_amax = w.floats(DType::F32, {columns}, weight_amax);
    out.channel_exponent = v.smooth_quant;
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
    {.name = "quantile, saturating", .scaling = Scaling::Quantile, .history = 4096},
    {.name = "following, first step", .scaling = Scaling::Following},
    {.name = "per row and per column", .row_scales = true, .column_scales = true},
    {.name = "rowwise", .row_scales = true, .column_scales = true, .scaling = Scaling::Rowwise},
    {.name = "blocks",
     .row_scales = true,
     .column_scales = true,
     .scaling = Scaling::Blockwise,
     .granularity = ScaleGranularity::Vectors},
    {.name = "blocks, exact, stochastic, with a NaN",
     .row_scales = true,
     .column_scales = true,
     .scaling = Scaling::Blockwise,
     .rule = ScaleRule::Exact,
     .rounding = Rounding::Stochastic,
     .poison = NAN,
     .granularity = ScaleGranularity::Vectors},
    {.name = "square blocks",
     .row_scales = true,
     .column_scales = true,
     .scaling = Scaling::Blockwise,
     .granularity = ScaleGranularity::Squares},
    {.name = "per row", .row_scales = true},
    {.name = "per column", .column_scales = true},
    {.name = "SmoothQuant", .column_scales = true, .smooth_quant = 0.5f},
    {.name = "SmoothQuant, stochastic, with a NaN",
     .column_scales = true,
     .rounding = Rounding::Stochastic,
     .poison = NAN,
     .smooth_quant = 0.8f},
    {.name = "row factors", .row_factor = true},
    {.name = "row factors and row scales", .row_scales = true, .row_factor = true},
    {.name = "column factors", .copies = Copies::Row, .column_factor = true},
    {.name = "stochastic", .rounding = Rounding::Stochastic},
    {.name = "with an infinity", .poison = infinity},
    {.name = "with a NaN", .row_scales = true, .column_scales = true, .poison = NAN},
};

// A tensor cast in two parts, of which each has its own site, and transposed: what ranks do with weights.
void add_parts(std::vector<SelftestCase>& cases) {
  for (const CastVariant& v : {CastVariant{.name = "current"},
                               CastVariant{.name = "delayed", .scaling = Scaling::Delayed, .history = 8},
                               CastVariant{.name = "stochastic", .rounding = Rounding::Stochastic},
                               CastVariant{.name = "with a NaN", .poison = NAN}}) {
    for (const DType storage : {DType::F32, DType::BF16}) {
      cases.push_back(
          {"cast of parts", with_storage(storage, v.name), 0, [=](Workbench& w) {
             Values values = hard(cast_rows * cast_columns, 1);
             if (v.poison != 0) values[5 * cast_columns + 7] = v.poison;
             const Tensor source = w.floats(storage, {cast_rows * cast_columns}, values),
                          amax = w.zeros(DType::F32, {1}),
                          codes = w.zeros(DType::E4M3, {cast_rows, cast_columns}),
                          column = w.zeros(DType::E4M3, {cast_columns, cast_rows});
             constexpr int64_t cuts[] = {0, 6 * 1024, cast_rows * cast_columns};
             for (int part = 0; part < 2; ++part)
               w.device().measure_amax({source.slice(cuts[part], cuts[part + 1] - cuts[part]), amax});
             for (int part = 0; part < 2; ++part) {
               const int64_t count = cuts[part + 1] - cuts[part];
               CastOperation op;
               op.source = source.slice(cuts[part], count);
               if (part == 0) op.source.shape = {6, 1024};
               op.out.row = codes.flat().slice(cuts[part], count);
               op.out.row.shape = op.source.shape;
               op.out.cast = {Format::E4M3, v.scaling, v.rule, v.rounding};
               op.out.site = w.site(v.history);
               op.out.rounding_key = 12345;
               op.amax = amax;
               op.first = cuts[part];
               w.device().cast(op);
               w.output("site", op.out.site);
             }
             w.device().transpose_codes({codes, column});
             w.output("amax", amax);
             w.output("codes", codes);
             w.output("transposed codes", column);
           }});
    }
  }
}

}  // namespace

void add_casts(std::vector<SelftestCase>& cases) {
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const Format format : {Format::E4M3, Format::E5M2}) {
      for (const CastVariant& v : cast_variants) {
        cases.push_back({"cast",
                         with_storage(storage, fmt::format("{}, {}", name_of(dtype_of(format)), v.name)), 0,
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
  add_parts(cases);
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

namespace {

// What a producer is asked for: nothing, current, delayed with history, per row and column.
const CastVariant producer_variants[] = {
    {.name = "no codes"},
    {.name = "current E4M3"},
    {.name = "delayed E4M3", .scaling = Scaling::Delayed, .counted = false, .history = 16},
    {.name = "delayed E4M3, first step", .scaling = Scaling::Delayed, .counted = false},
    {.name = "blocks",
     .row_scales = true,
     .column_scales = true,
     .scaling = Scaling::Blockwise,
     .granularity = ScaleGranularity::Vectors},
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
      // 3072 and 6144: rows that a block keeps just fill 48 KiB.
      for (const int64_t width :
           {int64_t{1}, int64_t{200}, int64_t{1031}, int64_t{2048}, int64_t{3072}, int64_t{6144}}) {
        if (width > 2048 && (storage == DType::F32 || &v != &producer_variants[1])) continue;
        const int64_t rows = width > 2048 ? 9 : 70;
        const std::string variant = with_storage(storage, fmt::format("{}, {} x {}", v.name, rows, width));
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

void add_rope(std::vector<SelftestCase>& cases) {
  constexpr int64_t windows = 2, context = 37, rows = windows * context;
  constexpr int heads = 4, kv_heads = 2;
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const CastVariant& v : producer_variants) {
      for (const int head_width : {6, 64}) {
        for (const bool biased : {false, true}) {
          const int64_t width = (heads + 2 * kv_heads) * head_width;
          const std::string variant = with_storage(
              storage, fmt::format("{}, heads of {}{}", v.name, head_width, biased ? ", bias" : ""));
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
      {SmoothSwiGLU::None, {.name = "SmoothQuant", .column_scales = true, .smooth_quant = 0.5f}},
  };
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const int64_t width : {int64_t{5}, int64_t{264}, int64_t{12288}}) {
      if (width > 264 && storage == DType::F32) continue;
      const int64_t rows = width > 264 ? 9 : 70;  // column amaxes of 12288 just fill 48 KiB
      for (const Mode& m : modes) {
        cases.push_back({"swiglu forward",
                         with_storage(storage, fmt::format("{}, {} x {}", m.v.name, rows, width)), 0,
                         [=](Workbench& w) {
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
        cases.push_back({"swiglu backward",
                         with_storage(storage, fmt::format("{}, {} x {}", v.name, rows, width)), 0,
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

}  // namespace

size_t producer_variant_count() { return std::size(producer_variants); }
const char* producer_variant_name(size_t variant) { return producer_variants[variant].name; }
CastTarget producer_target(Workbench& w, size_t variant, DType storage, int64_t rows, int64_t columns) {
  return producer_target(w, producer_variants[variant], storage, rows, columns);
}
CastTarget dual_target(Workbench& w, DType storage, int64_t rows, int64_t columns) {
  const CastVariant dual{.name = "dual", .row_scales = true, .column_scales = true};
  CastTarget out = cast_target(w, dual, Format::E4M3, rows, columns);
  out.high = w.zeros(storage, {rows, columns});
  return out;
}
void compare_cast(Workbench& w, const CastTarget& out) { compare_target(w, out); }

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

void add_producers(std::vector<SelftestCase>& cases) {
  add_norms(cases);
  add_rope(cases);
  add_swiglu(cases);
}

}  // namespace octet::selftest
