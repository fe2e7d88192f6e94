#include "analysis/scaling_constants.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "analysis/committed_scaling_constants.h"
#include "base/error.h"
#include "base/text.h"

namespace octet {
namespace {

using Json = nlohmann::json;

const std::vector<std::string>& names() {
  static const std::vector<std::string> list = {"utilisation_bf16",
                                                "utilisation_fp8",
                                                "ranks_per_node",
                                                "link_bits_per_second",
                                                "link_efficiency",
                                                "intra_link_efficiency",
                                                "call_latency_microseconds",
                                                "intra_latency_microseconds",
                                                "inter_latency_microseconds",
                                                "tree_efficiency",
                                                "overlap_cost",
                                                "update_bandwidth_share",
                                                "save_pause_seconds",
                                                "host_copy_bytes_per_second",
                                                "save_bytes_per_second_per_node",
                                                "storage_bytes_per_second",
                                                "node_mtbf_hours",
                                                "restart_seconds"};
  return list;
}

[[noreturn]] void broken(const std::string& source, const std::string& key, const std::string& what) {
  throw Error(ExitCode::Usage, fmt::format("{}: constants/{}: {}", source, escape_control(key), what),
              "docs/results/scaling_constants.json is the pattern");
}

[[noreturn]] void unknown(const std::string& name) {
  const std::string near = nearest(name, names());
  throw Error(
      ExitCode::Usage, fmt::format("unknown scaling constant \"{}\"", escape_control(name)),
      near.empty() ? "octet plan CONFIG --ranks N lists them" : fmt::format("did you mean {}?", near));
}

bool usable(double value) { return std::isfinite(value) && value > 0; }

ScalingConstant read(const Json& entry, const std::string& source, const std::string& key) {
  for (const char* part : {"value", "unit", "kind", "source"})
    if (!entry.is_object() || !entry.contains(part)) broken(source, key, fmt::format("no \"{}\"", part));
  for (const char* part : {"unit", "kind", "source"})
    if (!entry[part].is_string() || entry[part].get<std::string>().empty())
      broken(source, key, fmt::format("\"{}\" is not a text", part));
  if (!entry["value"].is_number() || !usable(entry["value"].get<double>()))
    broken(source, key, fmt::format("found {}; allowed: a number above 0", entry["value"].dump()));
  ScalingConstant constant{entry["value"].get<double>(), entry["unit"].get<std::string>(),
                           entry["kind"].get<std::string>(), entry["source"].get<std::string>()};
  constexpr std::array kinds = {"measured", "published", "assumed"};
  if (std::find(kinds.begin(), kinds.end(), constant.kind) == kinds.end())
    broken(source, key, fmt::format("kind \"{}\"; allowed: measured, published, assumed", constant.kind));
  return constant;
}

}  // namespace

ScalingConstants ScalingConstants::parse(const std::string& text, const std::string& source_name) {
  const Json root = Json::parse(text, nullptr, false);
  if (!root.is_object() || !root.contains("constants") || !root["constants"].is_object())
    broken(source_name, "", "this is not a JSON file with an object \"constants\"");
  ScalingConstants made;
  for (const auto& [key, entry] : root["constants"].items()) {
    if (std::find(names().begin(), names().end(), key) == names().end()) unknown(key);
    made.constants_[key] = read(entry, source_name, key);
  }
  for (const std::string& name : names())
    if (made.constants_.count(name) == 0) broken(source_name, name, "missing");
  return made;
}

ScalingConstants ScalingConstants::committed() {
  return parse(committed_scaling_constants, "docs/results/scaling_constants.json");
}

const ScalingConstant& ScalingConstants::at(const std::string& name) const {
  const auto found = constants_.find(name);
  if (found == constants_.end()) unknown(name);
  return found->second;
}

void ScalingConstants::give(const std::string& name, double value) {
  const auto found = constants_.find(name);
  if (found == constants_.end()) unknown(name);
  if (!usable(value))
    throw Error(ExitCode::Usage, fmt::format("scaling constant {}: found {}", name, value),
                "give a number above 0");
  found->second.value = value;
  found->second.kind = "given";
  found->second.source = "the command line";
}

void ScalingConstants::give(const std::string& assignment) {
  const size_t equals = assignment.find('=');
  double value = 0;
  size_t used = 0;
  try {
    if (equals != std::string::npos) value = std::stod(assignment.substr(equals + 1), &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (equals == std::string::npos || used == 0 || used != assignment.size() - equals - 1)
    throw Error(ExitCode::Usage, fmt::format("--constant {}: no NAME=NUMBER", escape_control(assignment)),
                "for example --constant link_efficiency=0.9");
  give(assignment.substr(0, equals), value);
}

double bandwidth_of(const std::string& text, const std::string& option) {
  double value = 0;
  size_t used = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const std::string unit = text.substr(used);
  const std::string prefixes = "kMGT";
  const size_t prefix = unit.empty() ? std::string::npos : prefixes.find(unit[0]);
  const std::string rest = unit.empty() ? "" : unit.substr(1);
  const bool bytes = rest == "B", bits = rest.empty() || rest == "b" || rest == "bit";
  if (used == 0 || !usable(value) || prefix == std::string::npos || (!bytes && !bits))
    throw Error(ExitCode::Usage, fmt::format("{} {}: not a bandwidth", option, escape_control(text)),
                "a number with k, M, G or T for bits a second (400G), and a B for bytes (50GB)");
  return value * std::pow(1e3, static_cast<double>(prefix) + 1) / (bytes ? 1 : 8);
}

}  // namespace octet
