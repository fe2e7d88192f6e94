#include "device/cuda/attention_graph.h"

#include <vector>

namespace octet {

namespace {

constexpr cudnnDataType_t bf16 = CUDNN_DATA_BFLOAT16, f32 = CUDNN_DATA_FLOAT, i32 = CUDNN_DATA_INT32,
                          boolean = CUDNN_DATA_BOOLEAN, e4m3 = CUDNN_DATA_FP8_E4M3,
                          e5m2 = CUDNN_DATA_FP8_E5M2;

int64_t qkv_width(const AttentionKey& key) { return (key.heads + 2 * key.kv_heads) * key.head_width; }

using Id = CudnnGraph::TensorId;
Id id(AttentionTensor tensor) { return static_cast<Id>(tensor); }

// What both directions are made of.
class Attention {
 public:
  Attention(const Cudnn& library, const AttentionKey& key)
      : graph_(std::make_unique<CudnnGraph>(library)),
        key_(key),
        b_(key.batch),
        h_(key.heads),
        s_(key.context),
        scores_(packed({b_, h_, s_, s_})),
        rows_(packed({b_, h_, s_, 1})) {}

  std::unique_ptr<CudnnGraph> forward();
  std::unique_ptr<CudnnGraph> backward();
  std::unique_ptr<CudnnGraph> float8_forward();
  std::unique_ptr<CudnnGraph> float8_backward();

 private:
  // A part of the packed rows with this many heads.
  GraphShape part(int64_t heads) const {
    const int64_t width = qkv_width(key_);
    return {{b_, heads, s_, key_.head_width}, {s_ * width, key_.head_width, width, 1}};
  }
  GraphShape out_shape() const {
    const int64_t width = h_ * key_.head_width;
    return {{b_, h_, s_, key_.head_width}, {s_ * width, key_.head_width, width, 1}};
  }
  GraphShape whole_heads() const { return packed({b_, h_, s_, key_.head_width}); }
  bool grouped() const { return key_.kv_heads != key_.heads; }

  Id memory(AttentionTensor tensor, const GraphShape& shape, cudnnDataType_t type = bf16) {
    return graph_->memory(id(tensor), shape, type);
  }
  Id number(AttentionTensor tensor) { return graph_->number(id(tensor)); }
  Id scores(cudnnDataType_t type = f32) { return graph_->virtual_tensor(scores_, type); }
  Id rows() { return graph_->virtual_tensor(rows_, f32); }
  Id score_map(cudnnPointwiseMode_t mode, Id x, Id b = 0, cudnnDataType_t type = f32) {
    return graph_->pointwise({.mode = mode, .x = x, .b = b}, scores(type));
  }

  // Column above row: masked.
  Id causal(Id x) {
    const Id masked = number(AttentionTensor::Masked);
    const auto index = [&](int64_t axis) {
      return graph_->pointwise({.mode = CUDNN_POINTWISE_GEN_INDEX, .x = x, .precision = i32, .axis = axis},
                               scores(i32));
    };
    const Id row = index(2), column = index(3);
    const Id visible = graph_->pointwise(
        {.mode = CUDNN_POINTWISE_CMP_GE, .x = row, .b = column, .precision = boolean}, scores(boolean));
    return graph_->pointwise(
        {.mode = CUDNN_POINTWISE_BINARY_SELECT, .x = x, .b = masked, .condition = visible}, scores());
  }
  // out += scores^T x, for a key or value gradient: a sum over the query heads that share it.
  void transposed_product(Id score, Id x, AttentionTensor gradient) {
    const Id turned =
        graph_->reshape(score, graph_->virtual_tensor({scores_.sizes, {h_ * s_ * s_, s_ * s_, 1, s_}}, bf16));
    const Id out = memory(gradient, part(key_.kv_heads));
    if (!grouped()) {
      graph_->matmul(turned, x, out);
      return;
    }
    const Id all_heads = graph_->matmul(turned, x, graph_->virtual_tensor(whole_heads(), bf16));
    graph_->reduce(CUDNN_REDUCE_TENSOR_ADD, all_heads, out);
  }

  // ---- in FP8

