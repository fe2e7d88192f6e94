#include "model/linear.h"

#include <algorithm>

#include "base/error.h"
#include "device/scales.h"
#include "numerics/bfloat16.h"
#include "numerics/scaling.h"

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
// Buffers that linears share do not know the format of their codes.
Operand as_codes(Tensor codes, Format format) {
  codes.dtype = dtype_of(format);
  return as_stored(codes);
}

// Of a role's operands; `blocks` is what block-wise scaling means for it.
ScaleGranularity granularity_of(const Cast& cast, ScaleGranularity blocks) {
  if (is_one_scale(cast.scaling)) return ScaleGranularity::Tensor;
  return cast.scaling == Scaling::Blockwise ? blocks : ScaleGranularity::Outer;
}
// Finer scales lie beside the codes. One scale is that of a site, known in a pass: scale_by().
Operand scaled(Operand codes, ScaleGranularity granularity, const Tensor& beside) {
  codes.granularity = granularity;
  if (granularity != ScaleGranularity::Tensor) codes.inverse_scale = beside.as<float>();
  return codes;
}
void scale_by(Operand& codes, const float* one) {
  if (codes.granularity == ScaleGranularity::Tensor) codes.inverse_scale = one;
}
// The finer scales of the copies that there are.
void add_scales(CastTarget& target, ScaleGranularity granularity, const Tensor& row, const Tensor& column) {
  if (granularity == ScaleGranularity::Tensor) return;
  target.granularity = granularity;
  if (!target.row.empty()) target.row_inverse_scale = row;
  if (!target.column.empty()) target.column_inverse_scale = column;
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
  for (Tensor* tensor : {&first.high, &first.row})
    if (!tensor->empty()) *tensor = tensor->slice(0, rows);
  if (!column.empty()) first.column.shape = {column.rows(), rows};
  if (row_inverse_scale.shape.rank() == 2)  // vectors: [blocks of a row, rows], [blocks of rows, columns]
    first.row_inverse_scale.shape = {row_inverse_scale.rows(), rows};
  else if (!row_inverse_scale.empty())
    first.row_inverse_scale = row_inverse_scale.slice(0, rows);
  if (column_inverse_scale.shape.rank() == 2)
    first.column_inverse_scale = column_inverse_scale.slice(0, scale_blocks(rows));
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
  // `deviation`: of the values at the start.
  const auto site = [&](const char* role, const Cast& cast, double deviation) {
    SiteInfo info;
    info.name = options_.name + role;
    info.block = options_.block;
    info.cast = cast;
    info.static_scale = scale_for(cast.rule, static_cast<float>(deviation), 1);
    return scales.add(std::move(info));
  };
  const double weight = options_.initial.deviation, grad = options_.gradient_deviation;
  if (fprop_float8() || wgrad_float8()) input_site_ = site(".input", f.input, 1);
  if (fprop_float8() || dgrad_float8()) weight_site_ = site(".weight", f.weight, weight);
  if (dgrad_float8() || wgrad_float8()) grad_site_ = site(".grad", f.grad, grad);
  if (grad_takes_up_scales()) grad_column_site_ = site(".grad_with_token_scales", f.grad, grad);
  if (folds_scales()) folded_weight_site_ = site(".weight_with_channel_scales", folded_weight_cast(), weight);
}

ScaleGranularity Linear::weight_granularity() const {
  return granularity_of(options_.formats.weight, ScaleGranularity::Squares);
}
ScaleGranularity Linear::grad_granularity() const {
  return granularity_of(options_.formats.grad, ScaleGranularity::Vectors);
}
ScaleGranularity Linear::input_granularity() const {
  return smooth() == SmoothSwiGLU::Dual ? ScaleGranularity::Outer
                                        : granularity_of(options_.formats.input, ScaleGranularity::Vectors);
}

