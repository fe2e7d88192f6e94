#include "optimizer/adamw.h"

namespace octet {

namespace {

// Scales per block of `block` elements; 0 = one for the tensor.
int64_t scale_count(int64_t elements, int block) { return block == 0 ? 1 : (elements + block - 1) / block; }

struct MomentPlan {
  const std::string& name;
  Category category;
  Format format;
  int block;
};

MomentTensor plan_moment(MemoryPlan& plan, const MomentPlan& moment, const Shape& shape) {
  MomentTensor tensor;
  tensor.block = moment.block;
  tensor.values = plan.add(moment.name, moment.category, dtype_of(moment.format), shape);
  if (is_float8(moment.format))
    tensor.inverse = plan.add(moment.name + ".inverse_scale", moment.category, DType::F32,
                              {scale_count(shape.elements(), moment.block)});
  return tensor;
}

}  // namespace

AdamW::AdamW(Device* device, const AdamWOptions& options, const Moments& moments,
             std::span<const Parameter> parameters, MemoryPlan& plan)
    : device_(device), options_(options) {
  states_.reserve(parameters.size());
  gradients_.reserve(parameters.size());
  for (const Parameter& parameter : parameters) {
    const bool vector = parameter.kind == ParameterKind::Vector;
    const MomentPlan first{parameter.name + ".first_moment", Category::FirstMoments,
                           vector ? Format::FP32 : moments.first, moments.block};
    const MomentPlan second{parameter.name + ".second_moment", Category::SecondMoments,
                            vector ? Format::FP32 : moments.second, moments.block};
    const Shape& shape = parameter.master.shape;
    states_.push_back({plan_moment(plan, first, shape), plan_moment(plan, second, shape)});
  }
  control_ = plan.add("update_control", Category::Other, DType::U8, {sizeof(UpdateControl)});
}

double AdamW::decay_of(const Parameter& parameter) const {
  switch (parameter.kind) {
    case ParameterKind::Matrix:
      return options_.weight_decay;
    case ParameterKind::Embedding:
      return options_.decay_embeddings ? options_.weight_decay : 0.0;
    case ParameterKind::Vector:
      return 0.0;
  }
  return 0.0;
}

void AdamW::step(std::span<const Parameter> parameters, double learning_rate, int64_t t,
                 const Tensor& loss_sum, double loss_divisor) {
  decide(parameters, loss_sum, loss_divisor);
  update(parameters, learning_rate, t);
}

const UpdateControl* AdamW::control() const { return static_cast<const UpdateControl*>(control_.data); }

void AdamW::decide(std::span<const Parameter> parameters, const Tensor& loss_sum, double loss_divisor) {
  gradients_.clear();
  for (const Parameter& parameter : parameters) gradients_.push_back(parameter.gradient);

  GradientNorm norm;
  norm.gradients = gradients_;
  norm.loss_sum = loss_sum;
  norm.loss_divisor = loss_divisor;
  norm.clip_norm = static_cast<float>(options_.clip_norm);
  norm.control = static_cast<UpdateControl*>(control_.data);
  device_->gradient_norm(norm);
}

void AdamW::update(std::span<const Parameter> parameters, double learning_rate, int64_t t) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    AdamWUpdate update;
    update.master = parameters[i].master;
    update.gradient = parameters[i].gradient;
    update.first = states_[i].first;
    update.second = states_[i].second;
    update.learning_rate = static_cast<float>(learning_rate);
    update.beta1 = static_cast<float>(options_.beta1);
    update.beta2 = static_cast<float>(options_.beta2);
    update.epsilon = static_cast<float>(options_.epsilon);
    update.weight_decay = static_cast<float>(decay_of(parameters[i]));
    update.step = t;
    update.control = control();
    device_->adamw(update);
  }
}

UpdateControl AdamW::read_control() const {
  UpdateControl control;
  device_->copy_to_host(&control, control_.data, sizeof control);
  return control;
}

}  // namespace octet
