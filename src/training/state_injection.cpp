#include "training/state_injection.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/text.h"
#include "numerics/bfloat16.h"
#include "training/run_memory.h"

namespace octet {
namespace {

[[noreturn]] void refuse(const std::string& text, const std::string& why) {
  throw Error(ExitCode::Usage, fmt::format("--inject {}: {}", escape_control(text), why),
              "for example align:step=200, align:step=200,hidden=1e6,contribution=1, "
              "align:step=200,neurons=2,scale=50 "
              "or "
              "row:step=200,parameter=embedding.weight,row=10,scale=100");
}

const std::map<std::string, std::vector<std::string>>& grammar() {
  static const std::map<std::string, std::vector<std::string>> keys = {
      {"align", {"step", "neuron", "neurons", "hidden", "scale", "contribution"}},
      {"row", {"step", "parameter", "row", "scale"}}};
  return keys;
}

int64_t whole(const std::string& text, const std::string& key, const std::string& value, int64_t least) {
  const bool digits =
      !value.empty() && value.size() <= 12 && value.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || std::stoll(value) < least)
    refuse(text,
           fmt::format("'{}' is a whole number from {}, found '{}'", key, least, escape_control(value)));
  return std::stoll(value);
}

double number(const std::string& text, const std::string& key, const std::string& value) {
  size_t used = 0;
  double parsed = std::nan("");
  try {
    parsed = std::stod(value, &used);
  } catch (const std::exception&) {
  }
  if (used != value.size() || !std::isfinite(parsed) || parsed == 0 || (key == "hidden" && parsed < 1))
    refuse(text, fmt::format("'{}' is a number{}, found '{}'", key,
                             key == "hidden" ? " from 1" : " that is not zero", escape_control(value)));
  return parsed;
}

// Solves t * silu(t) = hidden.
double preactivation_of(double hidden) {
  double low = 0, high = hidden + 2;
  for (int i = 0; i < 200; ++i) {
    const double middle = 0.5 * (low + high);
    (middle * middle / (1 + std::exp(-middle)) < hidden ? low : high) = middle;
  }
  return high;
}

// Rows of masters, wherever they are and whoever holds them.
class MasterRows {
 public:
  explicit MasterRows(const InjectionSite& site, std::string name) : site_(site), name_(std::move(name)) {}

  std::vector<float> read(const Parameter& p, int64_t row) {
    const int64_t width = p.gradient.columns();
    std::vector<float> values(static_cast<size_t>(width));
    const Part mine = part(p, row);
    if (mine.count > 0)
      site_.device.copy_to_host(values.data() + mine.in_row, mine.master.data, mine.master.bytes());
    if (p.shard == 0) return values;
    const std::string bytes(reinterpret_cast<const char*>(values.data() + mine.in_row),
                            static_cast<size_t>(mine.count) * sizeof(float));
    const std::vector<std::string> all =
        site_.ranks.all(fmt::format("{}/{}", name_, exchanges_++), fmt::format("{} ", mine.in_row) + bytes);
    for (const std::string& one : all) {
      const size_t space = one.find(' ');
      std::memcpy(values.data() + std::stoll(one), one.data() + space + 1, one.size() - space - 1);
    }
    return values;
  }

  void write(const Parameter& p, int64_t row, const std::vector<float>& values) {
    const Part mine = part(p, row);
    if (mine.count > 0)
      site_.device.copy_from_host(mine.master.data, values.data() + mine.in_row, mine.master.bytes());
  }

 private:
  // What this rank holds of a row.
  struct Part {
    Tensor master;
    int64_t in_row = 0, count = 0;
  };
  static Part part(const Parameter& p, int64_t row) {
    const int64_t width = p.gradient.columns(), begin = std::max(row * width, p.begin),
                  end = std::min((row + 1) * width, p.begin + p.master.elements());
    if (begin >= end) return {};
    return {p.master.flat().slice(begin - p.begin, end - begin), begin - row * width, end - begin};
  }

