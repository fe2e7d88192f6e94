#include "training/run_memory.h"

#include <fmt/format.h>

#include <cstring>

#include "base/error.h"
#include "base/text.h"
#include "numerics/masters.h"
#include "training/checkpoint_parts.h"

namespace octet {
namespace {

TransformerOptions transformer_options(const RunConfig& c, const Sharding& ranks) {
  TransformerOptions o;
  if (c.parallel.zero > 0) o.sharding = ranks;
  o.sharding.gradients = c.parallel.zero > 1;
  o.spec = c.model;
  o.recipe = c.precision;
  o.micro_batch = c.batch.micro;
  o.recompute = c.batch.recompute;
  o.head_chunk = c.batch.head_chunk;
  o.z_loss = c.loss.z_loss;
  o.seed = c.run.seed;
  return o;
}

int64_t validation_batches(const RunConfig& c) {
  const bool evaluates = c.evaluation.every > 0 && !c.data.validation.empty();
  return evaluates ? std::max<int64_t>(c.evaluation.batches, 1) : 1;
}

bool offload(const RunConfig& c) { return c.memory.offload == Offload::Optimizer; }

size_t aligned(size_t bytes) {
  return (bytes + MemoryPlan::alignment - 1) / MemoryPlan::alignment * MemoryPlan::alignment;
}

}  // namespace

PlannedMemory measure_memory(Device* device, const RunConfig& config, const Sharding& ranks) {
  MemoryPlan device_plan, host_plan, offload_plan;
  const RunMemory memory(device, config, {device_plan, host_plan, offload_plan}, ranks);
  return {aligned(device_plan.peak_bytes()), aligned(host_plan.peak_bytes()),
          aligned(offload_plan.peak_bytes()),
          memory.validation_tokens.bytes() + memory.validation_targets.bytes()};
}

void require_memory(const PlannedMemory& planned, const DeviceInfo& device, size_t available) {
  const size_t arena = device.uses_host_memory ? planned.device_bytes : 0,
               on_host = planned.host_bytes + planned.offload_bytes, needed = arena + on_host;
  if (available == 0 || needed <= available) return;
  const bool validation = planned.validation_bytes > needed / 4;
  throw Error(
      ExitCode::Usage,
      fmt::format("the run needs {} of memory ({} to train, {} for checkpoint snapshots and validation "
                  "windows), {} are available",
                  human_bytes(needed), human_bytes(arena + planned.offload_bytes),
                  human_bytes(planned.host_bytes), human_bytes(available)),
      validation ? "lower evaluation.batches: all validation windows are kept in memory"
                 : "lower batch.micro or model.context, set batch.recompute to \"block\", or choose a "
                   "smaller model (octet plan CONFIG shows what takes the memory)");
}

int64_t global_batch(const RunConfig& c) { return c.batch.tokens / c.model.context; }
int64_t accumulation(const RunConfig& c, int ranks) {
  const int64_t micros = global_batch(c) / c.batch.micro;
  if (micros % ranks == 0) return micros / ranks;
  std::string works;
  for (int64_t r = 1; r <= micros; ++r)
    if (micros % r == 0) works += fmt::format("{}{}", works.empty() ? "" : ", ", r);
  throw Error(
      ExitCode::Usage,
      fmt::format("{} ranks do not divide the {} micro-batches of a step (batch.tokens {}, batch.micro {} "
                  "windows of {} tokens)",
                  ranks, micros, c.batch.tokens, c.batch.micro, c.model.context),
      fmt::format("ranks that work: {}; or another batch.micro, which the result does not depend on but "
                  "for rounding",
                  works));
}
WindowOrder window_order(const RunConfig& c) {
  return c.data.shuffle ? WindowOrder::Shuffled : WindowOrder::AsStored;
}

Snapshot::Snapshot(Transformer& model, AdamW& optimizer, MemoryPlan& plan)
    : model_(&model), scales_(&model.scales()) {
  payloads_.resize(3);
  payloads_[0].file = "masters.safetensors";
  payloads_[1].file = "moments.safetensors";
  payloads_[2].file = "scale_table.safetensors";
  const std::vector<Parameter>& parameters = model.parameters();
  for (const Parameter& p : parameters) add_master(p, plan);
  for (size_t i = 0; i < parameters.size(); ++i) {
    add_moment(parameters[i], ".first", optimizer.states()[i].first, plan);
    add_moment(parameters[i], ".second", optimizer.states()[i].second, plan);
  }
  if (!scales_->sites.empty()) {
    add(payloads_[2], {"amax_history", scales_->amax_history, scales_->amax_history.shape}, plan);
    add(payloads_[2], {"scale", scales_->scale, scales_->scale.shape}, plan);
    add(payloads_[2], {"inverse_scale", scales_->inverse_scale, scales_->inverse_scale.shape}, plan);
  }
}

void Snapshot::add_master(const Parameter& p, MemoryPlan& plan) {
  const MasterCode& code = p.master_code;
  add(payloads_[0], {p.name, p.master, p.gradient.shape, p.begin}, plan);
  if (!code.rest.empty())
    add(payloads_[0],
        {p.name + (code.format == MasterFormat::BF16Remainder ? ".remainder" : ".compensation"), code.rest,
         p.gradient.shape, p.begin},
        plan);
  if (!code.inverse.empty())
    add(payloads_[0],
        {p.name + ".inverse_scale", code.inverse,
         Shape{(p.gradient.elements() + master_block - 1) / master_block}, p.begin / master_block},
        plan);
}

// A piece begins with a block: its scales are some of the whole tensor's.
void Snapshot::add_moment(const Parameter& parameter, const char* suffix, const MomentTensor& moment,
                          MemoryPlan& plan) {
  const std::string name = parameter.name + suffix;
  add(payloads_[1], {name, moment.values, parameter.gradient.shape, parameter.begin}, plan);
  if (moment.inverse.empty()) return;
  const int64_t elements = parameter.gradient.elements(), block = moment.block;
  const bool whole = parameter.master.elements() == elements;
  if (block == 0 ? !whole : parameter.begin % block != 0 && parameter.master.elements() > 0)
    throw Error(
        ExitCode::Usage,
        fmt::format("{}: moments with {} cannot be divided among ranks at element {}", parameter.name,
                    block == 0 ? std::string("one scale a tensor") : fmt::format("blocks of {}", block),
                    parameter.begin),
        "choose precision.moments.block 128, or another divisor of 16384");
  const Shape scales{block == 0 ? 1 : (elements + block - 1) / block};
  const int64_t begin = block == 0 ? 0 : parameter.begin / block;
  const bool expanded = !moment.exponents.empty();
  add(payloads_[1], {name + (expanded ? ".largest" : ".inverse_scale"), moment.inverse, scales, begin}, plan);
  if (expanded) add(payloads_[1], {name + ".exponent", moment.exponents, scales, begin}, plan);
}

void Snapshot::add(Payload& payload, const Item& item, MemoryPlan& plan) {
  const Tensor host =
      plan.add("checkpoint." + item.name, Category::Other, item.device.dtype, item.device.shape);
  pairs_.push_back({item.device, host});
  payload.tensors.emplace_back(item.name, host, item.shape, item.begin);
}

void Snapshot::take(Device& device) {
  device.synchronize();
  for (const Pair& p : pairs_) device.copy_to_host(p.host.data, p.device.data, p.host.bytes());
  forget_stateless_sites();
}

// The scale of a site with current scaling is that of its last cast, which a stop between two micro-batches
// may have moved on; nothing reads it before the next cast. Only delayed sites carry state across steps.
void Snapshot::forget_stateless_sites() const {
  const size_t sites = scales_->sites.size();
  if (sites == 0) return;
  const std::vector<TensorPiece>& t = payloads_[2].tensors;
  float* history = t[0].values.as<float>();
  float* scale = t[1].values.as<float>();
  float* inverse = t[2].values.as<float>();
  const size_t window = static_cast<size_t>(t[0].shape[0]);
  for (size_t s = 0; s < sites; ++s) {
    const Cast& cast = scales_->sites[s].cast;
    const bool state = is_float8(cast.format) && cast.scaling == Scaling::Delayed;
    if (!state || scale[s] == 0) scale[s] = inverse[s] = 0;
    for (size_t row = 0; !state && row < window; ++row) history[row * sites + s] = 0;
  }
}

void Snapshot::put_back(Device& device) const {
  for (const Pair& p : pairs_) device.copy_from_host(p.device.data, p.host.data, p.host.bytes());
  device.synchronize();
}

void Snapshot::load(const std::filesystem::path& checkpoint, Scales scales) {
  for (const Payload& payload : payloads_) {
    if (payload.tensors.empty()) continue;
    if (scales == Scales::Forget && &payload == &payloads_[2])
      for (const TensorPiece& t : payload.tensors) std::memset(t.values.data, 0, t.values.bytes());
    else
      read_payload(checkpoint, payload);
  }
}

// Of the numbers before they were rounded to the masters' format, so that runs with other formats begin
// alike.
std::string Snapshot::masters_hash(RankGroup& group) const {
  std::vector<TensorPiece> values;
  std::vector<size_t> parameter_of;
  for (const TensorPiece& t : payloads_[0].tensors)
    for (const Parameter& p : model_->parameters())
      if (p.name == t.name) {
        values.push_back(t);
        parameter_of.push_back(p.index);
      }
  std::vector<float> numbers;
  return content_hash("masters", values, group, [&](size_t tensor, int64_t first, int64_t count) {
    const size_t parameter = parameter_of[tensor];
    if (model_->parameters()[parameter].master_code.format == MasterFormat::FP32)
      return static_cast<const float*>(nullptr);
    numbers.resize(static_cast<size_t>(count));
    model_->initial_values(parameter, first, numbers);
    return static_cast<const float*>(numbers.data());
  });
}

std::string Snapshot::masters_hash() const {
  RankGroup alone;
  return masters_hash(alone);
}

RunMemory::RunMemory(Device* device, const RunConfig& c, const Plans& plans, const Sharding& ranks,
                     Communicator* communicator)
    : model(device, transformer_options(c, ranks), plans.device, offload(c) ? &plans.offload : nullptr),
      optimizer(device, c.optimizer,
                {c.precision.moments, offload(c) ? &plans.offload : nullptr,
                 [this](size_t parameter) { return model.splits_refresh(parameter); }, c.run.seed},
                model.parameters(), plans.device),
      data_parallel(device, communicator, ranks.ranks, c, model, optimizer, plans.device),
      evaluation_sums(
          plans.device.add("evaluation.loss_sums", Category::Other, DType::F64, {validation_batches(c)})),
      validation_tokens(plans.host.add("validation.tokens", Category::Batch, DType::I32,
                                       {validation_batches(c), c.batch.micro * c.model.context})),
      validation_targets(
          plans.host.add("validation.targets", Category::Batch, DType::I32, validation_tokens.shape)),
      snapshot(model, optimizer, plans.host) {}

}  // namespace octet
