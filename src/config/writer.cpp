// Configuration to text: the resolved file, its hash, the schema, and what differs between two.
#include <fmt/format.h>

#include "base/error.h"
#include "base/hash.h"
#include "config/fields.h"

namespace octet {
namespace {

Json& at_pointer(Json& root, const std::string& pointer) {
  Json* node = &root;
  for (size_t begin = 1; begin <= pointer.size();) {
    const size_t end = std::min(pointer.find('/', begin), pointer.size());
    node = &(*node)[pointer.substr(begin, end - begin)];
    begin = end + 1;
  }
  return *node;
}

Json resolved(const RunConfig& config) {
  Json root = Json::object();
  for (const Field& field : fields()) {
    if (!field.shorthand) at_pointer(root, field.pointer) = field.get(config);
  }
  // The default follows the name: a run's config.json used again under another name is another run.
  if (config.run.output == default_output(config.run.name)) at_pointer(root, "/run/output") = "";
  return root;
}

Json source_schema() {
  const Json text = {{"type", "string"}};
  const Json files = {{"type", "array"}, {"items", text}};
  Json source = Json::object();
  source["type"] = "object";
  source["additionalProperties"] = false;
  source["required"] = {"files"};
  source["properties"]["name"] = text;
  source["properties"]["files"] = files;
  source["properties"]["files"]["minItems"] = 1;
  source["properties"]["weight"] = {{"type", "number"}, {"exclusiveMinimum", 0}};
  Json list = {{"type", "array"}, {"items", source}};
  return Json::array({files, list});
}

Json field_schema(const Field& field, const RunConfig& defaults);

// Puts `schema` where `pointer` points to, below properties.
void add_property(Json& root, const std::string& pointer, Json schema) {
  Json* node = &root;
  size_t begin = 1;
  for (size_t slash; (slash = pointer.find('/', begin)) != std::string::npos; begin = slash + 1) {
    node = &(*node)["properties"][pointer.substr(begin, slash - begin)];
    (*node)["type"] = "object";
    (*node)["additionalProperties"] = false;
  }
  (*node)["properties"][pointer.substr(begin)] = std::move(schema);
}

Json overrides_schema(const RunConfig& defaults) {
  Json entry = {{"type", "object"}, {"additionalProperties", false}};
  const Json number = {{"type", "integer"}, {"minimum", 0}};
  Json pair = {{"type", "array"}, {"items", number}};
  pair["minItems"] = pair["maxItems"] = 2;
  const Json words = {{"type", "string"}, {"pattern", "^(all|(first|last):[1-9][0-9]*)$"}};
  Json blocks = Json::object();
  blocks["anyOf"] = Json::array({words, pair});
  Json name = Json::object();
  name["enum"] = {"qkv", "out", "gate_up", "up", "down"};
  entry["properties"]["blocks"] = blocks;
  entry["properties"]["linears"] = {{"type", "array"}, {"items", name}};
  for (const Field& field : fields()) {
    if (!field.of_linear && field.pointer != "/precision/recipe") continue;
    Json schema = field_schema(field, defaults);
    schema.erase("default");  // what the section has
    add_property(entry, in_precision(field), std::move(schema));
  }
  return entry;
}

Json stages_schema(const RunConfig& defaults) {
  Json entry = {{"type", "object"}, {"additionalProperties", false}, {"required", {"from", "precision"}}};
  entry["properties"]["from"] = {{"type", "integer"}, {"minimum", 1}};
  for (const Field& field : fields())
    if (field.of_stage) add_property(entry, field.pointer, field_schema(field, defaults));
  return entry;
}

Json field_schema(const Field& field, const RunConfig& defaults) {
  Json schema = Json::object();
  switch (field.kind) {
    case ValueKind::Boolean:
      schema["type"] = "boolean";
      break;
    case ValueKind::Integer:
    case ValueKind::Number: {
      schema["type"] = field.kind == ValueKind::Integer ? "integer" : "number";
      const Bounds& b = field.bounds;
      if (std::abs(b.low) < 1e300) schema[b.open_low ? "exclusiveMinimum" : "minimum"] = b.low;
      if (std::abs(b.high) < 1e300) schema[b.open_high ? "exclusiveMaximum" : "maximum"] = b.high;
      break;
    }
    case ValueKind::Text:
      schema["type"] = "string";
      break;
    case ValueKind::Choice:
      schema["enum"] = field.choices;
      break;
    case ValueKind::Sources:
      schema["anyOf"] = source_schema();
      break;
    case ValueKind::Overrides:
      schema["type"] = "array";
      schema["items"] = overrides_schema(defaults);
      break;
    case ValueKind::Stages:
      schema["type"] = "array";
      schema["items"] = stages_schema(defaults);
      break;
  }
  schema["description"] = field.help;
  if (!field.shorthand) schema["default"] = field.get(defaults);
  return schema;
}

// Doubles compare and print as the same text whatever way they were written (1, 1.0 and 1e0 are one number).
std::string canonical(const Field& field, const Json& value) {
  if (field.kind == ValueKind::Number && value.is_number()) return Json(value.get<double>()).dump();
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

std::string default_output(const std::string& run_name) { return "runs/" + run_name; }

std::string to_json(const RunConfig& config) {
  return resolved(config).dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string config_hash(const RunConfig& config) {
  std::string text;
  for (const Field& field : fields()) {
    if (!field.decides_numbers || field.shorthand) continue;
    Json value = field.get(config);
    if (field.kind == ValueKind::Sources) {  // the mixture counts; names and paths do not
      for (Json& source : value) {
        source.erase("name");
        source.erase("files");
      }
    }
    if (field.numbers) value = field.numbers(value);
    text += fmt::format("{}={}\n", field.pointer, canonical(field, value));
  }
  return hex(hash64(text.data(), text.size()));
}

std::string json_schema() {
  const RunConfig defaults = default_config();
  Json root = Json::object();
  root["$schema"] = "http://json-schema.org/draft-07/schema#";
  root["title"] = "Octet run configuration";
  root["type"] = "object";
  root["additionalProperties"] = false;
  root["properties"]["$schema"] = {{"type", "string"}, {"description", "for editors; ignored"}};
  root["properties"]["octet"] = {{"type", "object"},
                                 {"description", "written into config.json of a run; ignored"}};
  for (const Field& field : fields()) add_property(root, field.pointer, field_schema(field, defaults));
  return root.dump(2) + "\n";
}

std::vector<ConfigChange> compare_configs(const std::string& before_json, const std::string& after_json) {
  const Json before = read_document(before_json, "the configuration before").root;
  const Json after = read_document(after_json, "the configuration after").root;
  const Json defaults = resolved(default_config());
  // A key one file lacks (it was written by another version) has its default.
  const auto value_of = [&](const Json& root, const std::string& pointer) {
    const Json::json_pointer at(pointer);
    return root.contains(at) ? root.at(at) : defaults.at(at);
  };
  std::vector<ConfigChange> changes;
  for (const Field& field : fields()) {
    if (field.shorthand) continue;
    const Json from = value_of(before, field.pointer), to = value_of(after, field.pointer);
    const std::string from_text = canonical(field, from), to_text = canonical(field, to);
    if (from_text == to_text) continue;
    const bool same_numbers = field.numbers && field.numbers(from) == field.numbers(to);
    changes.push_back({field.pointer, from_text, to_text, same_numbers ? ChangeClass::Free : field.change});
  }
  return changes;
}

}  // namespace octet