// Of a shard with one scale codes are gathered; what has finer ones is gathered as values, then cast.
void Linear::plan_working_weights(MemoryPlan& plan) {
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
  if (smooths_channels()) buffers.add(weight_channel_amax_, ".channel_amax", DType::F32, {inputs});
  const ScaleGranularity granularity = weight_granularity();
  if (granularity == ScaleGranularity::Tensor) return;
  if (fprop_float8())
    buffers.add(weight_row_inverse_scale_, ".row_inverse_scale", DType::F32,
                scale_shape(granularity, outputs, inputs));
  if (dgrad_float8())
    buffers.add(weight_column_inverse_scale_, ".column_inverse_scale", DType::F32,
                scale_shape(granularity, inputs, outputs));
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
  return fprop_float8() && input_granularity() != ScaleGranularity::Tensor;
}
bool Linear::scales_input_columns() const {
  return scales_channels() || (wgrad_float8() && input_granularity() != ScaleGranularity::Tensor);
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
        input.add(buffers.row_inverse_scale, ".row_inverse_scale", DType::F32,
                  scale_shape(input_granularity(), tokens, inputs));
      break;
    case LastReader::Wgrad:
      if (wgrad_float8())
        input.add(buffers.column, ".column", dtype, {inputs, tokens});
      else if (!options_.reads_stream)
        input.add(buffers.high, ".high", options_.storage, {tokens, inputs});
      if (scales_input_columns())
        input.add(buffers.column_inverse_scale, ".column_inverse_scale", DType::F32,
                  scales_channels() ? Shape{inputs} : scale_shape(input_granularity(), inputs, tokens));
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
  const ScaleGranularity granularity = grad_granularity();
  if (granularity == ScaleGranularity::Tensor) return;
  if (dgrad_float8())
    grad.add(buffers.row_inverse_scale, ".row_inverse_scale", DType::F32,
             scale_shape(granularity, tokens, outputs));
  if (wgrad_float8())
    grad.add(buffers.column_inverse_scale, ".column_inverse_scale", DType::F32,
             scale_shape(granularity, outputs, tokens));
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
  if (smooths_channels()) {
    target.column_inverse_scale = input.column_inverse_scale;
    target.channel_weight_amax = weight_channel_amax_;
    target.channel_exponent = static_cast<float>(options_.formats.smooth_quant);
  } else if (smooth() == SmoothSwiGLU::Token || smooth() == SmoothSwiGLU::Channel) {
    target.row_inverse_scale = input.row_inverse_scale;
    target.column_inverse_scale = input.column_inverse_scale;
  } else {
    add_scales(target, input_granularity(), input.row_inverse_scale, input.column_inverse_scale);
  }
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
  add_scales(target, grad_granularity(), grad.row_inverse_scale, grad.column_inverse_scale);
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
  if (smooths_channels()) {
    pass.device.zero(weight_channel_amax_);
    pass.device.channel_amax({encode.source, weight_channel_amax_});
  }
  if (is_one_scale(options_.formats.weight.scaling)) encode.amax = piece.amax;
  encode.out.cast = options_.formats.weight;
  encode.out.site = pass.site(weight_site_);
  encode.out.rounding_key = pass.rounding_key(weight_site_);
  if (!folds_scales()) encode.out.row = weight_row_;
  encode.out.column = weight_column_;
  add_scales(encode.out, weight_granularity(), weight_row_inverse_scale_, weight_column_inverse_scale_);
  if (!encode.out.row.empty() || !encode.out.column.empty()) pass.device.cast(encode);
  pass.observe_cast(weight_site_, encode.source, encode.out.row, weight_scales(pass));
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
  pass.observe_cast(weight_site_, encode.source, encode.out.row, weight_scales(pass));
}

void Linear::finish_codes(const Pass& pass) const {
  pass.device.transpose_codes({.codes = weight_row_, .transposed = weight_column_});
}

// The channels' scales are of this micro-batch: what earlier steps say of their product with W may be a
// binade off.
Cast Linear::folded_weight_cast() const {
  Cast cast = options_.formats.weight;
  if (is_known_before(cast.scaling)) cast.scaling = Scaling::Current;
  return cast;
}

