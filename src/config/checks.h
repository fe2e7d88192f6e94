// Rules between fields, all checked at once.
#pragma once
#include <string>
#include <vector>

#include "config/run_config.h"

namespace octet {

// A broken rule: where to look, which other fields take part, and one sentence with found and allowed.
struct RuleProblem {
  std::string pointer;
  std::vector<std::string> involved;  // pointers, or sections such as "/model"
  std::string message;
};
std::vector<RuleProblem> check_rules(const RunConfig& config);

}  // namespace octet
