// What blocks are made of beside the Llama's: norms and gains of a branch, regularised queries and keys,
// activations with one input, and a multiplier on the embedding.
#include <fmt/format.h>

#include <utility>

#include "analysis/selftest_cases.h"

namespace octet::selftest {
namespace {

// Norms and gains of a branch before it is added, with and without a norm of the sum.
void add_branch_norms(std::vector<SelftestCase>& cases) {
  constexpr int64_t rows = 70;
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (size_t v = 0; v < producer_variant_count(); ++v) {
      for (const int64_t width : {int64_t{1}, int64_t{200}, int64_t{1031}}) {
        for (const bool normalised : {false, true}) {
          for (const bool norm_follows : {false, true}) {
            const std::string what =
                fmt::format("{}, {} x {}, {} branch{}", producer_variant_name(v), rows, width,
                            normalised ? "normalised" : "scaled", norm_follows ? "" : ", sum as it is");
            cases.push_back({"rmsnorm forward", with_storage(storage, what), 0, [=](Workbench& w) {
                               RmsNormForward op;
                               op.residual = w.floats(storage, {rows, width}, normal(rows * width, 1, 3));
                               op.branch = w.floats(storage, {rows, width}, normal(rows * width, 2));
                               op.residual_out = w.zeros(storage, {rows, width});
                               op.branch_gain = w.floats(DType::F32, {width}, normal(width, 4));
                               if (normalised) op.branch_rstd = w.zeros(DType::F32, {rows});
                               if (normalised && norm_follows)
                                 op.stream_factor = 0.9f, op.branch_factor = 0.3f;
                               op.out = producer_target(w, v, storage, rows, width);
                               if (norm_follows) {
                                 op.gain = w.floats(DType::F32, {width}, normal(width, 3));
                                 op.rstd = w.zeros(DType::F32, {rows});
                               } else {
                                 op.out.high = op.residual_out;
                               }
                               w.device().rmsnorm_forward(op);
                               w.output("sum", op.residual_out);
                               if (normalised) w.output("branch rstd", op.branch_rstd);
                               if (norm_follows) w.output("rstd", op.rstd);
                               compare_cast(w, op.out);
                             }});
          }
        }
        for (const bool weighted : {false, true})
          cases.push_back(
              {"rmsnorm backward",
               with_storage(storage, fmt::format("{}, {} x {}, {}", producer_variant_name(v), rows, width,
                                                 weighted ? "of a weighted branch" : "a scale")),
               0, [=](Workbench& w) {
                 RmsNormBackward op;
                 op.out_gradient = w.floats(storage, {rows, width}, normal(rows * width, 1, 1e-3));
                 op.residual = w.floats(storage, {rows, width}, normal(rows * width, 2));
                 op.gain = w.floats(DType::F32, {width}, normal(width, 3));
                 if (weighted) {
                   op.rstd = w.floats(DType::F32, {rows}, normal(rows, 4));
                   op.stream_factor = 0.9f, op.branch_factor = 0.3f;
                 }
                 op.gain_gradient = w.floats(DType::F32, {width}, normal(width, 5));
                 op.residual_gradient = producer_target(w, v, storage, rows, width);
                 w.device().rmsnorm_backward(op);
                 w.output("gain gradient", op.gain_gradient);
                 if (weighted) w.output("stream gradient", op.out_gradient);
                 compare_cast(w, op.residual_gradient);
               }});
      }
    }
  }
}

// RoPE behind a regulariser of queries and keys.
void add_query_key_norms(std::vector<SelftestCase>& cases) {
  constexpr int64_t windows = 2, context = 37, rows = windows * context;
  constexpr int heads = 4, kv_heads = 2;
  const std::pair<QkNorm, const char*> kinds[] = {
      {QkNorm::RMS, "rms"}, {QkNorm::RMSFrozen, "rms_frozen"}, {QkNorm::Tanh, "tanh"}};
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (size_t v = 0; v < producer_variant_count(); ++v) {
      for (const int head_width : {6, 64, 128}) {
        for (const auto& [kind, name] : kinds) {
          const int64_t width = (heads + 2 * kv_heads) * head_width, kept = (heads + kv_heads) * head_width;
          const std::string variant = with_storage(
              storage, fmt::format("{}, heads of {}, {}", producer_variant_name(v), head_width, name));
          const auto norm = [=, kind = kind](Workbench& w) {
            QueryKeyNorm n;
            n.kind = kind;
            n.kept = w.floats(storage, {rows, kept}, normal(rows * kept, 7));
            const int64_t gains = kind == QkNorm::RMS ? head_width : 1;
            if (!is_trained(kind)) return n;
            n.query_gain = w.floats(DType::F32, {gains}, normal(gains, 8));
            n.key_gain = w.floats(DType::F32, {gains}, normal(gains, 9));
            return n;
          };
          if (v == 0) {
            cases.push_back({"rope forward", variant, 0, [=](Workbench& w) {
                               RopeForward op{};
                               op.qkv = w.floats(storage, {rows, width}, normal(rows * width, 1));
                               op.bias = w.floats(DType::F32, {width}, normal(width, 2));
                               op.cosine = w.floats(DType::F32, {context, head_width / 2},
                                                    rope_table(context, head_width / 2, false));
                               op.sine = w.floats(DType::F32, {context, head_width / 2},
                                                  rope_table(context, head_width / 2, true));
                               op.heads = heads, op.kv_heads = kv_heads, op.head_width = head_width;
                               op.norm = norm(w);
                               w.device().rope_forward(op);
                               w.output("qkv", op.qkv);
                               w.output("kept", op.norm.kept);
                             }});
          }
          cases.push_back(
              {"rope backward", variant, 0, [=](Workbench& w) {
                 RopeBackward op{};
                 op.qkv_gradient = w.floats(storage, {rows, width}, normal(rows * width, 1, 1e-3));
                 op.cosine = w.floats(DType::F32, {context, head_width / 2},
                                      rope_table(context, head_width / 2, false));
                 op.sine = w.floats(DType::F32, {context, head_width / 2},
                                    rope_table(context, head_width / 2, true));
                 op.heads = heads, op.kv_heads = kv_heads, op.head_width = head_width;
                 op.norm = norm(w);
                 const bool trained = !op.norm.query_gain.empty();
                 if (trained) op.query_gain_gradient = w.zeros(DType::F32, op.norm.query_gain.shape);
                 if (trained) op.key_gain_gradient = w.zeros(DType::F32, op.norm.key_gain.shape);
                 op.out = producer_target(w, v, storage, rows, width);
                 op.out.high = op.qkv_gradient;
                 w.device().rope_backward(op);
                 if (trained) w.output("query gain gradient", op.query_gain_gradient);
                 if (trained) w.output("key gain gradient", op.key_gain_gradient);
                 compare_cast(w, op.out);
               }});
        }
      }
    }
  }
}