  Id device_number(AttentionTensor tensor) {
    for (const auto& known : numbers_)
      if (known == tensor) return id(tensor);
    numbers_.push_back(tensor);
    return graph_->device_number(id(tensor));
  }
  Id times(Id x, AttentionTensor factor, Id out) {
    return graph_->pointwise({.mode = CUDNN_POINTWISE_MUL, .x = x, .b = device_number(factor)}, out);
  }
  void amax(Id x, AttentionTensor of) { graph_->reduce(CUDNN_REDUCE_TENSOR_AMAX, x, device_number(of)); }
  // A product of codes with its scales: where it goes, and what goes to its place.
  struct CodeProduct {
    Id a, b;
    AttentionTensor a_inverse, b_inverse, scale, amax, out;
    GraphShape out_shape;
    cudnnDataType_t type;
  };
  void code_product(const CodeProduct& p) {
    const bool sum = p.out_shape.sizes[1] != h_;  // over the query heads that share a key head
    const GraphShape shape = packed(p.out_shape.sizes);
    Id x = graph_->matmul(p.a, p.b, graph_->virtual_tensor(whole_heads()));
    if (sum) x = graph_->reduce(CUDNN_REDUCE_TENSOR_ADD, x, graph_->virtual_tensor(shape));
    x = times(x, p.a_inverse, graph_->virtual_tensor(shape));
    x = times(x, p.b_inverse, graph_->virtual_tensor(shape));
    times(x, p.scale, memory(p.out, p.out_shape, p.type));
    amax(x, p.amax);
  }
  // scale Q K^T, masked.
  Id float8_scores(Id query, Id key, Id scale) {
    Id x = graph_->matmul(query, key, scores());
    x = score_map(CUDNN_POINTWISE_MUL, x, scale);
    x = times(x, AttentionTensor::QueryInverse, scores());
    return causal(times(x, AttentionTensor::KeyInverse, scores()));
  }
  Id turned(Id score, cudnnDataType_t type) {
    return graph_->reshape(score,
                           graph_->virtual_tensor({scores_.sizes, {h_ * s_ * s_, s_ * s_, 1, s_}}, type));
  }

