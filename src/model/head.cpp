#include "model/head.h"

#include <algorithm>
#include <string>
#include <utility>

namespace octet {

namespace {

LinearOptions projection_options(const Blueprint& blueprint) {
  const TransformerSpec& spec = blueprint.spec();
  LinearOptions options;
  options.name = "head";
  options.block = static_cast<int>(spec.layers);
  options.outputs = spec.vocabulary;
  options.inputs = spec.width;
  options.storage = blueprint.storage();
  options.formats = head_formats(blueprint.options.recipe);
  options.initial = {.deviation = spec.head_deviation(), .learning_rate_factor = spec.head_learning_rate()};
  options.kind = ParameterKind::Embedding;
  options.fprop = GemmClass::HeadFprop;
  options.dgrad = GemmClass::HeadDgrad;
  options.wgrad = GemmClass::HeadWgrad;
  return options;
}

Linear make_projection(const Blueprint& blueprint, const TokenTable& embedding) {
  const LinearOptions options = projection_options(blueprint);
  return blueprint.spec().tied_head ? Linear(options, blueprint, embedding.parameter, embedding.weight)
                                    : Linear(options, blueprint);
}

// Codes of what lies in `target.high` already. Chunks draw different random numbers.
void cast_chunk(const Pass& pass, CastTarget target, int64_t begin) {
  if (target.row.empty() && target.column.empty()) return;
  target.rounding_key =
      random_key(target.rounding_key, Purpose::StochasticRounding, static_cast<uint64_t>(begin));
  const Tensor source = target.high;
  pass.device.cast({.source = source, .column_factor = {}, .out = std::move(target)});
}

Parameter declare_norm(const Blueprint& blueprint) {
  if (!blueprint.spec().final_norm) return {};
  return blueprint.parameters.add("final_norm.gain", ParameterKind::Vector, {blueprint.spec().width},
                                  Initial{.deviation = 0, .constant = 1});
}

}  // namespace

TokenTable declare_token_table(const Blueprint& blueprint, const char* name) {
  const TransformerSpec& spec = blueprint.spec();
  TokenTable table;
  table.parameter =
      blueprint.parameters.add(std::string(name) + ".weight", ParameterKind::Embedding,
                               {spec.vocabulary, spec.width}, Initial{.deviation = spec.table_deviation()});
  table.weight = StorageWeight(table.parameter, blueprint.storage(), blueprint.plan);
  return table;
}

Head::Head(const Blueprint& blueprint, const TokenTable& embedding)
    : spec_(blueprint.spec()),
      storage_(blueprint.storage()),
      tokens_(blueprint.tokens()),
      chunk_(std::min(blueprint.options.head_chunk, blueprint.tokens())),
      z_loss_(static_cast<float>(blueprint.options.z_loss)),
      norm_(declare_norm(blueprint)),
      projection_(make_projection(blueprint, embedding)) {}

void Head::plan_stored(MemoryPlan& plan) {
  residual_ = plan.add("final_norm.residual", Category::Activations, storage_, {tokens_, spec_.width});
  if (spec_.final_norm) rstd_ = plan.add("final_norm.rstd", Category::Activations, DType::F32, {tokens_});
}

void Head::plan_output(MemoryPlan& plan) {
  if (spec_.final_norm)
    output_ = plan.add("final_norm.output", Category::Head, storage_, {tokens_, spec_.width});
}

void Head::plan_scratch(MemoryPlan& plan) {
  output_gradient_ = plan.add("final_norm.output.gradient", Category::Head, storage_, {tokens_, spec_.width});
  input_ = logits_ = {};
  logits_.high = plan.add("logits", Category::Head, storage_, {chunk_, spec_.vocabulary});
  input_.high = {nullptr, storage_, {chunk_, spec_.width}};  // a chunk of input(), see loss()
  for (const Linear::LastReader reader : {Linear::LastReader::Fprop, Linear::LastReader::Wgrad})
    projection_.plan_input(plan, reader, chunk_, input_);
  projection_.plan_grad(plan, chunk_, logits_);
}

void Head::normalise(const Pass& pass, const ResidualStream& in) const {
  CastTarget output;
  output.high = input();
  pass.device.rmsnorm_forward({.residual = in.residual,
                               .branch = in.branch,
                               .residual_out = residual_,
                               .gain = norm_.master,
                               .rstd = rstd_,
                               .epsilon = static_cast<float>(spec_.norm_epsilon),
                               .out = output,
                               .branch_gain = in.branch_gain,
                               .branch_rstd = in.branch_rstd,
                               .stream_factor = in.stream_factor,
                               .branch_factor = in.branch_factor});
}

void Head::loss(const Pass& pass, const HeadLoss& loss) const {
  const bool training = pass.kind == PassKind::Training;
  for (int64_t begin = 0; begin < tokens_; begin += chunk_) {
    const int64_t count = std::min(chunk_, tokens_ - begin);
    const CastBuffers logits = logits_.first_rows(count);
    CastBuffers chunk = input_.first_rows(count);
    chunk.high = input().slice(begin, count);
    cast_chunk(pass, projection_.input_target(pass, chunk), begin);
    projection_.fprop(pass, chunk, logits.high);
    pass.device.cross_entropy({.logits = logits.high,
                               .targets = loss.targets.slice(begin, count),
                               .loss = loss.losses.slice(begin, count),
                               .gradient_scale = loss.gradient_scale,
                               .z_loss = z_loss_,
                               .backward = training});
    if (!training) continue;
    cast_chunk(pass, projection_.grad_target(pass, logits, chunk), begin);
    projection_.dgrad(pass, logits, output_gradient_.slice(begin, count));
    projection_.wgrad(pass, logits, chunk);
  }
}

void Head::backward(const Pass& pass, const CastTarget& input_gradient) const {
  if (!spec_.final_norm)
    return pass.device.cast({.source = output_gradient_, .column_factor = {}, .out = input_gradient});
  pass.device.rmsnorm_backward({.out_gradient = output_gradient_,
                                .residual = residual_,
                                .gain = norm_.master,
                                .rstd = rstd_,
                                .gain_gradient = norm_.gradient,
                                .residual_gradient_in = {},
                                .residual_gradient = input_gradient});
}

std::vector<Matmul> Head::matmul_shapes() const {
  std::vector<Matmul> shapes;
  for (const int64_t count : {chunk_, tokens_ % chunk_}) {  // all chunks but the last, which may be shorter
    if (count == 0) continue;
    const std::vector<Matmul> chunk = projection_.matmul_shapes(count);
    shapes.insert(shapes.end(), chunk.begin(), chunk.end());
  }
  return shapes;
}

}  // namespace octet
