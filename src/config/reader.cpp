// Text to configuration: every value is looked up in the field table, every violation is collected.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <tuple>

#include "base/files.h"
#include "base/text.h"
#include "config/checks.h"
#include "config/fields.h"

namespace octet {
namespace {

struct Violation {
  std::string pointer, message;
};

std::string found(const Json& value) {
  return value.is_object() || value.is_array() ? fmt::format("{} {}", value.type_name(), show(value))
                                               : show(value);
}

bool whole_number(const Json& value) {
  if (value.is_number_integer()) return true;
  if (!value.is_number_float()) return false;
  const double x = value.get<double>();
  return std::floor(x) == x && std::abs(x) <= 9007199254740992.0;  // 2^53: every integer below is exact
}

bool inside(const Bounds& b, const Json& value) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return false;
  const double x = value.get<double>();
  return (b.open_low ? x > b.low : x >= b.low) && (b.open_high ? x < b.high : x <= b.high);
}

bool valid_utf8(const std::string& text) {
  try {
    Json(text).dump();
    return true;
  } catch (const Json::exception&) {
    return false;
  }
}

class Reader {
 public:
  Reader(Document document, std::string source_name)
      : document_(std::move(document)), source_name_(std::move(source_name)) {
    for (const Field& field : fields()) by_pointer_[field.pointer] = &field;
  }

  // A name in model.preset or precision.recipe starts its section afresh, so it comes before what refines it,
  // whatever the order they were given in.
  void apply(std::vector<std::string> overrides) {
    std::stable_partition(overrides.begin(), overrides.end(), [](const std::string& text) {
      const std::string key = text.substr(0, text.find('='));
      return key == "precision.recipe" || key == "model.preset";
    });
    for (const std::string& text : overrides) {
      const std::string problem = apply_override(document_, text);
      if (!problem.empty()) general_.push_back(fmt::format("--set {}: {}", escape_control(text), problem));
    }
  }

  RunConfig read() {
    RunConfig config = default_config();
    if (!document_.root.is_object()) {
      violations_.push_back(
          {"", fmt::format("found {}; allowed: an object of sections", found(document_.root))});
    } else if (document_.root.contains("base")) {  // then its other keys are not a run's either
      violations_.push_back({"/base", "a sweep has this, a run does not; train its cells with octet sweep"});
    } else {
      read_section(document_.root, "");
      for (const Field& field : fields()) {  // table order: presets before what overrides them
        const auto it = values_.find(field.pointer);
        if (it != values_.end()) field.set(config, *it->second);
      }
      if (config.run.output.empty()) config.run.output = default_output(config.run.name);
      for (const RuleProblem& problem : check_rules(config)) {
        if (!broken(problem)) violations_.push_back({problem.pointer, problem.message});
      }
    }
    report();
    return config;
  }

 private:
  void complain(const std::string& pointer, std::string message) {
    violations_.push_back({pointer, std::move(message)});
    broken_.insert(pointer);
  }

  void read_section(const Json& section, const std::string& pointer) {
    for (const auto& [key, value] : section.items()) {
      const std::string at = pointer + "/" + escape_pointer_token(key);
      if (pointer.empty() && ignored_key(key)) continue;
      const auto field = by_pointer_.find(at);
      if (field != by_pointer_.end()) {
        if (check_value(*field->second, value)) values_[at] = &value;
      } else if (is_section(at)) {
        if (value.is_object())
          read_section(value, at);
        else
          complain(at, fmt::format("found {}; allowed: an object", found(value)));
      } else {
        unknown_key(pointer, key);
      }
    }
  }

  bool is_section(const std::string& pointer) const {
    const auto it = by_pointer_.lower_bound(pointer + "/");
    return it != by_pointer_.end() && it->first.compare(0, pointer.size() + 1, pointer + "/") == 0;
  }

  std::vector<std::string> keys_of(const std::string& section) const {
    std::set<std::string> keys;
    for (const auto& [pointer, field] : by_pointer_) {
      if (pointer.compare(0, section.size() + 1, section + "/") != 0) continue;
      const size_t begin = section.size() + 1;
      keys.insert(pointer.substr(begin, pointer.find('/', begin) - begin));
    }
    return {keys.begin(), keys.end()};
  }