// Row codes of W with the channels' inverse scales multiplied into its columns.  [Fishman et al., Eq. 3;
// SmoothQuant, 2211.10438, eq. 3]
void Linear::fold(const Pass& pass, const CastBuffers& input) const {
  CastOperation encode;
  encode.source = parameter_.master;
  encode.column_factor = input.column_inverse_scale;
  encode.out.row = weight_row_;
  encode.out.cast = folded_weight_cast();
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
  const ScaleGranularity of_input =
      smooth() == SmoothSwiGLU::Token ? ScaleGranularity::Outer : input_granularity();
  Matmul matmul =
      product(options_.fprop, scaled(as_codes(input.row, f.input.format), of_input, input.row_inverse_scale),
              scaled(as_codes(weight_row_, f.weight.format), weight_granularity(), weight_row_inverse_scale_),
              output);
  matmul.fast_accumulation = f.fast_accumulation.fprop;
  return matmul;
}

Matmul Linear::dgrad_operands(const CastBuffers& grad, const Tensor& input_gradient) const {
  const LinearFormats& f = options_.formats;
  Operand dy = as_stored(grad.high), w = transposed(storage_weight_.values());
  if (dgrad_float8()) {
    dy = scaled(as_codes(grad.row, f.grad.format), grad_granularity(), grad.row_inverse_scale);
    w = scaled(as_codes(weight_column_, f.weight.format), weight_granularity(), weight_column_inverse_scale_);
  }
  Matmul matmul = product(options_.dgrad, dy, w, input_gradient);
  matmul.accumulate = options_.reads_stream;
  matmul.fast_accumulation = dgrad_float8() && f.fast_accumulation.dgrad;
  return matmul;
}

Matmul Linear::wgrad_operands(const CastBuffers& grad, const CastBuffers& input) const {
  const LinearFormats& f = options_.formats;
  Operand dy = transposed(grad.high), x = transposed(input.high);
  if (wgrad_float8()) {
    dy = scaled(as_codes(grad.column, f.grad.format), grad_granularity(), grad.column_inverse_scale);
    x = scaled(as_codes(input.column, f.input.format),
               scales_channels() ? ScaleGranularity::Outer : input_granularity(), input.column_inverse_scale);
  }
  Matmul matmul = product(options_.wgrad, dy, x, parameter_.gradient);
  matmul.accumulate = true;
  matmul.fast_accumulation = wgrad_float8() && f.fast_accumulation.wgrad;
  return matmul;
}

void Linear::fprop(const Pass& pass, const CastBuffers& input, const Tensor& output) const {
  Matmul matmul = fprop_operands(input, output);
  if (fprop_float8()) {
    if (folds_scales()) fold(pass, input);
    const bool channel = scales_channels();  // the folded weight took the scales up
    scale_by(matmul.a, channel ? pass.one : pass.site(input_site_).inverse_scale);
    scale_by(matmul.b, pass.site(folds_scales() ? folded_weight_site_ : weight_site_).inverse_scale);
    InverseScales scales = inverse_scales(matmul.a);
    if (channel) scales = {.values = input.column_inverse_scale.as<float>(), .column_stride = 1};
    pass.observe_cast(input_site_, input.high, matmul.a.values, scales);
  }
  pass.device.matmul(matmul);
}

void Linear::dgrad(const Pass& pass, const CastBuffers& grad, const Tensor& input_gradient) const {
  Matmul matmul = dgrad_operands(grad, input_gradient);
  if (dgrad_float8()) {
    scale_by(matmul.a, pass.site(grad_site_).inverse_scale);
    scale_by(matmul.b, pass.site(weight_site_).inverse_scale);
    pass.observe_cast(grad_site_, grad.high, matmul.a.values, inverse_scales(matmul.a));
  }
  pass.device.matmul(matmul);
}

void Linear::wgrad(const Pass& pass, const CastBuffers& grad, const CastBuffers& input) const {
  Matmul matmul = wgrad_operands(grad, input);
  if (wgrad_float8()) {
    const bool token = smooth() == SmoothSwiGLU::Token;  // the grad's column copy took the scales up
    scale_by(matmul.a, pass.site(grad_takes_up_scales() ? grad_column_site_ : grad_site_).inverse_scale);
    scale_by(matmul.b, token ? pass.one : pass.site(input_site_).inverse_scale);
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
  Operand weight = scaled(as_stored(weight_row_), weight_granularity(), weight_row_inverse_scale_);
  weight.values.shape = {options_.outputs, options_.inputs};  // of shards too, and where no product reads it
  scale_by(weight, pass.site(weight_site_).inverse_scale);
  return inverse_scales(weight);
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
