#include "analysis/sweep_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "config/document.h"
#include "training/state_injection.h"

namespace octet {
namespace {

constexpr size_t most_cells = 4096;
constexpr const char* seed_key = "run.seed";

// One value of an axis: the overrides it stands for, and its names.
struct Choice {
  std::vector<std::string> overrides;
  std::string text;
};
struct Axis {
  std::string key;  // "variant", or a configuration key
  std::vector<Choice> choices;
};

std::string last_word(const std::string& key) { return key.substr(key.rfind('.') + 1); }

// What run.name and a folder may be called.
std::string file_word(const std::string& text) {
  std::string word;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '.' || c == '_' || c == '-';
    word += plain ? c : '-';
  }
  return word;
}

class SweepReader {
 public:
  SweepReader(const std::string& text, std::string source)
      : source_(std::move(source)), document_(read_document(text, source_)) {}

  Sweep read(const std::vector<std::string>& overrides, const std::string& output) {
    check_keys();
    Sweep sweep;
    sweep.name = text_at("name", "sweep");
    if (file_word(sweep.name) != sweep.name || sweep.name.empty() || sweep.name.front() == '.')
      problem("/name", fmt::format("found \"{}\"; allowed: letters, digits, '.', '_' and '-'",
                                   escape_control(sweep.name)));
    sweep.folder = !output.empty() ? output : text_at("output", "runs/" + sweep.name);
    read_base();
    common_ = overrides_at("set");
    common_.insert(common_.end(), overrides.begin(), overrides.end());
    for (const std::string& text : overrides) require_no_folder("--set", text);
    if (const Json* sharpness = find("sharpness")) {
      if (sharpness->is_number_integer() && *sharpness > 0 && *sharpness <= 1 << 20)
        sweep.sharpness = sharpness->get<int64_t>();
      else
        problem("/sharpness",
                fmt::format("found {}; allowed: a number of sequences, for example 64", show(*sharpness)));
    }
    read_inject(sweep);
    read_variants();
    read_axes();
    check_axes();
    report();
    build_cells(sweep);
    report();
    return sweep;
  }

 private:
  void problem(const std::string& pointer, const std::string& message) {
    const auto place = document_.places.find(pointer);
    const std::string where =
        place == document_.places.end() || place->second.line == 0
            ? pointer
            : fmt::format("line {}, column {}: {}", place->second.line, place->second.column, pointer);
    problems_.push_back(fmt::format("{}: {}", escape_control(where), message));
  }

  void require_no_folder(const std::string& pointer, const std::string& text) {
    if (text.starts_with("run.output=") || text.starts_with("run.name="))
      problem(pointer, fmt::format("{}: every cell has a name and a folder of its own; the sweep's are its "
                                   "\"name\" and --output",
                                   escape_control(text)));
  }

  void report() const {
    if (problems_.empty()) return;
    const std::string source = escape_control(source_);
    throw Error(ExitCode::Usage,
                problems_.size() == 1 ? fmt::format("{}: {}", source, problems_.front())
                                      : fmt::format("{}: {} problems\n  {}", source, problems_.size(),
                                                    fmt::join(problems_, "\n  ")),
                "docs/operations.md, \"Sweeps\", has the format; nothing has been run");
  }

  const Json* find(const char* key) const {
    return document_.root.is_object() && document_.root.contains(key) ? &document_.root.at(key) : nullptr;
  }

  void check_keys() {
    const std::vector<std::string> known = {"name",     "output", "base",   "set",
                                            "variants", "axes",   "inject", "sharpness"};
    if (!document_.root.is_object())
      return problem("", fmt::format("found {}; allowed: an object", show(document_.root)));
    if (!find("base") && find("model")) {
      problem("/model", "a run has this, a sweep has a \"base\" instead; train a run with octet train");
      report();
    }
    for (const auto& [key, value] : document_.root.items()) {
      if (std::find(known.begin(), known.end(), key) != known.end()) continue;
      const std::string near = nearest(key, known);
      problem("/" + escape_pointer_token(key),
              near.empty() ? fmt::format("unknown key; allowed: {}", fmt::join(known, ", "))
                           : fmt::format("unknown key; did you mean \"{}\"?", near));
    }
  }

