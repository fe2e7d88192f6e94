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
// Buffers that linears share do not know the format of their codes.
Operand as_codes(Tensor codes, Format format) {
  codes.dtype = dtype_of(format);
  return as_stored(codes);
}
bool rowwise(const Cast& cast) { return cast.scaling == Scaling::Rowwise; }

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

CastBuffers CastBuffers::first_rows(int64_t rows) const {
  CastBuffers first = *this;
  for (Tensor* tensor : {&first.high, &first.row, &first.row_inverse_scale})
    if (!tensor->empty()) *tensor = tensor->slice(0, rows);
  if (!column.empty()) first.column.shape = {column.rows(), rows};
  return first;
}

Linear::Linear(const LinearOptions& options, const Blueprint& blueprint) : options_(options) {
  parameter_ = blueprint.parameters.add(options.name + ".weight", options.kind,
                                        {options.outputs, options.inputs}, options.initial, options.matrices);
  add_sites(blueprint.scales);
  plan_working_weights(blueprint.plan);
}

Linear::Linear(const LinearOptions& options, const Blueprint& blueprint, const Parameter& weight,
               const StorageWeight& copy)
    : options_(options), parameter_(weight), storage_weight_(copy), owns_storage_weight_(false) {
  add_sites(blueprint.scales);
  plan_working_weights(blueprint.plan);
}

void Linear::add_sites(ScaleTable& scales) {
  const LinearFormats& f = options_.formats;
  const auto site = [&](const char* role, const Cast& cast) {
    SiteInfo info;
    info.name = options_.name + role;
    info.block = options_.block;
    info.cast = cast;
    return scales.add(std::move(info));
  };
  if (fprop_float8() || wgrad_float8()) input_site_ = site(".input", f.input);
  if (fprop_float8() || dgrad_float8()) weight_site_ = site(".weight", f.weight);
  if (dgrad_float8() || wgrad_float8()) grad_site_ = site(".grad", f.grad);
  if (grad_takes_up_scales()) grad_column_site_ = site(".grad_with_token_scales", f.grad);
  if (folds_scales()) folded_weight_site_ = site(".weight_with_channel_scales", f.weight);
}

// Of a shard with one scale codes are gathered; what has a scale a row is gathered as values, then cast.
void Linear::plan_working_weights(MemoryPlan& plan) {
  const bool by_row = rowwise(options_.formats.weight);
  if (owns_storage_weight_) {
    if (reads_storage_weight())
      storage_weight_ = StorageWeight(parameter_, options_.storage, plan);
    else if (parameter_.shard > 0 && options_.formats.gathers_codes())
      return plan_code_shard(plan);
  }
  const Buffers buffers{plan, parameter_.name, Category::WorkingWeights};
  const DType dtype = dtype_of(options_.formats.weight.format);
  const int64_t outputs = options_.outputs, inputs = options_.inputs;
  if (fprop_float8()) buffers.add(weight_row_, ".row", dtype, {outputs, inputs});
  if (dgrad_float8()) buffers.add(weight_column_, ".column", dtype, {inputs, outputs});
  if (!by_row) return;
  if (fprop_float8()) buffers.add(weight_row_inverse_scale_, ".row_inverse_scale", DType::F32, {outputs});
  if (dgrad_float8())
    buffers.add(weight_column_inverse_scale_, ".column_inverse_scale", DType::F32, {inputs});
}

