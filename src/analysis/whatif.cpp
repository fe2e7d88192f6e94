#include "analysis/whatif.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>

#include "analysis/fixed_windows.h"
#include "base/error.h"
#include "base/median.h"
#include "base/text.h"
#include "device/observed_device.h"
#include "device/scales.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"
#include "training/loaded_model.h"
#include "training/open_device.h"

namespace octet {
namespace {

// A tensor's values on the host, whatever its type.
std::vector<float> values_of(Device& device, const Tensor& tensor) {
  const int64_t n = tensor.elements();
  std::vector<std::byte> bytes(tensor.bytes());
  device.copy_to_host(bytes.data(), tensor.data, bytes.size());
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto code = static_cast<uint8_t>(bytes[i * size_of(tensor.dtype)]);
    switch (tensor.dtype) {
      case DType::F32:
        std::memcpy(&values[i], bytes.data() + 4 * i, 4);
        break;
      case DType::BF16: {
        BFloat16 narrow;
        std::memcpy(&narrow, bytes.data() + 2 * i, 2);
        values[i] = to_float(narrow);
        break;
      }
      case DType::E4M3:
        values[i] = decode_e4m3(code);
        break;
      case DType::E5M2:
        values[i] = decode_e5m2(code);
        break;
      default:
        throw Error(ExitCode::Internal, fmt::format("what-if: a cast of {}", name_of(tensor.dtype)));
    }
  }
  return values;
}

// Inverse scales of a copy, on the host, in coordinates of the source.
struct Scales {
  std::vector<float> values;
  InverseScales grid;  // the device's values
  double at(int64_t row, int64_t column) const {
    return static_cast<double>(values[static_cast<size_t>(grid.index(row, column))]);
  }
};

// What a codes' tensor stands for beside its source.
CastQuality quality_of(const std::vector<float>& source, int64_t columns, const std::vector<float>& codes,
                       bool transposed, DType format, const Scales& inverse,
                       const std::vector<float>& row_factor) {
  const double largest = format == DType::E4M3 ? 448.0 : 57344.0;
  const int64_t rows = static_cast<int64_t>(source.size()) / columns;
  CastQuality quality;
  quality.elements = rows * columns;
  for (int64_t r = 0; r < rows; ++r) {
    const double factor = row_factor.empty() ? 1 : static_cast<double>(row_factor[static_cast<size_t>(r)]);
    for (int64_t c = 0; c < columns; ++c) {
      const double x = factor * static_cast<double>(source[static_cast<size_t>(r * columns + c)]),
                   scale = inverse.at(r, c);
      const auto at = static_cast<size_t>(transposed ? c * rows + r : r * columns + c);
      const double y = static_cast<double>(codes[at]) * scale;
      quality.signal += x * x;
      quality.noise += (x - y) * (x - y);
      quality.saturated += std::abs(x) > largest * scale ? 1 : 0;
      quality.flushed += x != 0 && y == 0 ? 1 : 0;
    }
  }
  return quality;
}

class CastObserver {
 public:
  CastObserver(Device& device, const ScaleTable& scales, WhatIfRecipe& result)
      : device_(device), scales_(scales), result_(result) {}

  void operator()(CastTarget target, const Tensor& source) {
    if (target.row.empty() && target.column.empty()) return;
    // Buffers that linears share do not know the format of their codes.
    target.row.dtype = target.column.dtype = dtype_of(target.cast.format);
    device_.synchronize();
    const std::vector<float> values = values_of(device_, source);
    const int64_t columns = source.columns();
    const CastScales scales = cast_scales(target, source.rows(), columns);
    if (!target.row.empty()) {
      // `channel`: both copies have one scale a channel.
      const Tensor& of_row =
          target.row_inverse_scale.empty() ? target.column_inverse_scale : target.row_inverse_scale;
      add(target.site, "",
          quality_of(
              values, columns, values_of(device_, target.row), false, target.row.dtype,
              of_row.empty() ? site_scale(target.site) : Scales{values_of(device_, of_row), scales.row}, {}));
    }
    const bool column_differs = !target.column_inverse_scale.empty() || !target.row_factor.empty();
    if (target.column.empty() || (!column_differs && !target.row.empty())) return;
    std::vector<float> factor;
    if (!target.row_factor.empty()) factor = values_of(device_, target.row_factor);
    const Tensor& of_column = target.column_inverse_scale;
    add(target.site, target.row.empty() ? "" : " (column)",
        quality_of(values, columns, values_of(device_, target.column), true, target.column.dtype,
                   of_column.empty() ? site_scale(factor.empty() ? target.site : target.column_site)
                                     : Scales{values_of(device_, of_column), scales.column},
                   factor));
  }