  std::string text_at(const char* key, const std::string& otherwise) {
    const Json* value = find(key);
    if (!value) return otherwise;
    if (value->is_string() && !value->get_ref<const std::string&>().empty()) return value->get<std::string>();
    problem(std::string("/") + key, fmt::format("found {}; allowed: a text", show(*value)));
    return otherwise;
  }

  void read_base() {
    const Json* base = find("base");
    if (!base) {
      problem("/base", "missing; allowed: the path of a configuration, or a configuration");
    } else if (base->is_string()) {
      base_name_ = base->get<std::string>();
      try {
        base_text_ = read_text(base_name_, ExitCode::Usage, 1u << 20);
      } catch (const Error& error) {
        problem("/base", escape_control(error.what()));
      }
    } else if (base->is_object()) {
      base_name_ = source_ + ": /base";
      base_text_ = base->dump();
    } else {
      problem("/base", fmt::format("found {}; allowed: a path, or a configuration", show(*base)));
    }
  }

  // A list of "key=value" at a pointer such as "/variants/bf16".
  std::vector<std::string> override_list(const Json& list, const std::string& pointer) {
    std::vector<std::string> texts;
    if (!list.is_array()) {
      problem(pointer, fmt::format("found {}; allowed: a list of \"key=value\"", show(list)));
      return texts;
    }
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string text = list[i].is_string() ? list[i].get<std::string>() : "";
      if (text.find('=') == std::string::npos || text.front() == '=')
        problem(fmt::format("{}/{}", pointer, i),
                fmt::format("found {}; allowed: \"key=value\", for example \"precision.recipe=fp8\"",
                            show(list[i])));
      else
        texts.push_back(text);
      require_no_folder(fmt::format("{}/{}", pointer, i), text);
    }
    return texts;
  }
  std::vector<std::string> overrides_at(const char* key) {
    const Json* list = find(key);
    return list ? override_list(*list, std::string("/") + key) : std::vector<std::string>{};
  }

  void read_inject(Sweep& sweep) {
    const Json* list = find("inject");
    if (!list) return;
    if (!list->is_array())
      return problem("/inject", fmt::format("found {}; allowed: a list of faults", show(*list)));
    for (size_t i = 0; i < list->size(); ++i) {
      sweep.inject.push_back((*list)[i].is_string() ? (*list)[i].get<std::string>() : (*list)[i].dump());
      try {
        parse_state_injections({sweep.inject.back()});
      } catch (const Error& error) {
        problem(fmt::format("/inject/{}", i), error.what());
      }
    }
  }

  void read_variants() {
    const Json* variants = find("variants");
    if (!variants) return;
    if (!variants->is_object() || variants->empty())
      return problem("/variants", fmt::format("found {}; allowed: an object of named lists of \"key=value\"",
                                              show(*variants)));
    Axis axis{"variant", {}};
    for (const auto& [name, list] : variants->items()) {
      const std::string pointer = "/variants/" + escape_pointer_token(name);
      if (name.empty() || file_word(name) != name)
        problem(pointer, "a variant's name has letters, digits, '.', '_' and '-'");
      axis.choices.push_back({override_list(list, pointer), name});
    }
    axes_.push_back(std::move(axis));
  }

  void read_axes() {
    const Json* axes = find("axes");
    if (!axes) return;
    if (!axes->is_object())
      return problem("/axes", fmt::format("found {}; allowed: an object of keys and lists of their values",
                                          show(*axes)));
    for (const auto& [key, values] : axes->items()) {
      const std::string pointer = "/axes/" + escape_pointer_token(key);
      if (!values.is_array() || values.empty()) {
        problem(pointer, fmt::format("found {}; allowed: a list of values, at least one", show(values)));
        continue;
      }
      if (key.find('.') == std::string::npos || key == "run.name" || key == "run.output") {
        problem(pointer, key.find('.') == std::string::npos
                             ? "a key is section.key, for example schedule.learning_rate"
                             : "every cell has a name and a folder of its own");
        continue;
      }
      Axis axis{key, {}};
      for (size_t i = 0; i < values.size(); ++i) {
        const std::string text = values[i].is_string() ? values[i].get<std::string>() : values[i].dump();
        for (const Choice& other : axis.choices)
          if (other.text == text) problem(fmt::format("{}/{}", pointer, i), text + " is there twice");
        axis.choices.push_back({{fmt::format("{}={}", key, values[i].dump())}, text});
      }
      axes_.push_back(std::move(axis));
    }
  }

