#include "model/linear.h"

#include <algorithm>

#include "base/error.h"
#include "numerics/bfloat16.h"

namespace octet {

namespace {

Operand as_stored(const Tensor& values) {
  Operand operand;
  operand.values = values;
  return operand;
}
Operand transposed(const Tensor& values) {
  Operand operand = as_stored(values);
  operand.transposed = true;
  return operand;
}
void scale_by_site(Operand& codes, const Pass& pass, int site) {
  codes.inverse_scale = pass.site(site).inverse_scale;
}
void scale_by_row(Operand& codes, const Tensor& inverse_scales) {
  codes.inverse_scale = inverse_scales.as<float>();
}

InverseScales scales_of(const Operand& codes) {
  return {.values = codes.inverse_scale, .row_stride = codes.granularity == ScaleGranularity::Outer ? 1 : 0};
}

// What the cast of `source` lost. Ranks share out weights, and count each once.
void observe_cast(const Pass& pass, int site, const Tensor& source, const Tensor& codes,
                  const InverseScales& scales) {
  if (!pass.observed() || !pass.scales.count || codes.empty() || source.elements() == 0) return;
  pass.observations->observe_cast(pass.device, site,
                                  {.source = source, .codes = codes, .inverse_scales = scales});
}

// One name, one category, one life: what a layer's buffers have in common.
struct Buffers {
  MemoryPlan& plan;
  std::string name;
  Category category;

