// The keys of the section "precision": recipe, roles, products, states, and overrides of single linears; and
// those of the schedule and of the fallback.
#pragma once
#include <vector>

#include "config/fields.h"

namespace octet {

void add_precision(std::vector<Field>& list);

}  // namespace octet
