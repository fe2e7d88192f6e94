#include "training/run_memory.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/text.h"

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
  // Local SGD: a rank alone.
  o.batch_tokens = trains_alone(c) ? c.batch.tokens / ranks.ranks : c.batch.tokens;
  o.observe = c.health.every > 0 && c.health.activations;
  if (c.optimizer.name == OptimizerName::Muon)
    o.update_products = [storage = dtype_of(c.precision.storage)](std::span<const Parameter> parameters) {
      return muon_products(parameters, storage);
    };
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

RunMemory::RunMemory(Device* device, const RunConfig& c, const Plans& plans, const Sharding& ranks,
                     Communicator* communicator)
    : model(device, transformer_options(c, ranks), plans.device, offload(c) ? &plans.offload : nullptr),
      optimizer(device, c.optimizer,
                {c.precision.moments, offload(c) ? &plans.offload : nullptr,
                 [this](size_t parameter) { return model.splits_refresh(parameter); }, c.run.seed,
                 dtype_of(c.precision.storage)},
                model.parameters(), plans.device),
      data_parallel(device, communicator, ranks.ranks, c, model, optimizer, plans.device),
      evaluation_sums(
          plans.device.add("evaluation.loss_sums", Category::Other, DType::F64, {validation_batches(c)})),
      validation_tokens(plans.host.add("validation.tokens", Category::Batch, DType::I32,
                                       {validation_batches(c), c.batch.micro * c.model.context})),
      validation_targets(
          plans.host.add("validation.targets", Category::Batch, DType::I32, validation_tokens.shape)),
      snapshot(model, optimizer, plans.host,
               trains_alone(c) ? Snapshot::Local{ranks.rank, ranks.ranks, data_parallel.states()}
                               : Snapshot::Local{}) {}

}  // namespace octet
