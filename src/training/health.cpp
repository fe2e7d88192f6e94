#include "training/health.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>

#include "numerics/float8.h"
#include "numerics/observation.h"

namespace octet {
namespace {

TensorHealth tensor_health(const double* sums, const uint32_t* extremes, const ObservedStep& step) {
  const double tokens = static_cast<double>(step.tokens), context = static_cast<double>(step.context);
  TensorHealth t;
  t.kurtosis = sums[0] / tokens;
  t.sequence_kurtosis = sums[1] / (tokens / context);
  t.mean = sums[2] / tokens;
  t.rms = std::sqrt(sums[3] / tokens);
  t.highest = static_cast<double>(from_ordered_bits(extremes[0]));
  t.amax = static_cast<double>(std::bit_cast<float>(extremes[1]));
  return t;
}

void add_channels(BlockHealth& block, std::span<const uint32_t> amax_bits, std::span<const float> cosines) {
  const auto amax_of = [](uint32_t bits) { return static_cast<double>(std::bit_cast<float>(bits)); };
  // Compared as bits: a NaN is the largest.
  const auto largest = std::max_element(amax_bits.begin(), amax_bits.end());
  block.channel = largest - amax_bits.begin();
  block.channel_amax = amax_of(*largest);
  std::vector<uint32_t> sorted(amax_bits.begin(), amax_bits.end());
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  block.channel_median = amax_of(*middle);
  if (cosines.empty()) return;
  const auto aligned = std::max_element(cosines.begin(), cosines.end(),
                                        [](float a, float b) { return std::abs(a) < std::abs(b); }) -
                       cosines.begin();
  block.neuron = aligned;
  block.cosine = static_cast<double>(cosines[static_cast<size_t>(aligned)]);
  block.neuron_amax = amax_of(amax_bits[static_cast<size_t>(aligned)]);
}

// Five significant digits: what a chart shows, and a record of many blocks stays small.
Json brief(double value) {
  if (!std::isfinite(value)) return json_number(value);
  return std::strtod(fmt::format("{:.5g}", value).c_str(), nullptr);
}
template <class Items, class Value>
Json list(const Items& items, const Value& value) {
  Json values = Json::array();
  for (const auto& item : items) values.push_back(value(item));
  return values;
}
// The largest, a NaN above all; for TensorBoard.
template <class Items, class Value>
double most(const Items& items, const Value& value) {
  double largest = -std::numeric_limits<double>::infinity();
  for (const auto& item : items) {
    const double x = value(item);
    if (!(x <= largest)) largest = x;
    if (std::isnan(x)) break;
  }
  return largest;
}

Json sites_record(const std::vector<SiteHealth>& sites) {
  Json records = Json::array();
  for (const SiteHealth& s : sites) {
    if (!is_float8(s.cast.format)) continue;
    Json site = {{"name", s.name},
                 {"block", s.block},
                 {"amax", json_number(s.amax)},
                 {"scale", json_number(s.scale)},
                 {"saturated", s.saturated},
                 {"flushed", s.flushed}};
    if (!std::isnan(s.utilisation)) site["utilisation"] = brief(s.utilisation);
    if (!std::isnan(s.snr)) site["snr_db"] = brief(s.snr);
    records.push_back(std::move(site));
  }
  return records;
}

Json activations_record(const std::vector<BlockHealth>& blocks) {
  const std::pair<const char*, double TensorHealth::*> fields[] = {
      {"kurtosis", &TensorHealth::kurtosis}, {"sequence_kurtosis", &TensorHealth::sequence_kurtosis},
      {"mean", &TensorHealth::mean},         {"rms", &TensorHealth::rms},
      {"max", &TensorHealth::highest},       {"amax", &TensorHealth::amax}};
  Json activations = Json::object();
  for (size_t t = 0; t < kurtosis_tensors; ++t) {
    Json& tensor = activations[name_of(static_cast<Observed>(t))];
    for (const auto& [name, field] : fields)
      tensor[name] = list(blocks, [&](const BlockHealth& b) { return brief(b.tensors[t].*field); });
  }
  return activations;
}

Json blocks_record(const std::vector<BlockHealth>& blocks) {
  const auto numbers = [&](double BlockHealth::*field) {
    return list(blocks, [&](const BlockHealth& b) { return brief(b.*field); });
  };
  const auto places = [&](int64_t BlockHealth::*field) {
    return list(blocks, [&](const BlockHealth& b) { return b.*field; });
  };
  return {{"log_sum_exp", numbers(&BlockHealth::log_sum_exp)},
          {"channel", places(&BlockHealth::channel)},
          {"channel_amax", numbers(&BlockHealth::channel_amax)},
          {"channel_median", numbers(&BlockHealth::channel_median)},
          {"neuron", places(&BlockHealth::neuron)},
          {"cosine", numbers(&BlockHealth::cosine)},
          {"neuron_amax", numbers(&BlockHealth::neuron_amax)}};
}

void add_scalars(Json& record, const Health& health) {
  const auto& [sites, blocks, weights] = health;
  if (!sites.empty()) {
    record["health/saturated"] = most(sites, [](const SiteHealth& s) { return s.saturated; });
    record["health/flushed"] = most(sites, [](const SiteHealth& s) { return s.flushed; });
    const double noise = most(sites, [](const SiteHealth& s) { return std::isnan(s.snr) ? -1e9 : -s.snr; });
    if (noise > -1e9) record["health/snr_db"] = brief(-noise);
  }
  if (blocks.empty()) return;
  for (size_t t = 0; t < kurtosis_tensors; ++t)
    record[fmt::format("health/kurtosis/{}", name_of(static_cast<Observed>(t)))] =
        brief(most(blocks, [&](const BlockHealth& b) { return b.tensors[t].kurtosis; }));
  record["health/residual_rms"] =
      brief(most(blocks, [](const BlockHealth& b) { return b.of(Observed::BlockOutput).rms; }));
  record["health/log_sum_exp"] = brief(most(blocks, [](const BlockHealth& b) { return b.log_sum_exp; }));
  record["health/update_rms"] = brief(most(weights, [](const WeightHealth& w) { return w.update_rms; }));
  record["health/hidden_amax"] = brief(most(blocks, [](const BlockHealth& b) { return b.channel_amax; }));
  if (blocks.front().neuron >= 0)
    record["health/cosine"] = brief(most(blocks, [](const BlockHealth& b) { return std::abs(b.cosine); }));
}

}  // namespace

std::vector<SiteHealth> health_of_sites(const ScaleTable& table, const ScaleStatistics& statistics) {
  std::vector<SiteHealth> list;
  for (size_t s = 0; s < table.sites.size(); ++s) {
    const SiteInfo& info = table.sites[s];
    SiteHealth site;
    site.name = info.name;
    site.block = info.block;
    site.cast = info.cast;
    const CastCounters& counters = statistics.counters[s];
    const double elements = static_cast<double>(counters.elements);
    const auto share = [&](uint64_t n) { return elements > 0 ? static_cast<double>(n) / elements : 0.0; };
    site.saturated = share(counters.saturated);
    site.flushed = share(counters.flushed);
    const float scale = statistics.scale[s], inverse = statistics.inverse_scale[s];
    // With current scaling the cast leaves only the inverse scale behind.
    site.scale = scale != 0     ? static_cast<double>(scale)
                 : inverse != 0 ? 1 / static_cast<double>(inverse)
                                : 0;
    site.amax = static_cast<double>(statistics.amax[s]);
    if (site.scale != 0)
      site.utilisation = site.amax * site.scale / static_cast<double>(max_of(info.cast.format));
    list.push_back(std::move(site));
  }
  return list;
}

void add_observations(Health& health, const ObservedStep& step, const ObservedNumbers& numbers) {
  const ObservationLayout& layout = step.layout;
  health.blocks.resize(static_cast<size_t>(layout.blocks));
  for (int64_t b = 0; b < layout.blocks; ++b) {
    BlockHealth& block = health.blocks[static_cast<size_t>(b)];
    const auto tensor = [&](Observed what) {
      return tensor_health(numbers.sums.data() + layout.sums_of(b, what),
                           numbers.extremes.data() + layout.extremes_of(b, what), step);
    };
    for (size_t t = 0; t < kurtosis_tensors; ++t) block.tensors[t] = tensor(static_cast<Observed>(t));
    block.log_sum_exp = tensor(Observed::LogSumExp).highest;
    const auto width = static_cast<size_t>(layout.ffn_width);
    const std::span<const float> cosines =
        layout.gated ? numbers.cosines.subspan(static_cast<size_t>(b) * width, width)
                     : std::span<const float>{};
    add_channels(block, numbers.extremes.subspan(static_cast<size_t>(layout.channels_of(b)), width), cosines);
  }
  for (size_t s = 0; s < health.sites.size(); ++s) {
    const double* sums = numbers.sums.data() + layout.errors_of(static_cast<int64_t>(s));
    if (sums[0] > 0 || std::isnan(sums[0])) health.sites[s].snr = 10 * std::log10(sums[0] / sums[1]);
  }
  for (size_t w = 0; w < step.weights.size(); ++w) {
    WeightHealth weight;
    weight.name = step.weights[w];
    weight.rms = std::sqrt(numbers.weight_sums[4 * w + 3] / static_cast<double>(step.weight_rows[w]));
    weight.update_rms = step.update_rms[w];
    health.weights.push_back(std::move(weight));
  }
}

Json health_record(const Health& health) {
  Json record = {{"sites", sites_record(health.sites)}};
  if (!health.blocks.empty()) {
    record["activations"] = activations_record(health.blocks);
    record["blocks"] = blocks_record(health.blocks);
    record["weights"] = list(health.weights, [](const WeightHealth& w) {
      return Json{{"name", w.name},
                  {"rms", brief(w.rms)},
                  {"growth", brief(w.growth)},
                  {"update_rms", brief(w.update_rms)}};
    });
  }
  add_scalars(record, health);
  return record;
}

}  // namespace octet
