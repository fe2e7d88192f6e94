#include "model/attention_core.h"

#include <fmt/format.h>

namespace octet {

AttentionCore::AttentionCore(const Blueprint& blueprint, int block, float softmax_scale)
    : name_(fmt::format("blocks.{}.attention", block)),
      storage_(blueprint.storage()),
      context_(static_cast<int>(blueprint.spec().context)),
      heads_(static_cast<int>(blueprint.spec().heads)),
      kv_heads_(static_cast<int>(blueprint.spec().kv_heads)),
      head_width_(static_cast<int>(blueprint.spec().head_width_())),
      softmax_scale_(softmax_scale),
      clip_{static_cast<float>(blueprint.spec().softmax_clip_low),
            static_cast<float>(blueprint.spec().softmax_clip_high)} {
  const Recipe& recipe = blueprint.options.recipe;
  if (!attention_in_float8(recipe, static_cast<int>(blueprint.spec().layers), block)) return;
  const auto site = [&](const char* what, Format format, const Cast& role, Scaling scaling) {
    SiteInfo info;
    info.name = fmt::format("{}.core.{}", name_, what);
    info.block = block;
    info.cast = {format, scaling, role.rule, Rounding::Nearest};
    return blueprint.scales.add(std::move(info));
  };
  // One scale a tensor. What is cast before the core may have its own amax; what a fused kernel makes inside
  // needs its scale beforehand, so that it can only be delayed.
  const auto scaling_of = [](const Cast& role) {
    return role.scaling == Scaling::Delayed ? Scaling::Delayed : Scaling::Current;
  };
  qkv_site_ = site("qkv", Format::E4M3, recipe.input, scaling_of(recipe.input));
  output_site_ = site("output", Format::E4M3, recipe.input, Scaling::Delayed);
  output_gradient_site_ = site("output_grad", Format::E5M2, recipe.grad, scaling_of(recipe.grad));
  score_gradient_site_ = site("score_grad", Format::E5M2, recipe.grad, Scaling::Delayed);
  qkv_gradient_site_ = site("qkv_grad", Format::E5M2, recipe.grad, Scaling::Delayed);
}

void AttentionCore::plan_kept(MemoryPlan& plan, int64_t tokens, BlockActivations& a) const {
  if (!float8()) return;
  const auto add = [&](Tensor& tensor, const char* field, int64_t width) {
    if (tensor.empty()) tensor = plan.add(name_ + field, Category::Activations, DType::E4M3, {tokens, width});
  };
  add(a.qkv_codes, ".core.qkv", qkv_width());
  add(a.output_codes, ".core.output", output_width());
}

void AttentionCore::plan_gradients(MemoryPlan& plan, int64_t tokens, BlockGradients& g) const {
  if (!float8()) return;
  const auto add = [&](Tensor& tensor, const char* name, int64_t width) {
    if (tensor.empty()) tensor = plan.add(name, Category::Activations, DType::E5M2, {tokens, width});
  };
  add(g.attention_output_codes, "attention_output.gradient.codes", output_width());
  add(g.attention_qkv_codes, "attention_qkv.gradient.codes", qkv_width());
}

AttentionForward AttentionCore::shape(int64_t tokens) const {
  AttentionForward attention{};
  attention.qkv = {nullptr, float8() ? DType::E4M3 : storage_, {tokens, qkv_width()}};
  attention.context = context_;
  attention.heads = heads_;
  attention.kv_heads = kv_heads_;
  attention.head_width = head_width_;
  attention.clip = clip_;
  return attention;
}

void AttentionCore::cast(const Pass& pass, const Tensor& source, const Tensor& codes, int site) const {
  CastOperation operation;
  operation.source = source;
  operation.out.row = codes;
  operation.out.cast = pass.scales.sites[static_cast<size_t>(site)].cast;
  operation.out.site = pass.site(site);
  operation.out.rounding_key = pass.rounding_key(site);
  pass.device.cast(operation);
  pass.observe_cast(site, source, codes, {.values = operation.out.site.inverse_scale});
}

CodesBeforehand AttentionCore::beforehand(const Pass& pass, const Tensor& codes, int site) const {
  return {codes, pass.scales.sites[static_cast<size_t>(site)].cast, pass.site(site)};
}

void AttentionCore::forward(const Pass& pass, const BlockActivations& a, const CastTarget& out) const {
  AttentionForward attention{.qkv = a.qkv,
                             .log_sum_exp = a.log_sum_exp,
                             .context = context_,
                             .heads = heads_,
                             .kv_heads = kv_heads_,
                             .head_width = head_width_,
                             .softmax_scale = softmax_scale_,
                             .out = out,
                             .clip = clip_};
  if (float8()) {
    cast(pass, a.qkv, a.qkv_codes, qkv_site_);
    attention.qkv = a.qkv_codes;
    attention.qkv_inverse_scale = pass.site(qkv_site_).inverse_scale;
    attention.out_codes = beforehand(pass, a.output_codes, output_site_);
  }
  pass.device.attention_forward(attention);
}

void AttentionCore::backward(const Pass& pass, const BlockActivations& a, const BlockGradients& g) const {
  AttentionBackward attention{.qkv = a.qkv,
                              .out = a.attention_output.high,
                              .out_gradient = g.attention_output,
                              .log_sum_exp = a.log_sum_exp,
                              .qkv_gradient = g.qkv.high,
                              .context = context_,
                              .heads = heads_,
                              .kv_heads = kv_heads_,
                              .head_width = head_width_,
                              .softmax_scale = softmax_scale_,
                              .clip = clip_};
  if (float8()) {
    cast(pass, g.attention_output, g.attention_output_codes, output_gradient_site_);
    attention.qkv = a.qkv_codes;
    attention.out = a.output_codes;
    attention.out_gradient = g.attention_output_codes;
    attention.qkv_inverse_scale = pass.site(qkv_site_).inverse_scale;
    attention.out_inverse_scale = pass.site(output_site_).inverse_scale;
    attention.out_gradient_inverse_scale = pass.site(output_gradient_site_).inverse_scale;
    attention.score_gradient = beforehand(pass, {}, score_gradient_site_);
    attention.qkv_gradient_codes = beforehand(pass, g.attention_qkv_codes, qkv_gradient_site_);
  }
  pass.device.attention_backward(attention);
}

}  // namespace octet
