// Model shapes by name. A preset sets every field of the "model" section; keys beside it override.
#pragma once
#include <string>
#include <vector>

#include "model/spec.h"

namespace octet {

// Throws Error(Usage) for a name that is unknown or planned.
TransformerSpec make_model(const std::string& preset);
std::vector<std::string> model_names();  // what make_model knows
std::vector<std::string>
planned_model_names();  // families the struct has fields for, refused until they exist

}  // namespace octet
