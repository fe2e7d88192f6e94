#include "training/snapshot.h"

#include <fmt/format.h>

#include <cstring>

#include "base/error.h"
#include "numerics/masters.h"
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

Snapshot::Snapshot(Transformer& model, Optimizer& optimizer, MemoryPlan& plan)
    : Snapshot(model, optimizer, plan, Local{}) {}

Snapshot::Snapshot(Transformer& model, Optimizer& optimizer, MemoryPlan& plan, const Local& local)
    : model_(&model), scales_(&model.scales()), rank_(local.rank) {
  payloads_.resize(3);
  payloads_[0].file = "masters.safetensors";
  payloads_[1].file = moments_file(0);
  payloads_[2].file = scales_file;
  const std::vector<Parameter>& parameters = model.parameters();
  for (const Parameter& p : parameters)
    for (const Item& item : masters_of(p)) add(payloads_[0], item, plan);
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

std::vector<Snapshot::Item> Snapshot::masters_of(const Parameter& p) {
  const MasterCode& code = p.master_code;
  std::vector<Item> items{{p.name, p.master, p.gradient.shape, p.begin}};
  if (!code.rest.empty())
    items.push_back({p.name + (code.format == MasterFormat::BF16Remainder ? ".remainder" : ".compensation"),
                     code.rest, p.gradient.shape, p.begin});
  if (!code.inverse.empty())
    items.push_back({p.name + ".inverse_scale", code.inverse,
                     Shape{(p.gradient.elements() + master_block - 1) / master_block},
                     p.begin / master_block});
  return items;
}

std::vector<Snapshot::Item> Snapshot::moments_of(const Parameter& parameter, const Optimizer::State& state) {
  const std::pair<const char*, const MomentTensor*> moments[] = {{".first", &state.first},
                                                                 {".second", &state.second}};
  std::vector<Item> items;
  for (const auto& [suffix, moment] : moments) {
    if (moment->values.empty()) continue;
    const std::string name = parameter.name + suffix;
    items.push_back({name, moment->values, parameter.gradient.shape, parameter.begin});
    if (!moment->inverse.empty()) add_scales(items, parameter, name, *moment);
  }
  return items;
}

// A piece begins with a block: its scales are some of the whole tensor's.
void Snapshot::add_scales(std::vector<Item>& items, const Parameter& parameter, const std::string& name,
                          const MomentTensor& moment) {
  const int64_t elements = parameter.gradient.elements(), block = moment.block;
  const bool whole = parameter.master.elements() == elements;
  if (block == 0 ? !whole : parameter.begin % block != 0 && parameter.master.elements() > 0)
    throw Error(
        ExitCode::Usage,
        fmt::format("{}: moments with {} cannot be divided among ranks at element {}", parameter.name,
                    block == 0 ? std::string("one scale a tensor") : fmt::format("blocks of {}", block),
                    parameter.begin),
        "set parallel.zero to 0, or precision.moments.block to 128 or another divisor of 16384");
  const Shape scales{block == 0 ? 1 : (elements + block - 1) / block};
  const int64_t begin = block == 0 ? 0 : parameter.begin / block;
  const bool expanded = !moment.exponents.empty();
  items.push_back({name + (expanded ? ".largest" : ".inverse_scale"), moment.inverse, scales, begin});
  if (expanded) items.push_back({name + ".exponent", moment.exponents, scales, begin});
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
// may have moved on; nothing reads it before the next cast. Only scales that are known before their casts are
// state across steps.
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
    const bool state = is_float8(cast.format) && is_known_before(cast.scaling);
    if (!state || scale[s] == 0) scale[s] = inverse[s] = 0;
    for (size_t row = 0; !state && row < window; ++row) history[row * sites + s] = 0;
  }
}

void Snapshot::put_back(Device& device) const {
  for (const Pair& p : pairs_) device.copy_from_host(p.device.data, p.host.data, p.host.bytes());
  model_->write_static_scales();  // the model's own, also where the checkpoint's casts were others
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

int Snapshot::ranks_with_moments(const std::filesystem::path& checkpoint) {
  int ranks = 1;
  while (std::filesystem::exists(checkpoint / moments_file(ranks))) ++ranks;
  return ranks;
}

}  // namespace octet
