#include "training/run_memory.h"

#include <fmt/format.h>

#include <cstring>

#include "base/error.h"
#include "base/text.h"
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
  o.observe = c.health.every > 0 && c.health.activations;
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

Snapshot::Snapshot(Transformer& model, AdamW& optimizer, MemoryPlan& plan) : scales_(&model.scales()) {
  payloads_.resize(3);
  payloads_[0].file = "masters.safetensors";
  payloads_[1].file = "moments.safetensors";
  payloads_[2].file = "scale_table.safetensors";
  const std::vector<Parameter>& parameters = model.parameters();
  for (const Parameter& p : parameters)
    add(payloads_[0], {p.name, p.master, p.gradient.shape, p.begin}, plan);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& p = parameters[i];
    const AdamW::State& state = optimizer.states()[i];
    const std::pair<const char*, const MomentTensor*> moments[] = {{".first", &state.first},
                                                                   {".second", &state.second}};
    for (const auto& [suffix, moment] : moments) {
      add(payloads_[1], {p.name + suffix, moment->values, p.gradient.shape, p.begin}, plan);
      if (!moment->inverse.empty()) add(payloads_[1], scales_of(p, suffix, *moment), plan);
    }
  }
  if (!scales_->sites.empty()) {
    add(payloads_[2], {"amax_history", scales_->amax_history, scales_->amax_history.shape}, plan);
    add(payloads_[2], {"scale", scales_->scale, scales_->scale.shape}, plan);
    add(payloads_[2], {"inverse_scale", scales_->inverse_scale, scales_->inverse_scale.shape}, plan);
  }
}

// A piece begins with a block: its scales are some of the whole tensor's.
Snapshot::Item Snapshot::scales_of(const Parameter& parameter, const char* suffix,
                                   const MomentTensor& moment) {
  const int64_t elements = parameter.gradient.elements(), block = moment.block;
  const bool whole = parameter.master.elements() == elements;
  if (block == 0 ? !whole : parameter.begin % block != 0 && parameter.master.elements() > 0)
    throw Error(
        ExitCode::Usage,
        fmt::format("{}: moments with {} cannot be divided among ranks at element {}", parameter.name,
                    block == 0 ? std::string("one scale a tensor") : fmt::format("blocks of {}", block),
                    parameter.begin),
        "choose precision.moments.block 128, or another divisor of 16384");
  return {parameter.name + suffix + ".inverse_scale", moment.inverse,
          Shape{block == 0 ? 1 : (elements + block - 1) / block}, block == 0 ? 0 : parameter.begin / block};
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

std::string Snapshot::masters_hash(RankGroup& group) const {
  return content_hash("masters", payloads_[0].tensors, group);
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
                 [this](size_t parameter) { return model.splits_refresh(parameter); }},
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
