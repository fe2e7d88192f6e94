// The cases of octet selftest: every Device operation, on random and on adversarial numbers, at shapes that
// are no multiple of anything. Casts and what ends in one: selftest_casts.cpp.
#include <fmt/format.h>

#include <cmath>

#include "analysis/selftest_cases.h"
#include "base/random.h"
#include "device/scales.h"
#include "numerics/bfloat16.h"
#include "numerics/block_codes.h"
#include "numerics/group_codes.h"
#include "numerics/small_float.h"
#include "numerics/sums.h"

namespace octet::selftest {

Values normal(int64_t count, uint64_t key, double deviation) {
  Values values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(deviation * random_normal(random_key(key, Purpose::Test), i));
  return values;
}

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

std::string with_storage(DType storage, const std::string& rest) {
  return fmt::format("{}, {}", name_of(storage), rest);
}

// ---- head and embedding

void add_ends(std::vector<SelftestCase>& cases, Libraries libraries) {
  // log and exp in FP64 may differ by an ulp of FP64 between libraries, which may tip the last rounding of a
  // result: an ulp, 2^-23 of an FP32 value, at most 2^-7 of one in BF16; of FP32 results two roundings may
  // tip.
  const auto bound_of = [&](DType storage) {
    return libraries == Libraries::Same ? 0 : storage == DType::BF16 ? 0x1p-7 : 0x1p-22;
  };
  for (const DType storage : {DType::F32, DType::BF16}) {
    const double bound = bound_of(storage);
    for (const int64_t vocabulary : {int64_t{1}, int64_t{257}, int64_t{3001}}) {
      cases.push_back({"cross entropy", with_storage(storage, fmt::format("5 x {}", vocabulary)), bound,
                       [=](Workbench& w) {
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
          {"embedding forward", with_storage(storage, fmt::format("width {}", width)), 0, [=](Workbench& w) {
             EmbeddingForward op;
             op.out = w.zeros(storage, {tokens, width});
             op.tokens = w.bytes(DType::I32, {tokens}, ids.data());
             op.table = w.floats(storage, {vocabulary, width}, normal(vocabulary * width, 1));
             w.device().embedding_forward(op);
             w.output("out", op.out);
           }});
      for (const DType gradient : {DType::F32, DType::BF16}) {
        cases.push_back(
            {"embedding backward",
             with_storage(storage, fmt::format("into {}, width {}", name_of(gradient), width)), 0,
             [=](Workbench& w) {
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

namespace {

void keep_as_codes(Workbench& w, DType storage, int64_t n) {
  const Tensor codes = w.zeros(DType::E4M3, {n}), scales = w.zeros(DType::U8, {n / code_group}),
               back = w.zeros(storage, {n});
  w.device().encode_groups({.source = w.floats(storage, {n}, hard(n, 1)), .codes = codes, .scales = scales});
  w.device().decode_groups({.codes = codes, .scales = scales, .out = back});
  w.output("codes", codes);
  w.output("scales", scales);
  w.output("decoded", back);
}

// What three ranks would send each other, and its sum.
void encode_and_add_up(Workbench& w, DType storage, int64_t n, int log2_mu) {
  constexpr int64_t pieces = 3;
  const int64_t piece = (n + pieces - 1) / pieces;
  const Tensor messages = w.zeros(DType::U8, {pieces, message_bytes(piece)});
  const Tensor saturated = w.zeros(DType::U32, {1});
  w.device().encode_blocks({.source = w.floats(storage, {n}, hard(n, 1)),
                            .messages = messages,
                            .piece = piece,
                            .log2_mu = log2_mu,
                            .rounding_key = 3,
                            .saturated = saturated});
  Tensor gathered = messages, received = messages;
  gathered.shape = {1, pieces, message_bytes(piece)};
  received.shape = {pieces, 1, message_bytes(piece)};
  const Tensor whole = w.zeros(storage, {n}), sum = w.zeros(storage, {piece});
  w.device().decode_blocks({.messages = gathered, .out = whole, .piece = piece});
  w.device().decode_blocks({.messages = received, .out = sum, .piece = piece});
  const Tensor onto = w.floats(storage, {piece}, normal(piece, 2));
  w.device().decode_blocks({.messages = received, .out = onto, .piece = piece, .accumulate = true});
  w.output("messages", messages);
  w.output("saturated", saturated);
  w.output("decoded", whole);
  w.output("sum", sum);
  w.output("sum onto another", onto);
}

void add_in_order(Workbench& w, DType storage, int64_t n) {
  constexpr int64_t sources = 3;
  const Tensor sum = w.floats(DType::F32, {n}, normal(n, 1));
  w.device().add_in_order({.sum = sum, .sources = w.floats(storage, {sources, n}, hard(sources * n, 2))});
  w.output("sum", sum);
}

void outer_step(Workbench& w, int64_t n) {
  const Tensor outer = w.floats(DType::F32, {n}, hard(n, 1)),
               velocity = w.floats(DType::F32, {n}, hard(n, 2)),
               local = w.floats(DType::F32, {n}, hard(n, 3));
  w.device().outer_difference({outer, local});
  const Tensor difference = w.zeros(DType::F32, {n});
  w.device().copy(difference, local);
  w.device().outer_update({.outer = outer,
                           .velocity = velocity,
                           .local = local,
                           .scale = 1.0f / 3,
                           .learning_rate = 0.7f,
                           .momentum = 0.9f});
  w.output("difference", difference);
  w.output("outer", outer);
  w.output("velocity", velocity);
  w.output("local", local);
}

}  // namespace

void add_update(std::vector<SelftestCase>& cases) {
  constexpr int64_t count = 20000;
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const double scale : {1e-3, 10.0}) {
      cases.push_back({"gradient norm", with_storage(storage, scale > 1 ? "clipped" : "not clipped"), 0,
                       [=](Workbench& w) {
                         const Tensor gradients[] = {w.floats(storage, {count}, normal(count, 1, scale)),
                                                     w.floats(storage, {3}, normal(3, 2, scale)),
                                                     w.floats(storage, {16384}, normal(16384, 3, scale))};
                         const double loss = 12.5;
                         const Tensor sum = w.bytes(DType::F64, {1}, &loss);
                         const Tensor control = w.zeros(DType::U32, {sizeof(UpdateControl) / 4});
                         const int64_t pieces = norm_pieces(count) + 2;
                         const Tensor partials = w.zeros(DType::F64, {pieces});
                         int64_t next = 0;
                         for (const Tensor& gradient : gradients) {
                           const int64_t own = norm_pieces(gradient.elements());
                           w.device().gradient_squares({gradient, partials.slice(next, own)});
                           next += own;
                         }
                         w.device().gradient_norm({.partials = partials,
                                                   .loss_sum = sum,
                                                   .loss_divisor = 4,
                                                   .clip_norm = 1,
                                                   .control = static_cast<UpdateControl*>(control.data)});
                         w.output("control", control);
                       }});
    }
  }
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const int64_t n : {int64_t{3}, int64_t{20003}}) {
      for (const int log2_mu : {0, 2}) {
        cases.push_back({"block codes", with_storage(storage, fmt::format("{}, mu {}", n, 1 << log2_mu)), 0,
                         [=](Workbench& w) { encode_and_add_up(w, storage, n, log2_mu); }});
      }
    }
  }
  for (const DType storage : {DType::F32, DType::BF16})
    for (const int64_t n : {code_group, 1251 * code_group})
      cases.push_back({"kept activations", with_storage(storage, fmt::format("{}", n)), 0,
                       [=](Workbench& w) { keep_as_codes(w, storage, n); }});
  for (const DType storage : {DType::F32, DType::BF16})
    for (const int64_t n : {int64_t{3}, int64_t{20003}})
      cases.push_back({"add in order", with_storage(storage, fmt::format("{}", n)), 0,
                       [=](Workbench& w) { add_in_order(w, storage, n); }});
  for (const int64_t n : {int64_t{3}, int64_t{20003}})
    cases.push_back({"outer step", fmt::format("{}", n), 0, [=](Workbench& w) { outer_step(w, n); }});
  cases.push_back({"add in order", "F64, 12", 0, [](Workbench& w) {
                     const double losses[12] = {1e3, -7.25, 0x1p40, 3, 1e-3, 2.5, -0x1p40, 1, 0, 1e9, 0.1, 5};
                     const Tensor sum = w.bytes(DType::F64, {1}, losses);
                     w.device().add_in_order({.sum = sum, .sources = w.bytes(DType::F64, {12, 1}, losses)});
                     w.output("sum", sum);
                   }});
  cases.push_back({"accumulate sum", "F32, 1000", 0, [](Workbench& w) {
                     const double start = 3;
                     const Tensor sum = w.bytes(DType::F64, {1}, &start);
                     w.device().accumulate_sum(sum, w.floats(DType::F32, {1000}, normal(1000, 1)));
                     w.output("sum", sum);
                   }});
  for (const AmaxAlgorithm algorithm : {AmaxAlgorithm::Max, AmaxAlgorithm::MostRecent}) {
    cases.push_back(
        {"scale table", algorithm == AmaxAlgorithm::Max ? "max, 6 steps" : "most recent, 6 steps", 0,
         [=](Workbench& w) {
           constexpr int64_t window = 4, sites = 10;
           constexpr Scaling scalings[] = {Scaling::Current, Scaling::Quantile, Scaling::Following};
           ScaleTable table;
           for (int64_t i = 0; i < sites; ++i) {
             const Cast cast{i % 2 ? Format::E5M2 : Format::E4M3, i < 5 ? Scaling::Delayed : scalings[i % 3],
                             i % 3 ? ScaleRule::PowerOfTwo : ScaleRule::Exact};
             table.add({fmt::format("site {}", i), 0, cast});
           }
           MemoryPlan measured;
           table.plan(measured, window);
           const auto bytes = static_cast<int64_t>(measured.peak_bytes());
           MemoryPlan placed(w.zeros(DType::U8, {bytes}).data, measured.peak_bytes());
           table.plan(placed, window);
           upload_casts(w.device(), table);
           for (int64_t step = 0; step < 6; ++step) {
             Values amaxes = normal(sites, static_cast<uint64_t>(step), 100);
             for (float& x : amaxes) x = std::fabs(x);
             amaxes[1] = step == 3 ? INFINITY : amaxes[1];
             amaxes[2] = step == 4 ? 0 : amaxes[2];
             amaxes[3] = step == 2 ? NAN : amaxes[3];
             w.device().copy_from_host(table.amax.data, amaxes.data(), table.amax.bytes());
             uint64_t counters[sites][3];
             for (uint64_t i = 0; i < sites; ++i) {
               const uint64_t bits = random_bits(static_cast<uint64_t>(step), i);
               counters[i][0] = (bits >> 8) * (i + 1);
               counters[i][1] = bits % 7 * (bits % 1024);
               counters[i][2] = bits % 5 * (counters[i][0] / 64);
             }
             w.device().copy_from_host(table.counters.data, counters, sizeof counters);
             w.device().scale_table_update({&table, {window, algorithm, 1}, step});
           }
           w.output("history", table.amax_history);
           w.output("scale", table.scale);
           w.output("inverse", table.inverse_scale);
           w.output("amax", table.amax);
           w.output("counters", table.counters);
         }});
  }
}

// ---- products

namespace {

struct Product {
  DType a, b, out;
  bool a_transposed = false, b_transposed = false, outer = false, accumulate = false;
  GemmClass gemm_class = GemmClass::Fprop;
  SmallFloat simulate = {};
  ScaleGranularity a_blocks = ScaleGranularity::Tensor, b_blocks = ScaleGranularity::Tensor;

  ScaleGranularity granularity(bool of_a) const {
    if (outer) return ScaleGranularity::Outer;
    return of_a ? a_blocks : b_blocks;
  }
};
constexpr ScaleGranularity vectors = ScaleGranularity::Vectors, squares = ScaleGranularity::Squares;

std::vector<uint8_t> random_codes(int64_t count, uint64_t key) {
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<uint8_t>(random_bits(random_key(key, Purpose::Test), i));
    if ((codes[i] & 0x7f) >= 0x60) codes[i] = static_cast<uint8_t>(codes[i] & 0xbf);  // no NaN, no overflow
  }
  return codes;
}

}  // namespace

void add_products(std::vector<SelftestCase>& cases, Libraries libraries) {
  const Product products[] = {
      {DType::F32, DType::F32, DType::F32},
      {DType::BF16, DType::BF16, DType::BF16},
      {DType::BF16, DType::BF16, DType::BF16, false, true, false, false, GemmClass::Dgrad},
      {DType::BF16, DType::BF16, DType::F32, true, true, false, true, GemmClass::Wgrad},
      {DType::BF16, DType::BF16, DType::BF16, false, false, false, false, GemmClass::Fprop, {8, 3}},
      {DType::BF16,
       DType::BF16,
       DType::F32,
       true,
       true,
       false,
       true,
       GemmClass::Wgrad,
       {4, 2, SmallRounding::Nearest, Underflow::Clamp}},
      {DType::E4M3, DType::E4M3, DType::BF16},
      {DType::E4M3, DType::E4M3, DType::BF16, false, false, true},
      {DType::E5M2, DType::E4M3, DType::BF16, false, false, false, false, GemmClass::Dgrad},
      {DType::E5M2, DType::E4M3, DType::F32, false, false, false, true, GemmClass::Wgrad},
      {DType::E5M2, DType::E4M3, DType::F32, false, false, true, true, GemmClass::Wgrad},
      {DType::E5M2, DType::E4M3, DType::BF16, false, false, false, true, GemmClass::Wgrad},
      {DType::E4M3,
       DType::E4M3,
       DType::BF16,
       false,
       false,
       false,
       false,
       GemmClass::Fprop,
       {},
       vectors,
       squares},
      {DType::E4M3,
       DType::E4M3,
       DType::F32,
       false,
       false,
       false,
       true,
       GemmClass::Wgrad,
       {},
       vectors,
       vectors},
  };
  constexpr int64_t m = 96, n = 80, k = 208;
  for (const Product& p : products) {
    // Both sums are within k 2^-24 of the exact one relative to sum |a b|, which random signs put sqrt(k)
    // above the sum; then each is rounded to BF16, half an ulp of at most 2^-8.
    const double sums = 2 * std::sqrt(static_cast<double>(k)) * static_cast<double>(k) * 0x1p-24;
    // The FP8 tensor cores of Ada and Hopper add runs of 32 products into 14 bits.  [2412.19437, 3.3.2]
    const double accumulator = size_of(p.a) == 1 ? static_cast<double>(k) / 32 * 0x1p-13 : 0;
    const double bound =
        libraries == Libraries::Same ? 0 : sums + accumulator + (p.out == DType::BF16 ? 0x1p-7 : 0);
    cases.push_back({"matmul",
                     fmt::format("{}: {} x {} -> {}{}{}", name_of(p.gemm_class), name_of(p.a), name_of(p.b),
                                 name_of(p.out),
                                 p.outer                 ? ", outer scales"
                                 : is_blocks(p.a_blocks) ? ", scales of blocks"
                                                         : "",
                                 p.accumulate ? ", accumulated" : "") +
                         (p.simulate.reduces() ? ", reduced to " + name_of(p.simulate) : std::string()),
                     bound,
                     [=](Workbench& w) {
                       const auto operand = [&](DType type, bool transposed, int64_t outer, uint64_t key) {
                         Operand x;
                         x.granularity = p.granularity(key == 1);
                         const Shape shape = transposed ? Shape{k, outer} : Shape{outer, k};
                         x.transposed = transposed;
                         if (size_of(type) == 1) {
                           x.values = w.bytes(type, shape, random_codes(outer * k, key).data());
                           const Shape of_scales = scale_shape(x.granularity, outer, k);
                           Values scales(static_cast<size_t>(of_scales.elements()));
                           for (size_t i = 0; i < scales.size(); ++i)
                             scales[i] = std::ldexp(1.0f, -static_cast<int>(i % 5));
                           x.inverse_scale = w.floats(DType::F32, of_scales, scales).as<float>();
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
                       op.simulate = p.simulate;
                       op.fast_accumulation = size_of(p.a) == 1 && p.gemm_class == GemmClass::Fprop &&
                                              !is_blocks(p.a_blocks);  // as the recipe fp8
                       w.device().matmul(op);
                       w.output("out", op.out);
                     },
                     size_of(p.a) == 1, false, is_blocks(p.a_blocks)});
  }
}

// The weight gradient of a long micro-batch: all products of one sign, so nothing cancels and what the tensor
// cores drop adds up.
void add_long_sums(std::vector<SelftestCase>& cases, Libraries libraries) {
  constexpr int64_t m = 32, n = 32, k = 16384;
  // Without fast accumulation a sum stays in the tensor cores for at most 128 products, four of their
  // instructions, each of which drops less than 2^-13 of it; with it that grows with k / 32 (add_products).
  // In FP32 the order of the other sums moves a few 2^-24.
  const double bound = libraries == Libraries::Same ? 0 : 4 * 0x1p-13;
  for (const DType a : {DType::E4M3, DType::E5M2})
    cases.push_back({"matmul", fmt::format("{} x F8_E4M3 -> F32, {} products of one sign", name_of(a), k),
                     bound,
                     [=](Workbench& w) {
                       const auto positive = [&](DType type, int64_t outer, uint64_t key) {
                         std::vector<uint8_t> codes = random_codes(outer * k, key);
                         for (uint8_t& code : codes) code &= 0x7f;
                         Operand x;
                         x.values = w.bytes(type, {outer, k}, codes.data());
                         x.inverse_scale = w.floats(DType::F32, {1}, {1.0f}).as<float>();
                         return x;
                       };
                       Matmul op;
                       op.a = positive(a, m, 1);
                       op.b = positive(DType::E4M3, n, 2);
                       op.out = w.zeros(DType::F32, {m, n});
                       op.gemm_class = GemmClass::Wgrad;
                       w.device().matmul(op);
                       w.output("out", op.out);
                     },
                     true});
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

}  // namespace octet::selftest

namespace octet {

std::vector<SelftestCase> selftest_operations(Libraries libraries) {
  using namespace selftest;
  std::vector<SelftestCase> cases;
  add_memory(cases);
  add_casts(cases);
  add_producers(cases);
  add_layers(cases);
  add_ends(cases, libraries);
  add_update(cases);
  add_optimizer(cases);
  add_products(cases, libraries);
  add_long_sums(cases, libraries);
  add_attention(cases, libraries);
  add_observation(cases);
  add_float8_attention(cases, libraries);
  return cases;
}

}  // namespace octet