  void unknown_key(const std::string& section, const std::string& key) {
    const std::vector<std::string> siblings = keys_of(section);
    const std::string near = nearest(key, siblings);
    std::string message = "unknown key";
    if (!near.empty()) {
      message += fmt::format("; did you mean \"{}\"?", near);
      broken_.insert(section + "/" + near);
    } else {
      std::vector<std::string> elsewhere;  // the right key in the wrong section
      for (const auto& [pointer, field] : by_pointer_) {
        if (pointer.size() > key.size() && pointer.substr(pointer.size() - key.size() - 1) == "/" + key)
          elsewhere.push_back(pointer);
      }
      if (!elsewhere.empty())
        message += fmt::format("; did you mean {}?", elsewhere.front());
      else
        message += fmt::format("; allowed: {}", fmt::join(siblings, ", "));
    }
    complain(section + "/" + escape_pointer_token(key), message);
  }

  bool check_value(const Field& field, const Json& value) {
    bool good = false;
    switch (field.kind) {
      case ValueKind::Boolean:
        good = value.is_boolean();
        break;
      case ValueKind::Integer:
        good = whole_number(value) && inside(field.bounds, value);
        break;
      case ValueKind::Number:
        good = value.is_number() && inside(field.bounds, value);
        break;
      case ValueKind::Text:
        good = value.is_string() && valid_utf8(value.get_ref<const std::string&>());
        break;
      case ValueKind::Choice:
        return check_choice(field, value);
      case ValueKind::Sources:
        return check_sources(field, value);
      case ValueKind::Overrides:
        return check_overrides(field, value);
      case ValueKind::Stages:
        return check_stages(field, value);
    }
    if (!good) complain(field.pointer, fmt::format("found {}; allowed: {}", found(value), allowed(field)));
    return good;
  }

  bool check_choice(const Field& field, const Json& value) {
    std::string near;
    if (value.is_string()) {
      const std::string& name = value.get_ref<const std::string&>();
      if (std::find(field.choices.begin(), field.choices.end(), name) != field.choices.end()) return true;
      near = nearest(name, field.choices);
    }
    complain(field.pointer, fmt::format("found {}; allowed: {}{}", found(value), allowed(field),
                                        near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near)));
    return false;
  }

  bool check_sources(const Field& field, const Json& value) {
    const size_t before = violations_.size();
    if (!value.is_array()) {
      complain(field.pointer, fmt::format("found {}; allowed: {}", found(value), allowed(field)));
      return false;
    }
    for (size_t i = 0; i < value.size(); ++i) {
      const std::string at = fmt::format("{}/{}", field.pointer, i);
      const Json& entry = value[i];
      if (entry.type() != value[0].type() || !(entry.is_string() || entry.is_object())) {
        complain(at, fmt::format("found {}; allowed: {}, not both", found(entry), allowed(field)));
      } else if (entry.is_string()) {
        if (!valid_utf8(entry.get_ref<const std::string&>())) complain(at, "found a path that is not UTF-8");
      } else {
        check_source(entry, at);
      }
    }
    if (violations_.size() != before) broken_.insert(field.pointer);
    return violations_.size() == before;
  }

  // A list of objects; `check_entry` complains about what is in one.
  template <class Check>
  bool check_list(const Field& field, const Json& value, Check check_entry) {
    const size_t before = violations_.size();
    if (!value.is_array()) {
      complain(field.pointer, fmt::format("found {}; allowed: {}", found(value), allowed(field)));
      return false;
    }
    for (size_t i = 0; i < value.size(); ++i) {
      const std::string at = fmt::format("{}/{}", field.pointer, i);
      if (value[i].is_object())
        check_entry(value[i], at);
      else
        complain(at, fmt::format("found {}; allowed: {}", found(value[i]), allowed(field)));
    }
    if (violations_.size() != before) broken_.insert(field.pointer);
    return violations_.size() == before;
  }

  bool check_overrides(const Field& field, const Json& value) {
    const Part part{
        [](const Field& f) { return f.of_linear || f.pointer == "/precision/recipe"; },
        "is the whole run's; allowed in an override: what one linear layer has",
        "unknown key; allowed: blocks, linears, recipe, and what /precision has of a linear layer"};
    return check_list(field, value, [&](const Json& entry, const std::string& at) {
      for (const auto& [key, inner] : entry.items()) {
        const std::string pointer = at + "/" + escape_pointer_token(key);
        if (key == "blocks")
          check_blocks(inner, pointer);
        else if (key == "linears")
          check_linears(inner, pointer);
        else
          check_part(part, "/precision/" + escape_pointer_token(key), inner, pointer);
      }
    });
  }