  void add(Tensor& tensor, const char* part, DType dtype, const Shape& shape) const {
    if (tensor.empty()) tensor = plan.add(name + part, category, dtype, shape);
  }
};

const Tensor& first_present(const Tensor& a, const Tensor& b) { return a.empty() ? b : a; }

}  // namespace

CastBuffers CastBuffers::or_else(const CastBuffers& other) const {
  CastBuffers all;
  all.high = first_present(high, other.high);
  all.row = first_present(row, other.row);
  all.column = first_present(column, other.column);
  all.row_inverse_scale = first_present(row_inverse_scale, other.row_inverse_scale);
  all.column_inverse_scale = first_present(column_inverse_scale, other.column_inverse_scale);
  return all;
}

Linear::Linear(const LinearOptions& options, const Blueprint& blueprint) : options_(options) {
  if (!fprop_float8() && !wgrad_float8()) options_.smooth = SmoothSwiGLU::None;
  parameter_ = blueprint.parameters.add(options.name + ".weight", ParameterKind::Matrix,
                                        {options.outputs, options.inputs}, options.initial);
  add_sites(blueprint.scales);
  plan_working_weights(blueprint.plan);
}

void Linear::add_sites(ScaleTable& scales) {
  const auto site = [&](const char* role, const Cast& cast) {
    SiteInfo info;
    info.name = options_.name + role;
    info.block = options_.block;
    info.cast = cast;
    return scales.add(std::move(info));
  };
  if (fprop_float8() || wgrad_float8()) input_site_ = site(".input", options_.input);
  if (fprop_float8() || dgrad_float8()) weight_site_ = site(".weight", options_.weight);
  if (dgrad_float8() || wgrad_float8()) grad_site_ = site(".grad", options_.grad);
  if (grad_takes_up_scales()) grad_column_site_ = site(".grad_with_token_scales", options_.grad);
  if (folds_scales()) folded_weight_site_ = site(".weight_with_channel_scales", options_.weight);
}

void Linear::plan_working_weights(MemoryPlan& plan) {
  if (reads_storage_weight()) storage_weight_ = StorageWeight(parameter_, options_.storage, plan);
  if (parameter_.shard > 0 && !reads_storage_weight() && !folds_scales()) return plan_code_shard(plan);
  const Buffers buffers{plan, parameter_.name, Category::WorkingWeights};
  const DType dtype = dtype_of(options_.weight.format);
  if (fprop_float8()) buffers.add(weight_row_, ".row", dtype, {options_.outputs, options_.inputs});
  if (dgrad_float8()) buffers.add(weight_column_, ".column", dtype, {options_.inputs, options_.outputs});
}

// The column copy is made last: until then its memory holds this rank's values.
void Linear::plan_code_shard(MemoryPlan& plan) {
  const Buffers buffers{plan, parameter_.name, Category::WorkingWeights};
  const DType dtype = dtype_of(options_.weight.format);
  const int64_t whole = parameter_.gradient.elements(), own = parameter_.master.elements();
  buffers.add(code_shard_.codes, ".row", dtype, {parameter_.padded_gradient.elements()});
  Tensor column;
  buffers.add(column, ".column", dtype, {std::max(whole, own * static_cast<int64_t>(sizeof(BFloat16)))});
  weight_row_ = {code_shard_.codes.data, dtype, {options_.outputs, options_.inputs}};
  weight_column_ = {column.data, dtype, {options_.inputs, options_.outputs}};
  // One scale: where rows end does not matter, so they get a length that devices like.
  int64_t width = 1024;
  while (own % width != 0) width /= 2;
  code_shard_.values = {column.data, DType::BF16, {own / width, width}};
}

void Linear::plan_input(MemoryPlan& plan, LastReader reader, int64_t tokens, CastBuffers& buffers) const {
  const Buffers input{plan, options_.name + ".input", Category::Activations};
  const DType dtype = dtype_of(options_.input.format);
  const int64_t inputs = options_.inputs;
  const bool dual = options_.smooth == SmoothSwiGLU::Dual;
  switch (reader) {
    case LastReader::Fprop:
      if (wgrad_float8()) input.add(buffers.high, ".high", options_.storage, {tokens, inputs});
      if (fprop_float8()) input.add(buffers.row, ".row", dtype, {tokens, inputs});
      if (dual) input.add(buffers.row_inverse_scale, ".row_inverse_scale", DType::F32, {tokens});
      break;
    case LastReader::Wgrad:
      if (wgrad_float8())
        input.add(buffers.column, ".column", dtype, {inputs, tokens});
      else
        input.add(buffers.high, ".high", options_.storage, {tokens, inputs});
      if (dual || options_.smooth == SmoothSwiGLU::Channel)
        input.add(buffers.column_inverse_scale, ".column_inverse_scale", DType::F32, {inputs});
      break;
    case LastReader::GradCast:
      if (options_.smooth == SmoothSwiGLU::Token)
        input.add(buffers.row_inverse_scale, ".row_inverse_scale", DType::F32, {tokens});
      break;
  }
}

void Linear::plan_grad(MemoryPlan& plan, int64_t tokens, CastBuffers& buffers) const {
  const Buffers grad{plan, options_.name + ".grad", Category::Activations};
  const DType dtype = dtype_of(options_.grad.format);
  const int64_t outputs = options_.outputs;
  grad.add(buffers.high, ".high", options_.storage, {tokens, outputs});
  if (dgrad_float8()) grad.add(buffers.row, ".row", dtype, {tokens, outputs});
  if (wgrad_float8()) grad.add(buffers.column, ".column", dtype, {outputs, tokens});
}

CastTarget Linear::input_target(const Pass& pass, const CastBuffers& input) const {
  CastTarget target;
  target.high = input.high;
  if (input_site_ < 0) return target;
  target.cast = options_.input;
  target.site = pass.site(input_site_);
  target.rounding_key = pass.rounding_key(input_site_);
  if (fprop_float8()) target.row = input.row;
  if (wgrad_float8() && pass.kind != PassKind::Evaluation) target.column = input.column;
  if (options_.smooth != SmoothSwiGLU::None) {
    target.row_inverse_scale = input.row_inverse_scale;
    target.column_inverse_scale = input.column_inverse_scale;
  }
  return target;
}

CastTarget Linear::grad_target(const Pass& pass, const CastBuffers& grad, const CastBuffers& input) const {
  CastTarget target;
  target.high = grad.high;
  if (grad_site_ < 0) return target;
  target.cast = options_.grad;
  target.site = pass.site(grad_site_);
  target.rounding_key = pass.rounding_key(grad_site_);
  if (dgrad_float8()) target.row = grad.row;
  if (wgrad_float8()) target.column = grad.column;
  if (grad_takes_up_scales()) {
    target.row_factor = input.row_inverse_scale;
    target.column_site = pass.site(grad_column_site_);
  }
  return target;
}

void Linear::refresh(const Pass& pass, const MasterPiece& piece) const {
  if (reads_storage_weight()) storage_weight_.refresh(pass.device, piece);
  if (!has_codes()) return;
  if (piece.values.elements() != parameter_.gradient.elements())
    throw Error(ExitCode::Internal, parameter_.name + ": codes are made of the whole weight");
  CastOperation encode;
  encode.source = piece.values;
  encode.source.shape = parameter_.gradient.shape;
  encode.amax = piece.amax;
  encode.out.cast = options_.weight;
  encode.out.site = pass.site(weight_site_);
  encode.out.rounding_key = pass.rounding_key(weight_site_);
  if (!folds_scales()) encode.out.row = weight_row_;
  encode.out.column = weight_column_;
  if (!encode.out.row.empty() || !encode.out.column.empty()) pass.device.cast(encode);
  observe_cast(pass, weight_site_, encode.source, encode.out.row, {encode.out.site.inverse_scale});
}

void Linear::encode_shard(const Pass& pass, const Tensor& amax) const {
  CastOperation encode;
  encode.source = code_shard_.values;
  encode.amax = amax;
  encode.first = parameter_.begin;
  encode.out.cast = options_.weight;
  encode.out.site = pass.site(weight_site_);
  encode.out.rounding_key = pass.rounding_key(weight_site_);
  encode.out.row = code_shard_.codes.slice(parameter_.begin, parameter_.master.elements());
  encode.out.row.shape = encode.source.shape;
  pass.device.cast(encode);
  observe_cast(pass, weight_site_, encode.source, encode.out.row, {encode.out.site.inverse_scale});
}

void Linear::finish_codes(const Pass& pass) const {
  pass.device.transpose_codes({.codes = weight_row_, .transposed = weight_column_});
}

// Row codes of W with the channels' inverse scales multiplied into its columns.  [Fishman et al., Eq. 3]
void Linear::fold(const Pass& pass, const CastBuffers& input) const {
  CastOperation encode;
  encode.source = parameter_.master;
  encode.column_factor = input.column_inverse_scale;
  encode.out.row = weight_row_;
  encode.out.cast = options_.weight;
  encode.out.site = pass.site(folded_weight_site_);
  encode.out.rounding_key = pass.rounding_key(folded_weight_site_);
  pass.device.cast(encode);
}

Matmul Linear::fprop_operands(const CastBuffers& input, const Tensor& output) const {
  Matmul matmul;
  matmul.gemm_class = GemmClass::Fprop;
  matmul.fast_accumulation = fprop_float8() && options_.fast_accumulation.fprop;
  matmul.a = as_stored(fprop_float8() ? input.row : input.high);
  matmul.b = as_stored(fprop_float8() ? weight_row_ : storage_weight_.values());
  matmul.out = output;
  if (fprop_float8() && (options_.smooth == SmoothSwiGLU::Token || options_.smooth == SmoothSwiGLU::Dual))
    matmul.a.granularity = ScaleGranularity::Outer;
  return matmul;
}

Matmul Linear::dgrad_operands(const CastBuffers& grad, const Tensor& input_gradient) const {
  Matmul matmul;
  matmul.gemm_class = GemmClass::Dgrad;
  matmul.fast_accumulation = dgrad_float8() && options_.fast_accumulation.dgrad;
  matmul.a = as_stored(dgrad_float8() ? grad.row : grad.high);
  matmul.b = dgrad_float8() ? as_stored(weight_column_) : transposed(storage_weight_.values());
  matmul.out = input_gradient;
  return matmul;
}

Matmul Linear::wgrad_operands(const CastBuffers& grad, const CastBuffers& input) const {
  Matmul matmul;
  matmul.gemm_class = GemmClass::Wgrad;
  matmul.fast_accumulation = wgrad_float8() && options_.fast_accumulation.wgrad;
  matmul.a = wgrad_float8() ? as_stored(grad.column) : transposed(grad.high);
  matmul.b = wgrad_float8() ? as_stored(input.column) : transposed(input.high);
  matmul.out = parameter_.gradient;
  matmul.accumulate = true;
  if (wgrad_float8() && (options_.smooth == SmoothSwiGLU::Channel || options_.smooth == SmoothSwiGLU::Dual))
    matmul.b.granularity = ScaleGranularity::Outer;
  return matmul;
}

void Linear::fprop(const Pass& pass, const CastBuffers& input, const Tensor& output) const {
  Matmul matmul = fprop_operands(input, output);
  if (fprop_float8()) {
    if (folds_scales()) fold(pass, input);
    scale_by_site(matmul.b, pass, folds_scales() ? folded_weight_site_ : weight_site_);
    switch (options_.smooth) {
      case SmoothSwiGLU::Token:
      case SmoothSwiGLU::Dual:
        scale_by_row(matmul.a, input.row_inverse_scale);
        break;
      case SmoothSwiGLU::Channel:
        matmul.a.inverse_scale = pass.one;  // the folded weight took them up
        break;
      default:
        scale_by_site(matmul.a, pass, input_site_);
    }
    InverseScales scales = scales_of(matmul.a);
    if (smooth() == SmoothSwiGLU::Channel)
      scales = {.values = input.column_inverse_scale.as<float>(), .column_stride = 1};
    observe_cast(pass, input_site_, input.high, matmul.a.values, scales);
  }
  pass.device.matmul(matmul);
}

void Linear::dgrad(const Pass& pass, const CastBuffers& grad, const Tensor& input_gradient) const {
  Matmul matmul = dgrad_operands(grad, input_gradient);
  if (dgrad_float8()) {
    scale_by_site(matmul.a, pass, grad_site_);
    scale_by_site(matmul.b, pass, weight_site_);
    observe_cast(pass, grad_site_, grad.high, matmul.a.values, scales_of(matmul.a));
  }
  pass.device.matmul(matmul);
}

void Linear::wgrad(const Pass& pass, const CastBuffers& grad, const CastBuffers& input) const {
  Matmul matmul = wgrad_operands(grad, input);
  if (wgrad_float8()) {
    scale_by_site(matmul.a, pass, grad_takes_up_scales() ? grad_column_site_ : grad_site_);
    switch (options_.smooth) {
      case SmoothSwiGLU::Channel:
      case SmoothSwiGLU::Dual:
        scale_by_row(matmul.b, input.column_inverse_scale);
        break;
      case SmoothSwiGLU::Token:
        matmul.b.inverse_scale = pass.one;  // the grad's column copy took them up
        break;
      default:
        scale_by_site(matmul.b, pass, input_site_);
    }
  }
  pass.device.matmul(matmul);
}

Linear::WorkingWeight Linear::working_weight(const Pass& pass) const {
  if (reads_storage_weight()) return {storage_weight_.values(), {}};
  Tensor codes = folds_scales() ? weight_column_ : weight_row_;
  codes.shape = {options_.outputs, options_.inputs};
  return {codes, {pass.site(weight_site_).inverse_scale}};
}

int64_t Linear::observed_rows() const {
  return std::max({options_.outputs, options_.inputs, code_shard() ? code_shard_.values.rows() : 0});
}

std::vector<Matmul> Linear::matmul_shapes(int64_t tokens) const {
  MemoryPlan shapes;
  CastBuffers input, grad;
  for (LastReader reader : {LastReader::Fprop, LastReader::Wgrad, LastReader::GradCast})
    plan_input(shapes, reader, tokens, input);
  plan_grad(shapes, tokens, grad);
  return {fprop_operands(input, grad.high), dgrad_operands(grad, input.high), wgrad_operands(grad, input)};
}

}  // namespace octet
