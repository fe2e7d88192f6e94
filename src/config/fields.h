// The one definition of every configuration key: from this table come the reader and its diagnostics, the
// writer, the JSON schema, the configuration's hash and the rules of changing a key on resume.
#pragma once
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "config/document.h"
#include "config/run_config.h"

namespace octet {

enum class ValueKind : uint8_t {
  Boolean,
  Integer,
  Number,
  Text,
  Choice,
  Sources,    // data sources: ["glob", ...] or [{"name", "files", "weight"}, ...]
  Overrides,  // [{"blocks", "linears", "recipe", and fields of_linear without their "/precision"}, ...]
  Stages,     // [{"from", "precision": fields of_stage without their "/precision"}, ...]
};

struct Bounds {
  double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
  bool open_low = false, open_high = false;  // the limit itself is not allowed
};

struct Field {
  std::string pointer;  // "/run/steps"
  ValueKind kind;
  Bounds bounds;                     // Integer and Number
  std::vector<std::string> choices;  // Choice
  std::string choices_in_short;      // Choice: said in place of a long list
  std::string help;
  ChangeClass change = ChangeClass::Recorded;
  bool decides_numbers = true;  // part of config_hash
  // What of a value decides the numbers, where values differ that do not: a change between those is Free.
  // Null: all of it.
  std::function<Json(const Json&)> numbers = {};
  bool shorthand = false;  // read only: sets other fields, is never written
  bool of_linear = false;  // part of LinearFormats: may stand in an override
  bool of_stage = false;   // part of a Recipe: may stand in a stage of the schedule
  std::function<Json(const RunConfig&)> get;
  std::function<void(RunConfig&, const Json&)> set;  // of a value that fits kind, bounds and choices
};

// In the order in which they are applied and written: "preset", "recipe" and "scaling" come before the fields
// they expand to, so a field beside them overrides.
const std::vector<Field>& fields();

// What a run is before anything is read: the defaults of every struct and the recipe "bf16".
RunConfig default_config();

// "/input/format" of "/precision/input/format": where an override, or a stage of the schedule, has it.
std::string in_precision(const Field& field);

std::string allowed(const Field& field);  // "an integer from 1 to 100", "one of a, b"
// Top-level keys that are accepted and ignored: "$schema" for editors, "octet" in the config.json of a run.
bool ignored_key(const std::string& top_level_key);

}  // namespace octet
