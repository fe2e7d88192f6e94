// Rules of the section "precision".
#pragma once
#include <vector>

#include "config/checks.h"

namespace octet {

void check_precision(const RunConfig& config, std::vector<RuleProblem>& out);

}  // namespace octet