  const InjectionSite& site_;
  std::string name_;
  int exchanges_ = 0;
};

const Parameter& parameter_named(const InjectionSite& site, const std::string& name) {
  for (const Parameter& p : site.memory.model.parameters())
    if (p.name == name) return p;
  throw Error(ExitCode::Internal, "injection: no parameter " + name);
}

std::string gate_up_of(int64_t block) { return fmt::format("blocks.{}.ffn.gate_up.weight", block); }

// As after an update: the step's amaxes and counts begin with the casts of its working weights.
void refresh(const InjectionSite& site) {
  ScaleTable& scales = site.memory.model.scales();
  if (!scales.sites.empty()) {
    site.device.zero(scales.amax);
    site.device.zero(scales.counters);
  }
  if (const Observations& seen = site.memory.model.observations(); seen.planned()) seen.clear(site.device);
  site.memory.data_parallel.refresh_working_weights(site.step - 1);
}

// Column `gate` of a block's gate_up in a forward pass of the step's first micro-batch; on rank 0.
std::vector<double> preactivations(const InjectionSite& site, int64_t block, int64_t gate) {
  std::vector<double> column;
  int64_t seen = 0;
  site.device.observe({.cast = {}, .swiglu = [&](const SwiGluForward& op) {
                         if (seen++ != block) return;
                         site.device.synchronize();
                         std::vector<std::byte> bytes(op.gate_up.bytes());
                         site.device.copy_to_host(bytes.data(), op.gate_up.data, bytes.size());
                         const int64_t width = op.gate_up.columns();
                         for (int64_t t = 0; t < op.gate_up.rows(); ++t) {
                           const auto at = static_cast<size_t>(t * width + gate);
                           const float z =
                               op.gate_up.dtype == DType::F32
                                   ? reinterpret_cast<const float*>(bytes.data())[at]
                                   : to_float(reinterpret_cast<const BFloat16*>(bytes.data())[at]);
                           column.push_back(static_cast<double>(z));
                         }
                       }});
  site.memory.model.forward(site.first.tokens.data(), site.first.targets.data());
  site.device.observe({});
  site.device.zero(site.memory.model.loss_sum());
  return column;
}

// What brings the largest z of the neuron to where h is `hidden`, so that it fires for the tokens for which
// it did; one that fires for none is turned round.
double scale_for(const InjectionSite& site, int64_t block, const StateInjection& injection, int64_t neuron) {
  double largest = 0;
  if (site.ranks.leads())
    for (const double z : preactivations(site, block, neuron))
      if ((largest > 0 || z > 0) ? z > largest : z < largest) largest = z;
  // Ranks agree on rank 0's number, in hexadecimal so that no bit is lost.
  const std::string agreed =
      site.ranks.from_leader(fmt::format("inject/{}/{}/{}/{}", site.step, site.attempt, block, neuron),
                             fmt::format("{:a}", largest));
  largest = std::strtod(agreed.c_str(), nullptr);
  return largest == 0 ? 1 : preactivation_of(injection.hidden) / largest;
}

// Every rank multiplies what it holds of the column.
void scale_column(const InjectionSite& site, const Parameter& p, int64_t column, float factor) {
  const int64_t width = p.gradient.columns();
  std::vector<float> values(static_cast<size_t>(p.master.elements()));
  if (values.empty()) return;
  site.device.copy_to_host(values.data(), p.master.data, p.master.bytes());
  for (size_t i = 0; i < values.size(); ++i)
    if ((p.begin + static_cast<int64_t>(i)) % width == column) values[i] *= factor;
  site.device.copy_from_host(p.master.data, values.data(), p.master.bytes());
}

std::string align(const StateInjection& injection, const InjectionSite& site) {
  MasterRows rows(site, fmt::format("inject-rows/{}/{}", site.step, site.attempt));
  const TransformerSpec& spec = site.memory.model.options().spec;
  double least = INFINITY, most = -INFINITY;
  for (int64_t block = 0; block < spec.layers; ++block) {
    const Parameter& gate_up = parameter_named(site, gate_up_of(block));
    for (int64_t neuron = injection.neuron; neuron < injection.neuron + injection.neurons; ++neuron) {
      const double scale = injection.scale != 0 ? injection.scale : scale_for(site, block, injection, neuron);
      std::vector<float> weights = rows.read(gate_up, neuron);
      for (float& w : weights) w = static_cast<float>(scale * static_cast<double>(w));
      rows.write(gate_up, neuron, weights);
      rows.write(gate_up, spec.ffn_width + neuron, weights);
      if (injection.contribution != 0)
        scale_column(site, parameter_named(site, fmt::format("blocks.{}.ffn.down.weight", block)), neuron,
                     static_cast<float>(injection.contribution / injection.hidden));
      least = std::min(least, scale);
      most = std::max(most, scale);
    }
    refresh(site);  // the next block sees what this one now computes
  }
  return fmt::format(
      "{}: gate and linear weights of {} in each of {} aligned and multiplied by {:.4g} to {:.4g}",
      injection.text, plural(injection.neurons, "neuron"), plural(spec.layers, "block"), least, most);
}

std::string scale_row(const StateInjection& injection, const InjectionSite& site) {
  MasterRows rows(site, fmt::format("inject-rows/{}/{}", site.step, site.attempt));
  const Parameter& p = parameter_named(site, injection.parameter);
  std::vector<float> weights = rows.read(p, injection.row);
  for (float& w : weights) w = static_cast<float>(injection.scale * static_cast<double>(w));
  rows.write(p, injection.row, weights);
  refresh(site);
  return fmt::format("{}: row {} of {} multiplied by {:g}", injection.text, injection.row,
                     injection.parameter, injection.scale);
}

}  // namespace