 private:
  Scales site_scale(const Site& site) const {
    Scales inverse{{0}, {}};
    device_.copy_to_host(inverse.values.data(), site.inverse_scale, sizeof(float));
    return inverse;
  }
  void add(const Site& site, const char* copy, const CastQuality& quality) {
    const auto index = static_cast<size_t>(site.scale - scales_.scale.as<float>());
    const SiteInfo& info = scales_.sites.at(index);
    result_.sites.push_back({info.name + copy, info.block, quality});
  }

  Device& device_;
  const ScaleTable& scales_;
  WhatIfRecipe& result_;
};

WhatIfRecipe measure(Device& device, const RunConfig& config, const CheckpointEntry& checkpoint,
                     const FixedWindows& windows, bool own_scales) {
  WhatIfRecipe result;
  ObservedDevice observed(device);
  LoadedModel loaded(observed, config);
  loaded.load(checkpoint.folder);
  Transformer& model = loaded.model();
  const int64_t rows = config.batch.micro * config.model.context;
  // As in training: scales that come from there expect gradients of that size.
  const float scale = 1.0f / static_cast<float>(config.batch.tokens);
  const auto pass = [&](int64_t batch) {
    model.zero_gradients();
    observed.zero(model.loss_sum());
    const size_t first = static_cast<size_t>(std::min(batch, windows.batches - 1) * rows);
    model.forward_backward(windows.tokens.data() + first, windows.targets.data() + first, scale,
                           {checkpoint.step, batch});
  };
  if (!own_scales) {  // delayed scales have no history yet
    pass(1);
    model.update_scales(checkpoint.step);
  }
  CastObserver observer(device, model.scales(), result);
  observed.observe({.cast = [&](const CastTarget& target, const Tensor& source) { observer(target, source); },
                    .swiglu = {},
                    .head = {}});
  model.refresh_working_weights(checkpoint.step);
  pass(0);
  observed.observe({});
  double loss = 0;
  observed.synchronize();
  observed.copy_to_host(&loss, model.loss_sum().data, sizeof loss);
  const auto there = std::count_if(windows.targets.begin(), windows.targets.begin() + rows,
                                   [](int32_t target) { return target >= 0; });
  result.loss = loss / static_cast<double>(there);
  return result;
}

// "blocks.3.ffn.down.input" -> "ffn.down.input"
std::string role_of(const WhatIfSite& site) {
  const std::string prefix = fmt::format("blocks.{}.", site.block);
  return site.name.rfind(prefix, 0) == 0 ? site.name.substr(prefix.size()) : site.name;
}

std::string percent(double share) {
  return share == 0 ? "0" : share < 1e-4 ? "<0.01" : fmt::format("{:.2f}", 100 * share);
}
std::string decibels(double snr) { return std::isfinite(snr) ? fmt::format("{:.1f}", snr) : "exact"; }

}  // namespace

double CastQuality::snr() const {
  if (std::isnan(noise)) return noise;
  return noise > 0 ? 10 * std::log10(signal / noise) : std::numeric_limits<double>::infinity();
}
double CastQuality::saturated_share() const {
  return static_cast<double>(saturated) / static_cast<double>(std::max<int64_t>(elements, 1));
}
double CastQuality::flushed_share() const {
  return static_cast<double>(flushed) / static_cast<double>(std::max<int64_t>(elements, 1));
}

std::vector<std::string> overrides_of_recipe(const std::string& text) {
  std::vector<std::string> overrides;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(':', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (word.empty() || (!overrides.empty() && word.find('=') == std::string::npos))
      throw Error(ExitCode::Usage,
                  fmt::format("--recipes {}: found '{}'", escape_control(text), escape_control(word)),
                  "a recipe, then keys of the precision section: fp8:scaling=delayed:smooth_swiglu=none");
    overrides.push_back((overrides.empty() ? "precision.recipe=" : "precision.") + word);
    begin = end + 1;
  }
  return overrides;
}

