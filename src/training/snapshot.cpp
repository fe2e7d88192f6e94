#include "training/snapshot.h"

#include <fmt/format.h>

#include <cstring>

#include "base/error.h"
#include "training/checkpoint_parts.h"

namespace octet {
namespace {

constexpr const char* scales_file = "scale_table.safetensors";
constexpr const char* outer_file = "outer.safetensors";

constexpr const char* moments_prefix = "moments";

std::string moments_file(int rank) {
  return moments_prefix + (rank == 0 ? std::string() : fmt::format("-rank-{}", rank)) + ".safetensors";
}

}  // namespace

Snapshot::Snapshot(Transformer& model, AdamW& optimizer, MemoryPlan& plan)
    : Snapshot(model, optimizer, plan, Local{}) {}

Snapshot::Snapshot(Transformer& model, AdamW& optimizer, MemoryPlan& plan, const Local& local)
    : scales_(&model.scales()), rank_(local.rank) {
  payloads_.resize(3);
  payloads_[0].file = "masters.safetensors";
  payloads_[1].file = moments_file(0);
  payloads_[2].file = scales_file;
  const std::vector<Parameter>& parameters = model.parameters();
  for (const Parameter& p : parameters)
    add(payloads_[0], {p.name, p.master, p.gradient.shape, p.begin}, plan);
  if (!scales_->sites.empty()) {
    add(payloads_[2], {"amax_history", scales_->amax_history, scales_->amax_history.shape}, plan);
    add(payloads_[2], {"scale", scales_->scale, scales_->scale.shape}, plan);
    add(payloads_[2], {"inverse_scale", scales_->inverse_scale, scales_->inverse_scale.shape}, plan);
  }
  const int owners = local.outer.empty() ? 1 : local.ranks;
  for (int owner = 1; owner < owners; ++owner) payloads_.push_back({moments_file(owner), {}});
  for (int owner = 0; owner < owners; ++owner) {
    Payload& payload = payloads_[owner == 0 ? 1 : static_cast<size_t>(2 + owner)];
    for (size_t i = 0; i < parameters.size(); ++i)
      for (const Item& item : moments_of(parameters[i], optimizer.states()[i])) {
        if (owners > 1 && owner != local.rank)  // another rank's: nothing of it is here
          payload.tensors.emplace_back(item.name, Tensor{nullptr, item.device.dtype, {0}}, item.shape, 0);
        else
          add(payload, item, plan);
      }
  }
  if (local.outer.empty()) return;
  payloads_.push_back({outer_file, {}});
  for (const NamedTensor& state : local.outer)
    add(payloads_.back(), {state.name, state.tensor, state.tensor.shape}, plan);
}

std::vector<Snapshot::Item> Snapshot::moments_of(const Parameter& parameter, const AdamW::State& state) {
  const std::pair<const char*, const MomentTensor*> moments[] = {{".first", &state.first},
                                                                 {".second", &state.second}};
  std::vector<Item> items;
  for (const auto& [suffix, moment] : moments) {
    items.push_back({parameter.name + suffix, moment->values, parameter.gradient.shape, parameter.begin});
    if (!moment->inverse.empty()) items.push_back(scales_of(parameter, suffix, *moment));
  }
  return items;
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
  const std::string own = moments_file(rank_), found = moments_file(rank_ % ranks_with_moments(checkpoint));
  for (Payload payload : payloads_) {
    const bool of_another = payload.file.starts_with(moments_prefix) && payload.file != own;
    if (payload.tensors.empty() || of_another) continue;
    const bool unread = payload.file == outer_file ? !std::filesystem::exists(checkpoint / outer_file)
                                                   : scales == Scales::Forget && payload.file == scales_file;
    if (unread) {
      for (const TensorPiece& t : payload.tensors) std::memset(t.values.data, 0, t.values.bytes());
      continue;
    }
    if (payload.file == own) payload.file = found;
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

int Snapshot::ranks_with_moments(const std::filesystem::path& checkpoint) {
  int ranks = 1;
  while (std::filesystem::exists(checkpoint / moments_file(ranks))) ++ranks;
  return ranks;
}

}  // namespace octet
