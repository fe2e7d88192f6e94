// A linear layer Y = X W^T as its three GEMMs. A GEMM runs in FP8 when both its operands' roles are FP8 and
// nothing keeps it in storage precision (LinearFormats), otherwise in storage precision:
//
//            computes                        reads in FP8                  reads otherwise
//   fprop    Y  [T,N]  = X  [T,K] W [N,K]^T   input row,    weight row      input high, weight
//   dgrad    dX [T,K]  = dY [T,N] W [N,K]     grad row,     weight column   grad high,  weight
//   wgrad    dW [N,K] += dY^T [N,T] X [T,K]   grad column,  input column    grad high,  input high
//
// The layer never casts X or dY itself: it tells their producers what to leave (input_target, grad_target).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/blueprint.h"
#include "model/pass.h"

namespace octet {

// The copies of one tensor [rows, columns] that a cast leaves for GEMMs; what nobody reads is empty. Linears
// that share buffers may differ in the FP8 format of the codes: whoever uses codes says which they are.
struct CastBuffers {
  Tensor high;               // storage [rows, columns]
  Tensor row;                // codes [rows, columns]
  Tensor column;             // codes of the transpose [columns, rows]
  Tensor row_inverse_scale;  // F32: rowwise and block-wise scaling, Smooth-SwiGLU `token` and `dual`
  // F32: rowwise and block-wise scaling, Smooth-SwiGLU `channel` and `dual`, SmoothQuant
  Tensor column_inverse_scale;

  // These buffers, and `other`'s where there is none here.
  CastBuffers or_else(const CastBuffers& other) const;
  // The first `rows` rows, and columns of as many codes.
  CastBuffers first_rows(int64_t rows) const;
};

struct LinearOptions {
  std::string name;  // "blocks.3.ffn.down"
  int block = 0;
  int64_t outputs = 0, inputs = 0;  // N, K
  std::vector<int64_t> matrices;    // Parameter::matrices
  DType storage = DType::BF16;
  LinearFormats formats;
  // The input is the residual stream itself: its high copy is the block's, and dgrad adds to the stream's
  // gradient.
  bool reads_stream = false;
  Initial initial;
  double gradient_deviation = 1;  // of the output's gradient at the start, as static scales take it to be
  ParameterKind kind = ParameterKind::Matrix;
  GemmClass fprop = GemmClass::Fprop, dgrad = GemmClass::Dgrad, wgrad = GemmClass::Wgrad;
};

class Linear {
 public:
  // Declares its weight, its sites and its working weights.
  Linear(const LinearOptions& options, const Blueprint& blueprint);
  // Of a weight that something else owns, together with its copy in storage precision.
  Linear(const LinearOptions& options, const Blueprint& blueprint, const Parameter& weight,
         const StorageWeight& copy);

  const LinearFormats& formats() const { return options_.formats; }
  SmoothSwiGLU smooth() const { return options_.formats.smooth; }
  const Parameter& parameter() const { return parameter_; }
  bool has_codes() const { return weight_site_ >= 0; }

  // ---- memory

  // Who reads a copy of the input last: that decides how long it lives.
  enum class LastReader : uint8_t {
    Fprop,     // or the cast itself
    Wgrad,     // kept from forward to backward, or recomputed
    GradCast,  // read before this block's backward begins, so never recomputed (Smooth-SwiGLU `token`)
  };
  // Plans the copies of X [tokens, K] whose last reader is `reader` and that `buffers` lacks.
  void plan_input(MemoryPlan& plan, LastReader reader, int64_t tokens, CastBuffers& buffers) const;
  // Plans the copies of dY [tokens, N] that `buffers` lacks.
  void plan_grad(MemoryPlan& plan, int64_t tokens, CastBuffers& buffers) const;
  // The three GEMMs as shapes without data, for Device::workspace_bytes.
  std::vector<Matmul> matmul_shapes(int64_t tokens) const;

  // ---- what producers leave

  CastTarget input_target(const Pass& pass, const CastBuffers& input) const;
  CastTarget grad_target(const Pass& pass, const CastBuffers& grad, const CastBuffers& input) const;

  // ---- work

