// Models by name. A preset sets every field of the "model" section; keys beside it override.
#pragma once
#include <string>
#include <vector>

#include "model/spec.h"

namespace octet {

// Throws Error(Usage) for a name that is unknown.
TransformerSpec make_model(const std::string& preset);
std::vector<std::string> model_names();  // what make_model knows

}  // namespace octet
