#include "device/cuda/attention_graph.h"

namespace octet {

namespace {

constexpr cudnnDataType_t bf16 = CUDNN_DATA_BFLOAT16, f32 = CUDNN_DATA_FLOAT, i32 = CUDNN_DATA_INT32,
                          boolean = CUDNN_DATA_BOOLEAN;

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

  std::unique_ptr<CudnnGraph> graph_;
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

}  // namespace

std::unique_ptr<CudnnGraph> attention_graph(const Cudnn& library, const AttentionKey& key) {
  Attention attention(library, key);
  return key.backward ? attention.backward() : attention.forward();
}

}  // namespace octet