  // Master -> working weights. Codes are made of the whole: where there are any, the piece is the whole.
  void refresh(const Pass& pass, const MasterPiece& piece) const;
  // Sharded codes, in three steps: the values are put into the shard; from the amax (F32 [1]) of the whole
  // weight each rank makes its codes; of all ranks' codes the transpose is made. Null: refresh() it is.
  const CodeShard* code_shard() const { return code_shard_.codes.empty() ? nullptr : &code_shard_; }
  void encode_shard(const Pass& pass, const Tensor& amax) const;
  void finish_codes(const Pass& pass) const;
  void fprop(const Pass& pass, const CastBuffers& input, const Tensor& output) const;
  void dgrad(const Pass& pass, const CastBuffers& grad, const Tensor& input_gradient) const;
  void wgrad(const Pass& pass, const CastBuffers& grad, const CastBuffers& input) const;

  // ---- for the health monitor: the weight as products read it, and the most rows that it looks at.
  struct WorkingWeight {
    Tensor values;  // [N, K]; where scales are folded in: in the order of the transpose
    InverseScales inverse_scales;
  };
  WorkingWeight working_weight(const Pass& pass) const;
  int64_t observed_rows() const;

 private:
  InverseScales weight_scales(const Pass& pass) const;  // of weight_row_
  bool fprop_float8() const { return options_.formats.fprop_float8(); }
  bool dgrad_float8() const { return options_.formats.dgrad_float8(); }
  bool wgrad_float8() const { return options_.formats.wgrad_float8(); }
  bool reads_storage_weight() const { return !fprop_float8() || !dgrad_float8(); }
  // SmoothQuant and Smooth-SwiGLU `channel`: both copies of X have one scale a column, which fprop's copy of
  // W takes up.
  bool smooths_channels() const { return options_.formats.smooth_quant > 0 && fprop_float8(); }
  bool scales_channels() const { return smooth() == SmoothSwiGLU::Channel || smooths_channels(); }
  bool folds_scales() const { return scales_channels() && fprop_float8(); }
  bool grad_takes_up_scales() const { return smooth() == SmoothSwiGLU::Token && wgrad_float8(); }
  // Of the roles' operands as their casts leave them. Smooth-SwiGLU `token` and channels' scales are others.
  ScaleGranularity input_granularity() const;
  ScaleGranularity weight_granularity() const;
  ScaleGranularity grad_granularity() const;
  bool scales_input_rows() const;     // each row of fprop's copy of X
  bool scales_input_columns() const;  // each column of X, in wgrad's copy
  Matmul fprop_operands(const CastBuffers& input, const Tensor& output) const;  // scales still missing
  Matmul dgrad_operands(const CastBuffers& grad, const Tensor& input_gradient) const;
  Matmul wgrad_operands(const CastBuffers& grad, const CastBuffers& input) const;
  Matmul product(GemmClass gemm_class, const Operand& a, const Operand& b, const Tensor& out) const;
  void add_sites(ScaleTable& scales);
  void plan_working_weights(MemoryPlan& plan);
  void plan_code_shard(MemoryPlan& plan);
  Cast folded_weight_cast() const;
  void fold(const Pass& pass, const CastBuffers& input) const;

  LinearOptions options_;
  Parameter parameter_;
  StorageWeight storage_weight_;        // [N, K], when a GEMM in storage precision reads it
  bool owns_storage_weight_ = true;     // else its owner refreshes it
  Tensor weight_row_;                   // codes [N, K]
  Tensor weight_column_;                // codes [K, N]
  Tensor weight_row_inverse_scale_;     // F32: rowwise and block-wise scaling
  Tensor weight_column_inverse_scale_;  // the same
  Tensor weight_channel_amax_;          // F32 [K]: SmoothQuant
  CodeShard code_shard_;  // its codes are weight_row_'s; its values lie where weight_column_ will
  int input_site_ = -1, weight_site_ = -1, grad_site_ = -1;
  int grad_column_site_ = -1;    // `token`: the column copy of dY x the tokens' scales
  int folded_weight_site_ = -1;  // the weight x the channels' scales
};

}  // namespace octet