  bool check_stages(const Field& field, const Json& value) {
    const Part part{[](const Field& f) { return f.of_stage; },
                    "is the whole run's: it stands in the section /precision only",
                    "unknown key; allowed: what the section /precision has"};
    return check_list(field, value, [&](const Json& entry, const std::string& at) {
      for (const auto& [key, inner] : entry.items())
        if (key != "from" && key != "precision")
          complain(at + "/" + escape_pointer_token(key), "unknown key; allowed: from, precision");
      if (!entry.contains("from"))
        complain(at, "\"from\" is missing; allowed: the number of steps before this stage");
      else if (!whole_number(entry["from"]) || !inside({1, 1e12}, entry["from"]))
        complain(at + "/from",
                 fmt::format("found {}; allowed: an integer of at least 1", found(entry["from"])));
      if (!entry.contains("precision"))
        complain(at, "\"precision\" is missing; allowed: an object as the section of that name");
      else
        check_part(part, "/precision", entry["precision"], at + "/precision");
    });
  }

  // Which fields of the section "precision" may stand elsewhere, and what is said of others.
  struct Part {
    std::function<bool(const Field&)> has;
    const char *not_here, *unknown;
  };
  // A field of the section "precision", or a section of it, that stands elsewhere.
  void check_part(const Part& part, const std::string& original, const Json& value, const std::string& at) {
    const auto found_field = by_pointer_.find(original);
    if (found_field != by_pointer_.end()) {
      Field field = *found_field->second;
      if (!part.has(field)) {
        complain(at, part.not_here);
        return;
      }
      field.pointer = at;
      check_value(field, value);
    } else if (is_section(original) && value.is_object()) {
      for (const auto& [key, inner] : value.items()) {
        const std::string token = "/" + escape_pointer_token(key);
        check_part(part, original + token, inner, at + token);
      }
    } else if (is_section(original)) {
      complain(at, fmt::format("found {}; allowed: an object", found(value)));
    } else {
      const size_t slash = original.rfind('/');
      const std::vector<std::string> siblings = keys_of(original.substr(0, slash));
      const std::string near = nearest(original.substr(slash + 1), siblings);
      complain(at, near.empty() ? part.unknown : fmt::format("unknown key; did you mean \"{}\"?", near));
    }
  }

  void check_blocks(const Json& value, const std::string& at) {
    constexpr int most = 1 << 20;
    const auto number = [](const Json& n) {
      return whole_number(n) && n.get<double>() >= 0 && n.get<double>() < most;
    };
    bool good = false;
    if (value.is_array()) {
      good = value.size() == 2 && number(value[0]) && number(value[1]) &&
             value[0].get<int>() <= value[1].get<int>();
    } else if (value.is_string()) {
      const std::string& text = value.get_ref<const std::string&>();
      const size_t colon = text.find(':');
      const std::string from = text.substr(0, colon),
                        count = colon == text.npos ? "" : text.substr(colon + 1);
      const bool digits =
          !count.empty() && count.size() <= 6 && count.find_first_not_of("0123456789") == std::string::npos;
      good = text == "all" || ((from == "first" || from == "last") && digits && std::stoi(count) > 0);
    }
    if (!good)
      complain(at, fmt::format("found {}; allowed: \"all\", \"first:N\", \"last:N\" or [first, last], blocks "
                               "counted from 0",
                               found(value)));
  }

  void check_linears(const Json& value, const std::string& at) {
    const std::set<std::string> known = {"qkv", "out", "gate_up", "up", "down"};
    const bool good =
        value.is_array() && !value.empty() && std::all_of(value.begin(), value.end(), [&](const Json& name) {
          return name.is_string() && known.count(name.get_ref<const std::string&>()) > 0;
        });
    if (!good)
      complain(at,
               fmt::format("found {}; allowed: a list of \"qkv\", \"out\", \"gate_up\" (or \"up\"), \"down\"",
                           found(value)));
  }