void add_activations(std::vector<SelftestCase>& cases) {
  const std::pair<Activation, const char*> activations[] = {
      {Activation::GELU, "gelu"}, {Activation::ReLU2, "relu2"}, {Activation::XIELU, "xielu"}};
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const auto& [activation, name] : activations) {
      for (const int64_t width : {int64_t{5}, int64_t{264}, int64_t{1032}}) {
        constexpr int64_t rows = 70;
        const std::string variant = with_storage(storage, fmt::format("{}, {} x {}", name, rows, width));
        cases.push_back({"activation forward", variant, 0, [=, activation = activation](Workbench& w) {
                           ActivationForward op{};
                           op.activation = activation;
                           op.x = w.floats(storage, {rows, width}, normal(rows * width, 1, 4));
                           op.positive = w.floats(DType::F32, {1}, {0.2f});
                           op.negative = w.floats(DType::F32, {1}, {-1.1f});
                           op.mode = SmoothSwiGLU::Dual;
                           op.out = dual_target(w, storage, rows, width);
                           w.device().activation_forward(op);
                           compare_cast(w, op.out);
                         }});
        for (size_t v = 0; v < producer_variant_count(); ++v) {
          cases.push_back({"activation backward",
                           with_storage(storage, fmt::format("{}, {}, {} x {}", name,
                                                             producer_variant_name(v), rows, width)),
                           0, [=, activation = activation](Workbench& w) {
                             ActivationBackward op{};
                             op.activation = activation;
                             op.x = w.floats(storage, {rows, width}, normal(rows * width, 1, 4));
                             op.h_gradient = w.floats(storage, {rows, width}, normal(rows * width, 2, 1e-3));
                             op.positive = w.floats(DType::F32, {1}, {0.2f});
                             op.negative = w.floats(DType::F32, {1}, {-1.1f});
                             op.positive_gradient = w.zeros(DType::F32, {1});
                             op.negative_gradient = w.zeros(DType::F32, {1});
                             op.out = producer_target(w, v, storage, rows, width);
                             w.device().activation_backward(op);
                             w.output("positive gradient", op.positive_gradient);
                             w.output("negative gradient", op.negative_gradient);
                             compare_cast(w, op.out);
                           }});
        }
      }
    }
  }
}

void add_multiplied_embedding(std::vector<SelftestCase>& cases) {
  constexpr int64_t tokens = 300, vocabulary = 41;
  std::vector<int32_t> ids(tokens);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * i % vocabulary);
  for (const DType storage : {DType::F32, DType::BF16}) {
    for (const int64_t width : {int64_t{3}, int64_t{136}}) {
      cases.push_back({"embedding forward", with_storage(storage, fmt::format("width {}, multiplied", width)),
                       0, [=](Workbench& w) {
                         EmbeddingForward op;
                         op.out = w.zeros(storage, {tokens, width});
                         op.tokens = w.bytes(DType::I32, {tokens}, ids.data());
                         op.table = w.floats(storage, {vocabulary, width}, normal(vocabulary * width, 1));
                         op.multiplier = 50.3f;
                         w.device().embedding_forward(op);
                         w.output("out", op.out);
                       }});
      cases.push_back(
          {"embedding backward", with_storage(storage, fmt::format("width {}, multiplied", width)), 0,
           [=](Workbench& w) {
             EmbeddingBackward op;
             op.table_gradient = w.floats(DType::F32, {vocabulary, width}, normal(vocabulary * width, 1));
             op.tokens = w.bytes(DType::I32, {tokens}, ids.data());
             op.out_gradient = w.floats(storage, {tokens, width}, normal(tokens * width, 2));
             op.multiplier = 50.3f;
             w.device().embedding_backward(op);
             w.output("gradient", op.table_gradient);
           }});
    }
  }
}

}  // namespace

void add_layers(std::vector<SelftestCase>& cases) {
  add_branch_norms(cases);
  add_query_key_norms(cases);
  add_activations(cases);
  add_multiplied_embedding(cases);
}

}  // namespace octet::selftest
