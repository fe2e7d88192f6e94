// One entry of the field table from a member of RunConfig: bounds or choices, help, and what a change means.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "config/fields.h"

namespace octet::field_builders {

inline constexpr auto Free = ChangeClass::Free;
inline constexpr auto Recorded = ChangeClass::Recorded;
inline constexpr auto Forbidden = ChangeClass::Forbidden;

// What a key is beside its type: how it may change on resume, whether it decides the numbers, and its help.
struct About {
  const char* help;
  ChangeClass change = Recorded;
  bool decides_numbers = true;
};
inline About about(const char* help, ChangeClass change) { return {help, change, change != Free}; }

template <class E>
using Names = std::vector<std::pair<E, const char*>>;

inline Field base(const char* pointer, ValueKind kind, const About& about) {
  Field field;
  field.pointer = pointer;
  field.kind = kind;
  field.help = about.help;
  field.change = about.change;
  field.decides_numbers = about.decides_numbers;
  return field;
}
template <class At>
Field boolean(const char* pointer, At at, const About& about) {
  Field field = base(pointer, ValueKind::Boolean, about);
  field.get = [at](const RunConfig& c) { return Json(at(c)); };
  field.set = [at](RunConfig& c, const Json& v) { at(c) = v.get<bool>(); };
  return field;
}
template <class At>
Field integer(const char* pointer, At at, Bounds bounds, const About& about) {
  Field field = base(pointer, ValueKind::Integer, about);
  field.bounds = bounds;
  field.get = [at](const RunConfig& c) { return Json(at(c)); };
  field.set = [at](RunConfig& c, const Json& v) {
    using T = std::remove_reference_t<decltype(at(c))>;
    at(c) = v.is_number_float() ? static_cast<T>(v.get<double>()) : v.get<T>();
  };
  return field;
}
template <class At>
Field number(const char* pointer, At at, Bounds bounds, const About& about) {
  Field field = base(pointer, ValueKind::Number, about);
  field.bounds = bounds;
  field.get = [at](const RunConfig& c) { return Json(at(c)); };
  field.set = [at](RunConfig& c, const Json& v) { at(c) = v.get<double>(); };
  return field;
}
template <class At>
Field text(const char* pointer, At at, const About& about) {
  Field field = base(pointer, ValueKind::Text, about);
  field.get = [at](const RunConfig& c) { return Json(at(c)); };
  field.set = [at](RunConfig& c, const Json& v) { at(c) = v.get<std::string>(); };
  return field;
}
template <class At>
Field word(const char* pointer, At at, std::vector<std::string> choices, const About& about) {
  Field field = text(pointer, at, about);
  field.kind = ValueKind::Choice;
  field.choices = std::move(choices);
  return field;
}
template <class At, class E>
Field choice(const char* pointer, At at, const Names<E>& names, const About& about) {
  Field field = base(pointer, ValueKind::Choice, about);
  for (const auto& [value, name] : names) field.choices.push_back(name);
  field.get = [at, names](const RunConfig& c) {
    for (const auto& [value, name] : names) {
      if (value == at(c)) return Json(name);
    }
    return Json();
  };
  field.set = [at, names](RunConfig& c, const Json& v) {
    for (const auto& [value, name] : names) {
      if (v == name) at(c) = value;
    }
  };
  return field;
}

// A reference to a member of a configuration, const or not.
#define AT(member) \
  [](auto& c) -> auto& { return c.member; }

}  // namespace octet::field_builders