std::optional<StateInjection> parse_state_injection(const std::string& text) {
  const size_t colon = text.find(':');
  const auto known = grammar().find(text.substr(0, colon));
  if (known == grammar().end()) return {};
  StateInjection injection;
  injection.text = text;
  const bool aligns = known->first == "align";
  injection.kind = aligns ? StateInjection::Kind::Align : StateInjection::Kind::Row;
  for (size_t at = colon; at != std::string::npos;) {
    const size_t comma = text.find(',', at + 1);
    const std::string pair = text.substr(at + 1, comma == std::string::npos ? comma : comma - at - 1);
    at = comma;
    const size_t equals = pair.find('=');
    const std::string key = pair.substr(0, equals),
                      value = equals == std::string::npos ? "" : pair.substr(equals + 1);
    if (std::find(known->second.begin(), known->second.end(), key) == known->second.end())
      refuse(text, fmt::format("'{}' takes {}, found '{}'", known->first, fmt::join(known->second, ", "),
                               escape_control(key)));
    if (key == "step") injection.step = whole(text, key, value, 1);
    if (key == "neuron") injection.neuron = whole(text, key, value, 0);
    if (key == "neurons") injection.neurons = whole(text, key, value, 1);
    if (key == "row") injection.row = whole(text, key, value, 0);
    if (key == "hidden") injection.hidden = number(text, key, value);
    if (key == "contribution") injection.contribution = number(text, key, value);
    if (key == "scale") injection.scale = number(text, key, value);
    if (key == "parameter") injection.parameter = value;
  }
  if (injection.step == 0) refuse(text, "when? step=K is missing");
  if (aligns && text.find("hidden=") != std::string::npos && injection.scale != 0)
    refuse(text, "hidden and scale both say by how much; give one");
  if (injection.contribution != 0 && injection.scale != 0)
    refuse(text, "a contribution is beside what the product reaches: give hidden in place of scale");
  if (!aligns && (injection.parameter.empty() || injection.row < 0 || injection.scale == 0))
    refuse(text, "'row' needs parameter, row and scale");
  return injection;
}

std::vector<StateInjection> parse_state_injections(const std::vector<std::string>& texts) {
  std::vector<StateInjection> injections;
  for (const std::string& text : texts) {
    const std::optional<StateInjection> one = parse_state_injection(text);
    if (!one) refuse(text, "no such fault in the state of a run (align, row)");
    injections.push_back(*one);
  }
  return injections;
}

void require_possible(const std::vector<StateInjection>& injections, const RunConfig& config) {
  for (const StateInjection& one : injections) {
    if (one.step > config.run.steps)
      refuse(one.text, fmt::format("the run ends at step {} (run.steps)", config.run.steps));
    if (trains_alone(config))
      refuse(one.text,
             "with parallel.sync_every above 1 the outer step takes the change for what was learned");
    if (one.kind != StateInjection::Kind::Align) continue;
    if (config.model.activation != Activation::SwiGLU)
      refuse(one.text, "'align' is of the two branches of a SwiGLU, and model.activation is another");
    if (one.neuron + one.neurons > config.model.ffn_width)
      refuse(one.text, fmt::format("neurons {} to {} of model.ffn_width {}", one.neuron,
                                   one.neuron + one.neurons - 1, config.model.ffn_width));
  }
}

void require_possible(const std::vector<StateInjection>& injections,
                      const std::vector<Parameter>& parameters) {
  for (const StateInjection& one : injections) {
    for (const Parameter& p : parameters)
      if (p.master.dtype != DType::F32)
        refuse(one.text, fmt::format("the master of {} is {}: only FP32 masters can be changed", p.name,
                                     name_of(p.master.dtype)));
    if (one.kind != StateInjection::Kind::Row) continue;
    std::vector<std::string> names;
    const Parameter* found = nullptr;
    for (const Parameter& p : parameters) {
      names.push_back(p.name);
      if (p.name == one.parameter) found = &p;
    }
    if (!found) {
      const std::string near = nearest(one.parameter, names);
      refuse(one.text, fmt::format("no parameter '{}'{}", escape_control(one.parameter),
                                   near.empty() ? "" : ": did you mean " + near + "?"));
    }
    if (found->kind == ParameterKind::Vector)
      refuse(one.text, one.parameter + " is a vector: it has no rows");
    if (one.row >= found->gradient.rows())
      refuse(one.text, fmt::format("{} has {} rows", one.parameter, found->gradient.rows()));
  }
}

std::string apply(const StateInjection& injection, const InjectionSite& site) {
  site.device.synchronize();
  return injection.kind == StateInjection::Kind::Align ? align(injection, site) : scale_row(injection, site);
}

}  // namespace octet
