#include "training/run_memory.h"

#include <fmt/format.h>

#include <cstring>

#include "base/error.h"
#include "base/hash.h"
#include "base/text.h"

namespace octet {
namespace {

TransformerOptions transformer_options(const RunConfig& c) {
  TransformerOptions o;
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

PlannedMemory measure_memory(Device* device, const RunConfig& config) {
  MemoryPlan device_plan, host_plan, offload_plan;
  const RunMemory memory(device, config, {device_plan, host_plan, offload_plan});
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
int64_t accumulation(const RunConfig& c) { return global_batch(c) / c.batch.micro; }
WindowOrder window_order(const RunConfig& c) {
  return c.data.shuffle ? WindowOrder::Shuffled : WindowOrder::AsStored;
}

Snapshot::Snapshot(Transformer& model, AdamW& optimizer, MemoryPlan& plan) : scales_(&model.scales()) {
  payloads_.resize(3);
  payloads_[0].file = "masters.safetensors";
  payloads_[1].file = "moments.safetensors";
  payloads_[2].file = "scale_table.safetensors";
  const std::vector<Parameter>& parameters = model.parameters();
  for (const Parameter& p : parameters) add(payloads_[0], p.name, p.master, plan);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const AdamW::State& state = optimizer.states()[i];
    const std::pair<const char*, const MomentTensor*> moments[] = {{".first", &state.first},
                                                                   {".second", &state.second}};
    for (const auto& [suffix, moment] : moments) {
      add(payloads_[1], parameters[i].name + suffix, moment->values, plan);
      if (!moment->inverse.empty())
        add(payloads_[1], parameters[i].name + suffix + ".inverse_scale", moment->inverse, plan);
    }
  }
  if (!scales_->sites.empty()) {
    add(payloads_[2], "amax_history", scales_->amax_history, plan);
    add(payloads_[2], "scale", scales_->scale, plan);
    add(payloads_[2], "inverse_scale", scales_->inverse_scale, plan);
  }
}

void Snapshot::add(Payload& payload, const std::string& name, const Tensor& device, MemoryPlan& plan) {
  const Tensor host = plan.add("checkpoint." + name, Category::Other, device.dtype, device.shape);
  pairs_.push_back({device, host});
  payload.tensors.push_back({name, host});
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
  const std::vector<NamedTensor>& t = payloads_[2].tensors;
  float* history = t[0].tensor.as<float>();
  float* scale = t[1].tensor.as<float>();
  float* inverse = t[2].tensor.as<float>();
  const size_t window = static_cast<size_t>(t[0].tensor.shape[0]);
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
      for (const NamedTensor& t : payload.tensors) std::memset(t.tensor.data, 0, t.tensor.bytes());
    else
      load(payload, checkpoint / payload.file);
  }
}

void Snapshot::load(const Payload& payload, const std::filesystem::path& path) {
  const SafetensorsReader reader(path, ExitCode::Checkpoint);
  if (reader.entries().size() != payload.tensors.size())
    throw Error(ExitCode::Checkpoint,
                fmt::format("{}: {} tensors, this run has {}", path.string(), reader.entries().size(),
                            payload.tensors.size()),
                "the checkpoint belongs to another model or recipe");
  for (const NamedTensor& t : payload.tensors) {
    const SafetensorsEntry& entry = reader.find(t.name);
    if (entry.dtype != t.tensor.dtype || !(entry.shape == t.tensor.shape))
      throw Error(
          ExitCode::Checkpoint,
          fmt::format("{}: {} is {} {}, this run has {} {}", path.string(), t.name, name_of(entry.dtype),
                      to_string(entry.shape), name_of(t.tensor.dtype), to_string(t.tensor.shape)),
          "the checkpoint belongs to another model or recipe; resume with its own configuration");
  }
  for (const NamedTensor& t : payload.tensors) reader.read(reader.find(t.name), t.tensor.data);
}

std::string Snapshot::masters_hash() const {
  StreamHash hash;
  for (const NamedTensor& t : payloads_[0].tensors) hash.update(t.tensor.data, t.tensor.bytes());
  return hex(hash.digest());
}

RunMemory::RunMemory(Device* device, const RunConfig& c, const Plans& plans)
    : model(device, transformer_options(c), plans.device, offload(c) ? &plans.offload : nullptr),
      optimizer(device, c.optimizer,
                {c.precision.moments, offload(c) ? &plans.offload : nullptr,
                 [this](size_t parameter) { return model.splits_refresh(parameter); }},
                model.parameters(), plans.device),
      evaluation_sum(plans.device.add("evaluation.loss_sum", Category::Other, DType::F64, {1})),
      validation_tokens(plans.host.add("validation.tokens", Category::Batch, DType::I32,
                                       {validation_batches(c), c.batch.micro * c.model.context})),
      validation_targets(
          plans.host.add("validation.targets", Category::Batch, DType::I32, validation_tokens.shape)),
      snapshot(model, optimizer, plans.host) {}

}  // namespace octet
