#include "model/head.h"

#include <algorithm>
#include <string>

namespace octet {

namespace {

Operand operand(const Tensor& values) {
  Operand o;
  o.values = values;
  return o;
}
Operand transposed(const Tensor& values) {
  Operand o = operand(values);
  o.transposed = true;
  return o;
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
                               {spec.vocabulary, spec.width}, Initial{.deviation = spec.init_deviation});
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
      table_(spec_.tied_head ? embedding : declare_token_table(blueprint, "head")) {}

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
  logits_ = plan.add("logits", Category::Head, storage_, {chunk_, spec_.vocabulary});
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
                               .branch_rstd = in.branch_rstd});
}

Head::ChunkMatmuls Head::chunk_matmuls(int64_t begin, int64_t count) const {
  const Tensor x = input().slice(begin, count), logits = logits_.slice(0, count);
  ChunkMatmuls chunk;
  chunk.fprop.gemm_class = GemmClass::HeadFprop;
  chunk.fprop.a = operand(x);
  chunk.fprop.b = operand(table_.weight.values());
  chunk.fprop.out = logits;
  chunk.dgrad.gemm_class = GemmClass::HeadDgrad;
  chunk.dgrad.a = operand(logits);
  chunk.dgrad.b = transposed(table_.weight.values());
  chunk.dgrad.out = output_gradient_.slice(begin, count);
  chunk.wgrad.gemm_class = GemmClass::HeadWgrad;
  chunk.wgrad.a = transposed(logits);
  chunk.wgrad.b = transposed(x);
  chunk.wgrad.out = table_.parameter.gradient;
  chunk.wgrad.accumulate = true;
  return chunk;
}

void Head::loss(const Pass& pass, const HeadLoss& loss) const {
  const bool training = pass.kind == PassKind::Training;
  for (int64_t begin = 0; begin < tokens_; begin += chunk_) {
    const int64_t count = std::min(chunk_, tokens_ - begin);
    const ChunkMatmuls chunk = chunk_matmuls(begin, count);
    pass.device.matmul(chunk.fprop);
    pass.device.cross_entropy({.logits = chunk.fprop.out,
                               .targets = loss.targets.slice(begin, count),
                               .loss = loss.losses.slice(begin, count),
                               .gradient_scale = loss.gradient_scale,
                               .z_loss = z_loss_,
                               .backward = training});
    if (!training) continue;
    pass.device.matmul(chunk.dgrad);
    pass.device.matmul(chunk.wgrad);
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
    const ChunkMatmuls chunk = chunk_matmuls(0, count);
    shapes.insert(shapes.end(), {chunk.fprop, chunk.dgrad, chunk.wgrad});
  }
  return shapes;
}

}  // namespace octet