WhatIf what_if(const WhatIfRequest& request) {
  const CheckpointEntry checkpoint = checkpoints_at(request.checkpoint).back();
  const Manifest manifest = read_manifest(checkpoint.folder);
  const RunConfig own = config_of(manifest, checkpoint.folder);
  std::vector<RunConfig> configs;
  for (const std::string& recipe : request.recipes) {  // all of them before the first is measured
    std::vector<std::string> overrides = overrides_of_recipe(recipe);
    overrides.insert(overrides.end(), request.overrides.begin(), request.overrides.end());
    configs.push_back(config_of(manifest, checkpoint.folder, overrides));
  }
  WhatIf result;
  result.step = checkpoint.step;
  for (size_t i = 0; i < configs.size(); ++i) {
    const RunConfig& config = configs[i];
    const FixedWindows windows = fixed_windows(config, 2 * config.batch.micro, request.data);
    const std::unique_ptr<Device> device = open_device(request.device, device_options(config));
    result.tokens = config.batch.micro * config.model.context;
    result.recipes.push_back(
        measure(*device, config, checkpoint, windows, config.precision == own.precision));
    result.recipes.back().name = request.recipes[i];
  }
  return result;
}

std::string table(const WhatIf& result, Detail detail) {
  // By name in the order of the first recipe that has it; of each recipe the sites of that name.
  std::vector<std::string> names;
  std::map<std::string, std::vector<std::vector<const WhatIfSite*>>> rows;
  size_t width = 4;
  for (size_t r = 0; r < result.recipes.size(); ++r)
    for (const WhatIfSite& site : result.recipes[r].sites) {
      const std::string name = detail == Detail::Sites ? site.name : role_of(site);
      auto& row = rows[name];
      if (row.empty()) {
        names.push_back(name);
        row.resize(result.recipes.size());
        width = std::max(width, name.size());
      }
      row[r].push_back(&site);
    }
  std::string out =
      fmt::format("step {}, {} tokens; SNR in dB{}, then saturated and flushed, percent\n", result.step,
                  result.tokens, detail == Detail::Roles ? ": median over blocks / worst" : "");
  for (size_t r = 0; r < result.recipes.size(); ++r)
    out += fmt::format("  [{}] {}: loss {:.4f}\n", r + 1, result.recipes[r].name, result.recipes[r].loss);
  out += fmt::format("{:<{}}", "site", width);
  for (size_t r = 0; r < result.recipes.size(); ++r)
    out += fmt::format("  {:>15} {:>6} {:>6}", fmt::format("[{}]", r + 1), "sat", "flush");
  out += "\n";
  for (const std::string& name : names) {
    out += fmt::format("{:<{}}", name, width);
    for (const auto& sites : rows[name]) {
      if (sites.empty()) {
        out += fmt::format("  {:>15} {:>6} {:>6}", "–", "", "");
        continue;
      }
      std::vector<double> snr;
      double worst = std::numeric_limits<double>::infinity(), saturated = 0, flushed = 0;
      for (const WhatIfSite* site : sites) {
        snr.push_back(site->quality.snr());
        worst = std::min(worst, snr.back());
        saturated = std::max(saturated, site->quality.saturated_share());
        flushed = std::max(flushed, site->quality.flushed_share());
      }
      const std::string middle = decibels(median(snr));
      out += fmt::format("  {:>15} {:>6} {:>6}",
                         detail == Detail::Sites ? middle : middle + " / " + decibels(worst),
                         percent(saturated), percent(flushed));
    }
    out += "\n";
  }
  return out;
}

Json to_json(const WhatIf& result) {
  Json json = {{"step", result.step}, {"tokens", result.tokens}, {"recipes", Json::array()}};
  for (const WhatIfRecipe& recipe : result.recipes) {
    Json sites = Json::array();
    for (const WhatIfSite& site : recipe.sites)
      sites.push_back({{"name", site.name},
                       {"block", site.block},
                       {"snr_db", json_number(site.quality.snr())},
                       {"saturated", site.quality.saturated_share()},
                       {"flushed", site.quality.flushed_share()}});
    json["recipes"].push_back(
        {{"recipe", recipe.name}, {"loss", json_number(recipe.loss)}, {"sites", sites}});
  }
  return json;
}

}  // namespace octet