  void check_source(const Json& source, const std::string& at) {
    const std::vector<std::string> keys = {"name", "files", "weight"};
    for (const auto& [key, value] : source.items()) {
      const std::string pointer = at + "/" + escape_pointer_token(key);
      if (key == "name") {
        if (!value.is_string() || !valid_utf8(value.get_ref<const std::string&>()))
          complain(pointer, fmt::format("found {}; allowed: a string", found(value)));
      } else if (key == "weight") {
        if (!value.is_number() || !(value.get<double>() > 0) || !(value.get<double>() <= 1e9))
          complain(pointer, fmt::format("found {}; allowed: a number above 0 up to 1e+09", found(value)));
      } else if (key == "files") {
        const bool good =
            value.is_array() && !value.empty() && std::all_of(value.begin(), value.end(), [](const Json& f) {
              return f.is_string() && valid_utf8(f.get_ref<const std::string&>());
            });
        if (!good)
          complain(pointer, fmt::format("found {}; allowed: a list of paths or globs", found(value)));
      } else {
        const std::string near = nearest(key, keys);
        complain(pointer, near.empty() ? "unknown key; allowed: files, name, weight"
                                       : fmt::format("unknown key; did you mean \"{}\"?", near));
      }
    }
    if (!source.contains("files")) complain(at, "\"files\" is missing; allowed: a list of paths or globs");
  }

  // A rule is judged only when every field it reads, and the section that field is in, is itself in order.
  bool broken(const RuleProblem& problem) const {
    std::vector<std::string> involved = problem.involved;
    involved.push_back(problem.pointer);
    for (const std::string& pointer : involved) {
      for (const std::string& bad : broken_) {
        if (bad == pointer || bad.starts_with(pointer + "/") || pointer.starts_with(bad + "/")) return true;
      }
    }
    return false;
  }

  // Where the value of a pointer was written: its own key's place, else its section's; none when by default.
  Place place_of(std::string pointer) const {
    for (;;) {
      const auto it = document_.places.find(pointer);
      if (it != document_.places.end()) return it->second;
      const size_t slash = pointer.rfind('/');
      if (slash == std::string::npos || slash == 0) return {};
      pointer.resize(slash);
    }
  }
  static std::string show_place(const Place& place) {
    if (!place.override_text.empty()) return fmt::format("--set {}", escape_control(place.override_text));
    if (place.line == 0) return "by default";
    return fmt::format("line {}, column {}", place.line, place.column);
  }

  void report() {
    // In the order of the file; what comes from --set or a default follows.
    const auto key = [this](const Violation& v) {
      const Place place = place_of(v.pointer);
      return std::make_tuple(place.line == 0, place.line, place.column);
    };
    std::stable_sort(violations_.begin(), violations_.end(),
                     [&](const Violation& a, const Violation& b) { return key(a) < key(b); });
    std::vector<std::string> lines = general_;
    for (const Violation& v : violations_) {
      lines.push_back(fmt::format("{}: {}: {}", show_place(place_of(v.pointer)),
                                  v.pointer.empty() ? "/" : escape_control(v.pointer), v.message));
    }
    if (lines.empty()) return;
    const std::string source = escape_control(source_name_);
    const std::string what = lines.size() == 1 ? fmt::format("{}: {}", source, lines[0])
                                               : fmt::format("{}: {} problems\n  {}", source, lines.size(),
                                                             fmt::join(lines, "\n  "));
    throw Error(ExitCode::Usage, what,
                "'octet config --schema' lists every key with its type, range and default");
  }

  Document document_;
  std::string source_name_;
  std::map<std::string, const Field*> by_pointer_;
  std::map<std::string, const Json*> values_;
  std::vector<std::string> general_;
  std::vector<Violation> violations_;
  std::set<std::string> broken_;
};

}  // namespace

RunConfig parse_config(const std::string& text, const std::string& source_name,
                       const std::vector<std::string>& overrides) {
  Reader reader(read_document(text, source_name), source_name);
  reader.apply(overrides);
  return reader.read();
}

RunConfig load_config(const std::string& path, const std::vector<std::string>& overrides) {
  constexpr size_t largest = 1u << 20;
  return parse_config(read_text(path, ExitCode::Usage, largest), path, overrides);
}

}  // namespace octet
