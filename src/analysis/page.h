// What all HTML reports have in common: one self-contained page without scripts and external requests.
#pragma once
#include <string>

namespace octet {

// The title, when and by which version it was made, then `body`: HTML whose every text is escaped already.
std::string page(const std::string& title, const std::string& body);

}  // namespace octet
