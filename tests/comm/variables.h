// An environment of one's own for detection: the process's is never read.
#pragma once
#include <map>
#include <string>

#include "base/error.h"
#include "comm/launch.h"

namespace octet::testing {

using Values = std::map<std::string, std::string>;

inline Environment environment_of(const Values& values) {
  return {[values](const std::string& name) -> std::optional<std::string> {
            const auto found = values.find(name);
            return found == values.end() ? std::nullopt : std::optional<std::string>(found->second);
          },
          nullptr};
}
inline Values operator+(Values a, const Values& b) {
  for (const auto& [name, value] : b) a[name] = value;
  return a;
}
inline Values without(Values values, const std::string& name) {
  values.erase(name);
  return values;
}

// "code: cause (hint)" of the Error that an action throws; empty when it throws none.
template <class Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return std::to_string(static_cast<int>(error.code())) + ": " + error.what() + " (" + error.hint() + ")";
  }
  return {};
}

}  // namespace octet::testing
