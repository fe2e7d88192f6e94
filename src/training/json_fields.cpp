#include "training/json_fields.h"

#include <fmt/format.h>

#include <limits>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"

namespace octet {
namespace {

constexpr const char* hint = "octet train writes this file; if it was edited, restore it";

std::string shortened(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return escape_control(text);
}

// The integers that fit; 1e3 and 2.0 are none, for nothing writes them.
std::optional<int64_t> integer_of(const Json& value) {
  if (!value.is_number_integer()) return {};
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    return {};
  return value.get<int64_t>();
}

bool is_number(const Json& value) {
  return value.is_number() || value == "NaN" || value == "Infinity" || value == "-Infinity";
}

}  // namespace

void JsonFields::refuse(const char* key, const Json* found, const char* expected) const {
  throw Error(ExitCode::Data,
              fmt::format("{}: /{}: {}, expected {}", escape_control(source_), key,
                          found ? "found " + shortened(*found) : "missing", expected),
              hint);
}

std::string JsonFields::text(const char* key) const {
  const Json* value = find(key);
  if (!value || !value->is_string()) refuse(key, value, "a text");
  return value->get<std::string>();
}
std::string JsonFields::text(const char* key, const std::string& otherwise) const {
  return find(key) ? text(key) : otherwise;
}

int64_t JsonFields::integer(const char* key) const {
  const Json* value = find(key);
  const std::optional<int64_t> number = value ? integer_of(*value) : std::nullopt;
  if (!number) refuse(key, value, "a whole number");
  return *number;
}
int64_t JsonFields::integer(const char* key, int64_t otherwise) const {
  return find(key) ? integer(key) : otherwise;
}

double JsonFields::number(const char* key, double otherwise) const {
  const Json* value = find(key);
  if (!value) return otherwise;
  if (!is_number(*value)) refuse(key, value, "a number");
  return number_of(*value);
}

std::vector<double> JsonFields::numbers(const char* key) const {
  const Json* value = find(key);
  if (!value) return {};
  if (!value->is_array()) refuse(key, value, "a list of numbers");
  std::vector<double> list;
  for (const Json& item : *value) {
    if (!is_number(item)) refuse(key, &item, "a number in this list");
    list.push_back(number_of(item));
  }
  return list;
}

Json JsonFields::object(const char* key) const {
  const Json* value = find(key);
  if (value && !value->is_object()) refuse(key, value, "an object");
  return value ? *value : Json::object();
}

std::vector<Json> JsonFields::objects(const char* key) const {
  const Json* value = find(key);
  if (!value) return {};
  if (!value->is_array()) refuse(key, value, "a list of objects");
  std::vector<Json> list;
  for (const Json& item : *value) {
    if (!item.is_object()) refuse(key, &item, "an object in this list");
    list.push_back(item);
  }
  return list;
}

Json read_json_object(const std::filesystem::path& path) {
  Json json = Json::parse(read_text(path, ExitCode::Data), nullptr, false);
  if (!json.is_object())
    throw Error(ExitCode::Data, fmt::format("{}: not a JSON object", escape_control(path.string())), hint);
  return json;
}

}  // namespace octet