  void check_axes() {
    std::set<std::string> keys;
    for (const Axis& axis : axes_) keys.insert(axis.key);
    for (const Axis& axis : axes_)
      for (const Choice& choice : axis.choices)
        for (const std::string& text : choice.overrides) {
          const std::string key = text.substr(0, text.find('='));
          if (axis.key == "variant" && keys.count(key) > 0)
            problem("/variants/" + escape_pointer_token(choice.text),
                    fmt::format("sets {}, which is an axis too: the axis would win", escape_control(key)));
        }
    size_t cells = 1;
    for (const Axis& axis : axes_)
      cells = std::min(most_cells + 1, cells * std::max<size_t>(1, axis.choices.size()));
    if (cells > most_cells)
      problem("/axes", fmt::format("more than {} cells; allowed: fewer values", most_cells));
    if (axes_.empty()) problem("", "neither \"axes\" nor \"variants\": there is nothing to vary");
  }

  void build_cells(Sweep& sweep) {
    std::vector<size_t> at(axes_.size(), 0);
    std::map<std::string, std::vector<std::string>> complaints;  // of configurations: message, cells
    std::vector<std::string> order;
    std::set<std::string> names;
    for (bool more = true; more;) {
      SweepCell cell;
      std::vector<std::string> overrides = common_;
      for (size_t a = 0; a < axes_.size(); ++a) {
        const Axis& axis = axes_[a];
        const Choice& choice = axis.choices[at[a]];
        overrides.insert(overrides.end(), choice.overrides.begin(), choice.overrides.end());
        cell.coordinates.emplace_back(axis.key, choice.text);
        const bool variant = axis.key == "variant";
        const std::string word = file_word(variant ? choice.text : last_word(axis.key) + "-" + choice.text);
        cell.name += (cell.name.empty() ? "" : ".") + word;
        if (axis.key != seed_key)
          cell.group += (cell.group.empty() ? "" : ", ") +
                        (variant ? choice.text : last_word(axis.key) + " " + choice.text);
      }
      if (cell.group.empty()) cell.group = sweep.name;
      if (cell.name.size() > 90) cell.name.resize(90);
      const std::string wanted = cell.name;
      for (int n = 2; !names.insert(cell.name).second; ++n) cell.name = fmt::format("{}.{}", wanted, n);
      try {
        cell.config = parse_config(base_text_, base_name_, overrides);
        cell.config.run.name = fmt::format("{}-{}", sweep.name, cell.name).substr(0, 100);
        require_possible(parse_state_injections(sweep.inject), cell.config);
        cell.config.run.output = (sweep.folder / "cells" / cell.name).string();
      } catch (const Error& error) {
        if (complaints[error.what()].empty()) order.push_back(error.what());
        complaints[error.what()].push_back(cell.name);
      }
      sweep.cells.push_back(std::move(cell));
      more = false;
      for (size_t a = axes_.size(); a-- > 0 && !more;) {
        more = ++at[a] < axes_[a].choices.size();
        if (!more) at[a] = 0;
      }
    }
    for (const std::string& message : order) {
      const std::vector<std::string>& cells = complaints[message];
      problems_.push_back(fmt::format("cell {}{}: {}", cells.front(),
                                      cells.size() > 1 ? fmt::format(" and {} more", cells.size() - 1) : "",
                                      message));
    }
  }

  std::string source_;
  Document document_;
  std::string base_name_, base_text_;
  std::vector<std::string> common_;
  std::vector<Axis> axes_;
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> Sweep::groups() const {
  std::vector<std::string> names;
  for (const SweepCell& cell : cells)
    if (std::find(names.begin(), names.end(), cell.group) == names.end()) names.push_back(cell.group);
  return names;
}

Sweep parse_sweep(const std::string& text, const std::string& source_name,
                  const std::vector<std::string>& overrides, const std::string& output) {
  return SweepReader(text, source_name).read(overrides, output);
}

Sweep load_sweep(const std::string& path, const std::vector<std::string>& overrides,
                 const std::string& output) {
  return parse_sweep(read_text(path, ExitCode::Usage, 1u << 20), path, overrides, output);
}

}  // namespace octet
