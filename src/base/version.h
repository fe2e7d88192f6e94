// What a bug report needs.
#pragma once
#include <string>
namespace octet {
std::string version();        // "0.1.0"
std::string build_summary();  // compiler, flags, libraries
}  // namespace octet
