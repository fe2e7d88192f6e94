// What the reader says against a configuration.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "config/run_config.h"

namespace octet::testing {

struct Complaint {
  std::string what, hint;
  ExitCode code = ExitCode::Success;
  bool has(const std::string& part) const { return what.find(part) != std::string::npos; }
  int64_t count(const std::string& part) const {
    int64_t n = 0;
    for (size_t at = what.find(part); at != std::string::npos; at = what.find(part, at + 1)) ++n;
    return n;
  }
};

inline Complaint complaint_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    parse_config(text, "test.json", overrides);
  } catch (const Error& error) {
    return {error.what(), error.hint(), error.code()};
  }
  return {};
}

}  // namespace octet::testing