  std::unique_ptr<CudnnGraph> graph_;
  std::vector<AttentionTensor> numbers_;
  AttentionKey key_;
  int64_t b_, h_, s_;
  GraphShape scores_, rows_;
};

std::unique_ptr<CudnnGraph> Attention::forward() {
  const Id query = memory(AttentionTensor::Query, part(h_));
  const Id key = memory(AttentionTensor::Key, transposed(part(key_.kv_heads)));
  const Id value = memory(AttentionTensor::Value, part(key_.kv_heads));
  const Id out = memory(AttentionTensor::Out, out_shape());
  const Id log_sum_exp = memory(AttentionTensor::LogSumExp, rows_, f32);
  const Id scale = number(AttentionTensor::SoftmaxScale);

  Id x = graph_->matmul(query, key, scores());
  x = score_map(CUDNN_POINTWISE_MUL, x, scale);
  x = causal(x);
  const Id largest = graph_->reduce(CUDNN_REDUCE_TENSOR_MAX, x, rows());
  x = score_map(CUDNN_POINTWISE_SUB, x, largest);
  x = score_map(CUDNN_POINTWISE_EXP, x);
  const Id sum = graph_->reduce(CUDNN_REDUCE_TENSOR_ADD, x, rows());
  const Id log = graph_->pointwise({.mode = CUDNN_POINTWISE_LOG, .x = sum}, rows());
  graph_->pointwise({.mode = CUDNN_POINTWISE_ADD, .x = largest, .b = log}, log_sum_exp);
  const Id probability = score_map(CUDNN_POINTWISE_DIV, x, sum, bf16);
  graph_->matmul(probability, value, out);
  return std::move(graph_);
}

// P = exp(scale Q K^T - lse);  dV = P^T dO;  dP = dO V^T;  dS = P (dP - sum(O dO)) scale;  dK = dS^T Q;
// dQ = dS K.  [Dao et al. 2022, Algorithm 4]
std::unique_ptr<CudnnGraph> Attention::backward() {
  const Id query = memory(AttentionTensor::Query, part(h_));
  const Id key = memory(AttentionTensor::Key, transposed(part(key_.kv_heads)));
  const Id value = memory(AttentionTensor::Value, transposed(part(key_.kv_heads)));
  const Id out = memory(AttentionTensor::Out, out_shape());
  const Id out_gradient = memory(AttentionTensor::OutGradient, out_shape());
  const Id log_sum_exp = memory(AttentionTensor::LogSumExp, rows_, f32);
  const Id scale = number(AttentionTensor::SoftmaxScale);
  const Id one = number(AttentionTensor::One);

  const GraphShape products{out_shape().sizes,
                            {h_ * s_ * key_.head_width, s_ * key_.head_width, h_ * key_.head_width, 1}};
  const Id product = graph_->pointwise({.mode = CUDNN_POINTWISE_MUL, .x = out_gradient, .b = out},
                                       graph_->virtual_tensor(products));
  const Id product_sum = graph_->reduce(CUDNN_REDUCE_TENSOR_ADD, product, rows());
  // Times one, and written: this is where cuDNN splits the graph into its kernels.
  const Id out_products = graph_->pointwise({.mode = CUDNN_POINTWISE_MUL, .x = product_sum, .b = one},
                                            memory(AttentionTensor::OutProducts, rows_, f32));

  Id x = graph_->matmul(query, key, scores());
  x = score_map(CUDNN_POINTWISE_MUL, x, scale);
  x = score_map(CUDNN_POINTWISE_SUB, x, log_sum_exp);
  x = causal(x);
  const Id probability = score_map(CUDNN_POINTWISE_EXP, x);
  transposed_product(probability, out_gradient, AttentionTensor::ValueGradient);

  x = graph_->matmul(out_gradient, value, scores());
  x = score_map(CUDNN_POINTWISE_SUB, x, out_products);
  x = score_map(CUDNN_POINTWISE_MUL, x, probability);
  const Id score_gradient = score_map(CUDNN_POINTWISE_MUL, x, scale, bf16);
  transposed_product(score_gradient, query, AttentionTensor::KeyGradient);

  const Id key_rows = graph_->reshape(key, graph_->virtual_tensor(part(key_.kv_heads), bf16));
  const Id query_gradient = memory(AttentionTensor::QueryGradient, part(h_));
  if (key_.deterministic) {
    graph_->matmul(score_gradient, key_rows, query_gradient);
  } else {
    const Id accumulator = memory(AttentionTensor::QueryAccumulator, whole_heads(), f32);
    graph_->matmul(score_gradient, key_rows, accumulator);
    graph_->pointwise({.mode = CUDNN_POINTWISE_IDENTITY, .x = accumulator}, query_gradient);
  }
  return std::move(graph_);
}

// The operations and their order are those by which cuDNN recognises FP8 flash attention.
// [cudnn-frontend 1.2x, SDPAFP8Node, SDPAFP8BackwardNode, MatmulFP8Node]
std::unique_ptr<CudnnGraph> Attention::float8_forward() {
  const Id query = memory(AttentionTensor::Query, part(h_), e4m3);
  const Id key = memory(AttentionTensor::Key, transposed(part(key_.kv_heads)), e4m3);
  const Id value = memory(AttentionTensor::Value, part(key_.kv_heads), e4m3);
  const Id log_sum_exp = memory(AttentionTensor::LogSumExp, rows_, f32);

  Id x = float8_scores(query, key, number(AttentionTensor::SoftmaxScale));
  const Id largest = graph_->reduce(CUDNN_REDUCE_TENSOR_MAX, x, rows());
  x = score_map(CUDNN_POINTWISE_SUB, x, largest);
  x = score_map(CUDNN_POINTWISE_EXP, x);
  const Id sum = graph_->reduce(CUDNN_REDUCE_TENSOR_ADD, x, rows());
  const Id log = graph_->pointwise({.mode = CUDNN_POINTWISE_LOG, .x = sum}, rows());
  graph_->pointwise({.mode = CUDNN_POINTWISE_ADD, .x = largest, .b = log}, log_sum_exp);
  const Id probability = score_map(CUDNN_POINTWISE_DIV, x, sum);
  amax(probability, AttentionTensor::ProbabilityAmax);
  code_product({.a = times(probability, AttentionTensor::ProbabilityScale, scores(e4m3)),
                .b = value,
                .a_inverse = AttentionTensor::ProbabilityInverse,
                .b_inverse = AttentionTensor::ValueInverse,
                .scale = AttentionTensor::OutScale,
                .amax = AttentionTensor::OutAmax,
                .out = AttentionTensor::Out,
                .out_shape = out_shape(),
                .type = e4m3});
  return std::move(graph_);
}

std::unique_ptr<CudnnGraph> Attention::float8_backward() {
  using T = AttentionTensor;
  const GraphShape of_queries = part(h_), of_keys = part(key_.kv_heads);
  const Id query = memory(T::Query, of_queries, e4m3);
  const Id key = memory(T::Key, transposed(of_keys), e4m3);
  const Id value = memory(T::Value, transposed(of_keys), e4m3);
  const Id out = memory(T::Out, out_shape(), e4m3);
  const Id out_gradient = memory(T::OutGradient, out_shape(), e5m2);
  const Id log_sum_exp = memory(T::LogSumExp, rows_, f32);
  const Id scale = number(T::SoftmaxScale);

  const Id product = graph_->pointwise({.mode = CUDNN_POINTWISE_MUL, .x = out_gradient, .b = out},
                                       graph_->virtual_tensor(packed(out_shape().sizes)));
  Id products = graph_->reduce(CUDNN_REDUCE_TENSOR_ADD, product, rows());
  products = times(products, T::OutGradientInverse, rows());
  products = times(products, T::OutInverse, rows());

  Id x = float8_scores(query, key, scale);
  x = score_map(CUDNN_POINTWISE_SUB, x, log_sum_exp);
  const Id probability = score_map(CUDNN_POINTWISE_EXP, x);
  code_product({.a = turned(times(probability, T::ProbabilityScale, scores(e4m3)), e4m3),
                .b = out_gradient,
                .a_inverse = T::ProbabilityInverse,
                .b_inverse = T::OutGradientInverse,
                .scale = T::ValueGradientScale,
                .amax = T::ValueGradientAmax,
                .out = T::ValueGradient,
                .out_shape = of_keys,
                .type = e5m2});

  x = graph_->matmul(out_gradient, value, scores());
  x = times(x, T::OutGradientInverse, scores());
  x = times(x, T::ValueInverse, scores());
  x = score_map(CUDNN_POINTWISE_SUB, x, products);
  x = score_map(CUDNN_POINTWISE_MUL, x, probability);
  x = score_map(CUDNN_POINTWISE_MUL, x, scale);
  amax(x, T::ScoreGradientAmax);
  const Id score_gradient = times(x, T::ScoreGradientScale, scores(e5m2));
  CodeProduct by_scores{.a = score_gradient,
                        .b = graph_->reshape(key, graph_->virtual_tensor(of_keys, e4m3)),
                        .a_inverse = T::ScoreGradientInverse,
                        .b_inverse = T::KeyInverse,
                        .scale = T::QueryGradientScale,
                        .amax = T::QueryGradientAmax,
                        .out = T::QueryGradient,
                        .out_shape = of_queries,
                        .type = e5m2};
  code_product(by_scores);
  by_scores.a = turned(score_gradient, e5m2);
  by_scores.b = query;
  by_scores.b_inverse = T::QueryInverse;
  by_scores.scale = T::KeyGradientScale;
  by_scores.amax = T::KeyGradientAmax;
  by_scores.out = T::KeyGradient;
  by_scores.out_shape = of_keys;
  code_product(by_scores);
  return std::move(graph_);
}

}  // namespace

std::unique_ptr<CudnnGraph> attention_graph(const Cudnn& library, const AttentionKey& key) {
  Attention attention(library, key);
  if (key.float8) return key.backward ? attention.float8_backward() : attention.float8_forward();
  return key.backward ? attention.backward() : attention.forward();
}

}  // namespace octet
