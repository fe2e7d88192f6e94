// Where a block's activations and gradients live.
#include "model/block.h"
#include "numerics/group_codes.h"

namespace octet {

using Reader = Linear::LastReader;

// Norms read what they normalised, post-norms the branch, the activation its input: as values or as codes.
// Without a norm in front of a layer only its weight gradient reads the stream, and not that when it has
// codes of its own.
std::vector<Block::Wide> Block::wide_tensors() const {
  const Kept kept = saves_codes_ ? Kept::Codes : Kept::Values;
  const auto stream = [&](const Linear& reader) {
    if (spec_.pre_norm) return kept;
    return recompute_ == Recompute::None && reader.formats().wgrad_float8() ? Kept::Nothing : Kept::Values;
  };
  using A = BlockActivations;
  std::vector<Wide> wide = {
      {&A::residual, ".residual", spec_.width, stream(attention_.qkv())},
      {&A::middle, ".middle", spec_.width, stream(feed_forward_.up())},
      {&A::up, is_gated(spec_.activation) ? ".ffn.gate_up" : ".ffn.up", spec_.up_width(), kept}};
  if (scales_branches()) {
    wide.push_back({&A::attention_branch, ".attention_branch", spec_.width, kept});
    wide.push_back({&A::ffn_branch, ".ffn_branch", spec_.width, kept});
  }
  return wide;
}

void Block::plan_groups(MemoryPlan& plan, const ActivationGroups& groups, BlockActivations& a) const {
  const int64_t tokens = micro_batch_ * spec_.context;
  const auto add = [&](Tensor& tensor, const char* field, DType dtype, const Shape& shape) {
    if (tensor.empty()) tensor = plan.add(name_ + field, Category::Activations, dtype, shape);
  };
  const auto add_values = [&](Tensor BlockActivations::*tensor) {
    for (const Wide& wide : wide_tensors())
      if (wide.tensor == tensor && wide.kept == Kept::Values)
        add(a.*tensor, wide.field.c_str(), storage_, {tokens, wide.width});
  };
  if (groups.residual) {
    add_values(&BlockActivations::residual);
    feed_forward_.down().plan_input(plan, Reader::GradCast, tokens, a.hidden);
    if (spec_.post_norm == PostNorm::RMS) add(a.ffn_branch_rstd, ".ffn_branch_rstd", DType::F32, {tokens});
  }
  if (groups.norms) {
    attention_.qkv().plan_input(plan, Reader::Wgrad, tokens, a.attention_input);
    feed_forward_.up().plan_input(plan, Reader::Wgrad, tokens, a.ffn_input);
  }
  if (groups.hidden) feed_forward_.down().plan_input(plan, Reader::Wgrad, tokens, a.hidden);
  if (groups.others) {
    if (spec_.pre_norm) add(a.attention_rstd, ".attention_rstd", DType::F32, {tokens});
    if (spec_.qk_norm != QkNorm::None)
      add(a.query_keys, ".attention.query_keys", storage_,
          {tokens, (spec_.heads + spec_.kv_heads) * spec_.head_width_()});
    attention_.core().plan_kept(plan, tokens, a);
    if (attention_.core().backward_reads_storage()) {
      add(a.qkv, ".attention.qkv", storage_, {tokens, spec_.qkv_width()});
      add(a.attention_output.high, ".attention.output", storage_, {tokens, spec_.attention_width()});
    }
    add(a.log_sum_exp, ".attention.log_sum_exp", DType::F32, {micro_batch_, spec_.heads, spec_.context});
    attention_.out().plan_input(plan, Reader::Wgrad, tokens, a.attention_output);
    add_values(&BlockActivations::attention_branch);
    if (spec_.post_norm == PostNorm::RMS)
      add(a.attention_branch_rstd, ".attention_branch_rstd", DType::F32, {tokens});
    add_values(&BlockActivations::middle);
    if (spec_.pre_norm) add(a.ffn_rstd, ".ffn_rstd", DType::F32, {tokens});
    add_values(&BlockActivations::up);
    add_values(&BlockActivations::ffn_branch);
  }
}

void Block::plan_passing(MemoryPlan& plan, BlockActivations& shared) const {
  const int64_t tokens = micro_batch_ * spec_.context;
  for (const Wide& wide : wide_tensors())
    if (wide.kept != Kept::Values && (shared.*wide.tensor).empty())
      shared.*wide.tensor =
          plan.add("passing" + wide.field, Category::Activations, storage_, {tokens, wide.width});
}

void Block::plan_shared(MemoryPlan& plan, BlockActivations& shared) const {
  const int64_t tokens = micro_batch_ * spec_.context;
  plan_groups(plan, recomputed_groups(recompute_), shared);
  if (shared.qkv.empty() && !attention_.core().backward_reads_storage())
    shared.qkv = plan.add("attention.qkv", Category::Activations, storage_, {tokens, spec_.qkv_width()});
  attention_.qkv().plan_input(plan, Reader::Fprop, tokens, shared.attention_input);
  attention_.out().plan_input(plan, Reader::Fprop, tokens, shared.attention_output);
  feed_forward_.up().plan_input(plan, Reader::Fprop, tokens, shared.ffn_input);
  feed_forward_.down().plan_input(plan, Reader::Fprop, tokens, shared.hidden);
}

void Block::plan_stored(MemoryPlan& plan, const BlockActivations& shared) {
  BlockActivations own;
  plan_groups(plan, stored_groups(recompute_), own);
  const auto either = [](const Tensor& mine, const Tensor& common) { return mine.empty() ? common : mine; };
  activations_.residual = either(own.residual, shared.residual);
  activations_.attention_rstd = either(own.attention_rstd, shared.attention_rstd);
  activations_.attention_input = own.attention_input.or_else(shared.attention_input);
  activations_.query_keys = either(own.query_keys, shared.query_keys);
  activations_.qkv = either(own.qkv, shared.qkv);
  activations_.qkv_codes = either(own.qkv_codes, shared.qkv_codes);
  activations_.output_codes = either(own.output_codes, shared.output_codes);
  activations_.log_sum_exp = either(own.log_sum_exp, shared.log_sum_exp);
  activations_.attention_output = own.attention_output.or_else(shared.attention_output);
  activations_.attention_branch = either(own.attention_branch, shared.attention_branch);
  activations_.attention_branch_rstd = either(own.attention_branch_rstd, shared.attention_branch_rstd);
  activations_.middle = either(own.middle, shared.middle);
  activations_.ffn_rstd = either(own.ffn_rstd, shared.ffn_rstd);
  activations_.ffn_input = own.ffn_input.or_else(shared.ffn_input);
  activations_.up = either(own.up, shared.up);
  activations_.hidden = own.hidden.or_else(shared.hidden);
  activations_.ffn_branch = either(own.ffn_branch, shared.ffn_branch);
  activations_.ffn_branch_rstd = own.ffn_branch_rstd;
  if (!spec_.pre_norm) {
    activations_.attention_input.high = activations_.residual;
    activations_.ffn_input.high = activations_.middle;
  }
  const int64_t tokens = micro_batch_ * spec_.context;
  for (const Wide& wide : wide_tensors())
    if (wide.kept == Kept::Codes)
      saved_codes_.push_back({.values = activations_.*wide.tensor,
                              .codes = plan.add(name_ + wide.field + ".codes", Category::Activations,
                                                DType::E4M3, {tokens, wide.width}),
                              .scales = plan.add(name_ + wide.field + ".scales", Category::Activations,
                                                 DType::U8, {tokens, wide.width / code_group})});
}

void Block::plan_residual_gradients(MemoryPlan& plan, BlockGradients& g) const {
  const int64_t tokens = micro_batch_ * spec_.context;
  // With a post_norm the stream's gradient and that of a branch are two things.
  if (scales_branches() && g.residual.high.empty())
    g.residual.high = plan.add("residual.gradient", Category::Activations, storage_, {tokens, spec_.width});
  feed_forward_.down().plan_grad(plan, tokens, g.branch);
  attention_.out().plan_grad(plan, tokens, g.branch);
  if (!scales_branches()) g.residual = g.branch;
  if (!spec_.pre_norm)
    g.norm = g.residual.high;
  else if (g.norm.empty())
    g.norm = plan.add("norm.gradient", Category::Activations, storage_, {tokens, spec_.width});
}

void Block::plan_ffn_gradients(MemoryPlan& plan, BlockGradients& g) const {
  const int64_t tokens = micro_batch_ * spec_.context;
  feed_forward_.up().plan_grad(plan, tokens, g.up);
  if (g.hidden.empty())
    g.hidden = plan.add("hidden.gradient", Category::Activations, storage_, {tokens, spec_.ffn_width});
}

void Block::plan_attention_gradients(MemoryPlan& plan, BlockGradients& g) const {
  const int64_t tokens = micro_batch_ * spec_.context;
  attention_.qkv().plan_grad(plan, tokens, g.qkv);
  attention_.core().plan_gradients(plan, tokens, g);
  if (g.attention_output.empty())
    g.attention_output = plan.add("attention_output.gradient", Category::Activations, storage_,
                                  {tokens, spec_.attention_width()});
}

}  // namespace octet