// The column copy is made last: until then its memory holds this rank's values.
void Linear::plan_code_shard(MemoryPlan& plan) {
  const Buffers buffers{plan, parameter_.name, Category::WorkingWeights};
  const DType dtype = dtype_of(options_.formats.weight.format);
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

bool Linear::scales_input_rows() const {
  return fprop_float8() && (rowwise(options_.formats.input) || smooth() == SmoothSwiGLU::Dual);
}
bool Linear::scales_input_columns() const {
  return smooth() == SmoothSwiGLU::Channel ||
         (wgrad_float8() && (rowwise(options_.formats.input) || smooth() == SmoothSwiGLU::Dual));
}

void Linear::plan_input(MemoryPlan& plan, LastReader reader, int64_t tokens, CastBuffers& buffers) const {
  const Buffers input{plan, options_.name + ".input", Category::Activations};
  const DType dtype = dtype_of(options_.formats.input.format);
  const int64_t inputs = options_.inputs;
  switch (reader) {
    case LastReader::Fprop:
      if (wgrad_float8() && !options_.reads_stream)
        input.add(buffers.high, ".high", options_.storage, {tokens, inputs});
      if (fprop_float8()) input.add(buffers.row, ".row", dtype, {tokens, inputs});
      if (scales_input_rows())
        input.add(buffers.row_inverse_scale, ".row_inverse_scale", DType::F32, {tokens});
      break;
    case LastReader::Wgrad:
      if (wgrad_float8())
        input.add(buffers.column, ".column", dtype, {inputs, tokens});
      else if (!options_.reads_stream)
        input.add(buffers.high, ".high", options_.storage, {tokens, inputs});
      if (scales_input_columns())
        input.add(buffers.column_inverse_scale, ".column_inverse_scale", DType::F32, {inputs});
      break;
    case LastReader::GradCast:
      if (smooth() == SmoothSwiGLU::Token)
        input.add(buffers.row_inverse_scale, ".row_inverse_scale", DType::F32, {tokens});
      break;
  }
}

void Linear::plan_grad(MemoryPlan& plan, int64_t tokens, CastBuffers& buffers) const {
  const Buffers grad{plan, options_.name + ".grad", Category::Activations};
  const DType dtype = dtype_of(options_.formats.grad.format);
  const int64_t outputs = options_.outputs;
  grad.add(buffers.high, ".high", options_.storage, {tokens, outputs});
  if (dgrad_float8()) grad.add(buffers.row, ".row", dtype, {tokens, outputs});
  if (wgrad_float8()) grad.add(buffers.column, ".column", dtype, {outputs, tokens});
  if (!rowwise(options_.formats.grad)) return;
  if (dgrad_float8()) grad.add(buffers.row_inverse_scale, ".row_inverse_scale", DType::F32, {tokens});
  if (wgrad_float8()) grad.add(buffers.column_inverse_scale, ".column_inverse_scale", DType::F32, {outputs});
}

CastTarget Linear::input_target(const Pass& pass, const CastBuffers& input) const {
  CastTarget target;
  target.high = input.high;
  if (input_site_ < 0) return target;
  target.cast = options_.formats.input;
  target.site = pass.site(input_site_);
  target.rounding_key = pass.rounding_key(input_site_);
  if (fprop_float8()) target.row = input.row;
  if (wgrad_float8() && pass.kind != PassKind::Evaluation) target.column = input.column;
  const bool both = smooth() == SmoothSwiGLU::Token || smooth() == SmoothSwiGLU::Channel;
  if (both || (scales_input_rows() && !target.row.empty()))
    target.row_inverse_scale = input.row_inverse_scale;
  if (both || (scales_input_columns() && !target.column.empty()))
    target.column_inverse_scale = input.column_inverse_scale;
  return target;
}

CastTarget Linear::grad_target(const Pass& pass, const CastBuffers& grad, const CastBuffers& input) const {
  CastTarget target;
  target.high = grad.high;
  if (grad_site_ < 0) return target;
  target.cast = options_.formats.grad;
  target.site = pass.site(grad_site_);
  target.rounding_key = pass.rounding_key(grad_site_);
  if (dgrad_float8()) target.row = grad.row;
  if (wgrad_float8()) target.column = grad.column;
  if (rowwise(options_.formats.grad)) {
    if (dgrad_float8()) target.row_inverse_scale = grad.row_inverse_scale;
    if (wgrad_float8()) target.column_inverse_scale = grad.column_inverse_scale;
  }
  if (grad_takes_up_scales()) {
    target.row_factor = input.row_inverse_scale;
    target.column_site = pass.site(grad_column_site_);
  }
  return target;
}

void Linear::refresh(const Pass& pass, const MasterPiece& piece) const {
  if (owns_storage_weight_ && reads_storage_weight()) storage_weight_.refresh(pass.device, piece);
  if (!has_codes()) return;
  if (piece.values.elements() != parameter_.gradient.elements())
    throw Error(ExitCode::Internal, parameter_.name + ": codes are made of the whole weight");
  CastOperation encode;
  encode.source = piece.values;
  if (!piece.code.is_plain()) {  // the numbers, rounded to BF16 as every code's are
    encode.source = pass.master_values.slice(0, piece.values.elements());
    copy_values(pass.device, encode.source, piece);
  }
  encode.source.shape = parameter_.gradient.shape;
  if (!rowwise(options_.formats.weight)) encode.amax = piece.amax;
  encode.out.cast = options_.formats.weight;
  encode.out.site = pass.site(weight_site_);
  encode.out.rounding_key = pass.rounding_key(weight_site_);
  if (!folds_scales()) encode.out.row = weight_row_;
  encode.out.column = weight_column_;
  encode.out.row_inverse_scale = weight_row_inverse_scale_;
  encode.out.column_inverse_scale = weight_column_inverse_scale_;
  if (!encode.out.row.empty() || !encode.out.column.empty()) pass.device.cast(encode);
  observe_cast(pass, weight_site_, encode.source, encode.out.row, weight_scales(pass));
}

void Linear::encode_shard(const Pass& pass, const Tensor& amax) const {
  CastOperation encode;
  encode.source = code_shard_.values;
  encode.amax = amax;
  encode.first = parameter_.begin;
  encode.out.cast = options_.formats.weight;
  encode.out.site = pass.site(weight_site_);
  encode.out.rounding_key = pass.rounding_key(weight_site_);
  encode.out.row = code_shard_.codes.slice(parameter_.begin, parameter_.master.elements());
  encode.out.row.shape = encode.source.shape;
  pass.device.cast(encode);
  observe_cast(pass, weight_site_, encode.source, encode.out.row, weight_scales(pass));
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
  encode.out.cast = options_.formats.weight;
  encode.out.site = pass.site(folded_weight_site_);
  encode.out.rounding_key = pass.rounding_key(folded_weight_site_);
  pass.device.cast(encode);
}

Matmul Linear::product(GemmClass gemm_class, const Operand& a, const Operand& b, const Tensor& out) const {
  Matmul matmul;
  matmul.gemm_class = gemm_class;
  matmul.a = a;
  matmul.b = b;
  matmul.out = out;
  if (a.values.dtype == DType::BF16) matmul.simulate = options_.formats.simulate;
  return matmul;
}

Matmul Linear::fprop_operands(const CastBuffers& input, const Tensor& output) const {
  const LinearFormats& f = options_.formats;
  if (!fprop_float8())
    return product(options_.fprop, as_stored(input.high), as_stored(storage_weight_.values()), output);
  Matmul matmul = product(options_.fprop, as_codes(input.row, f.input.format),
                          as_codes(weight_row_, f.weight.format), output);
  matmul.fast_accumulation = f.fast_accumulation.fprop;
  if (scales_input_rows() || smooth() == SmoothSwiGLU::Token) matmul.a.granularity = ScaleGranularity::Outer;
  if (rowwise(f.weight)) matmul.b.granularity = ScaleGranularity::Outer;
  return matmul;
}

Matmul Linear::dgrad_operands(const CastBuffers& grad, const Tensor& input_gradient) const {
  const LinearFormats& f = options_.formats;
  Matmul matmul = dgrad_float8() ? product(options_.dgrad, as_codes(grad.row, f.grad.format),
                                           as_codes(weight_column_, f.weight.format), input_gradient)
                                 : product(options_.dgrad, as_stored(grad.high),
                                           transposed(storage_weight_.values()), input_gradient);
  matmul.accumulate = options_.reads_stream;
  if (!dgrad_float8()) return matmul;
  matmul.fast_accumulation = f.fast_accumulation.dgrad;
  if (rowwise(f.grad)) matmul.a.granularity = ScaleGranularity::Outer;
  if (rowwise(f.weight)) matmul.b.granularity = ScaleGranularity::Outer;
  return matmul;
}

Matmul Linear::wgrad_operands(const CastBuffers& grad, const CastBuffers& input) const {
  const LinearFormats& f = options_.formats;
  Matmul matmul = wgrad_float8() ? product(options_.wgrad, as_codes(grad.column, f.grad.format),
                                           as_codes(input.column, f.input.format), parameter_.gradient)
                                 : product(options_.wgrad, transposed(grad.high), transposed(input.high),
                                           parameter_.gradient);
  matmul.accumulate = true;
  if (!wgrad_float8()) return matmul;
  matmul.fast_accumulation = f.fast_accumulation.wgrad;
  if (rowwise(f.grad)) matmul.a.granularity = ScaleGranularity::Outer;
  if (scales_input_columns()) matmul.b.granularity = ScaleGranularity::Outer;
  return matmul;
}

// Where an operand's inverse scales are: beside its codes where there is one a row, else at its site.
void Linear::fprop(const Pass& pass, const CastBuffers& input, const Tensor& output) const {
  Matmul matmul = fprop_operands(input, output);
  if (fprop_float8()) {
    if (folds_scales()) fold(pass, input);
    if (matmul.a.granularity == ScaleGranularity::Outer)
      matmul.a.inverse_scale = input.row_inverse_scale.as<float>();
    else if (smooth() == SmoothSwiGLU::Channel)
      matmul.a.inverse_scale = pass.one;  // the folded weight took them up
    else
      scale_by_site(matmul.a, pass, input_site_);
    if (matmul.b.granularity == ScaleGranularity::Outer)
      matmul.b.inverse_scale = weight_row_inverse_scale_.as<float>();
    else
      scale_by_site(matmul.b, pass, folds_scales() ? folded_weight_site_ : weight_site_);
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
    if (matmul.a.granularity == ScaleGranularity::Outer)
      matmul.a.inverse_scale = grad.row_inverse_scale.as<float>();
    else
      scale_by_site(matmul.a, pass, grad_site_);
    if (matmul.b.granularity == ScaleGranularity::Outer)
      matmul.b.inverse_scale = weight_column_inverse_scale_.as<float>();
    else
      scale_by_site(matmul.b, pass, weight_site_);
    observe_cast(pass, grad_site_, grad.high, matmul.a.values, scales_of(matmul.a));
  }
  pass.device.matmul(matmul);
}

void Linear::wgrad(const Pass& pass, const CastBuffers& grad, const CastBuffers& input) const {
  Matmul matmul = wgrad_operands(grad, input);
  if (wgrad_float8()) {
    if (matmul.a.granularity == ScaleGranularity::Outer)
      matmul.a.inverse_scale = grad.column_inverse_scale.as<float>();
    else
      scale_by_site(matmul.a, pass, grad_takes_up_scales() ? grad_column_site_ : grad_site_);
    if (matmul.b.granularity == ScaleGranularity::Outer)
      matmul.b.inverse_scale = input.column_inverse_scale.as<float>();
    else if (smooth() == SmoothSwiGLU::Token)
      matmul.b.inverse_scale = pass.one;  // the grad's column copy took them up
    else
      scale_by_site(matmul.b, pass, input_site_);
  }
  pass.device.matmul(matmul);
}

Linear::WorkingWeight Linear::working_weight(const Pass& pass) const {
  if (reads_storage_weight()) return {storage_weight_.values(), {}};
  Tensor codes = folds_scales() ? weight_column_ : weight_row_;
  codes.shape = {options_.outputs, options_.inputs};
  return {codes, weight_scales(pass)};
}

InverseScales Linear::weight_scales(const Pass& pass) const {
  if (!weight_row_inverse_scale_.empty())
    return {.values = weight_row_inverse_scale_.as<float>(), .row_stride = 1};
  return {.values = pass.site(weight_site_).inverse_scale};
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
  if (input.high.empty()) input.high = {nullptr, options_.storage, {tokens, options_.inputs}};
  return {fprop_operands(input, grad.high), dgrad_operands(grad, input.high), wgrad_operands(grad, input)};
}

}  // namespace octet
