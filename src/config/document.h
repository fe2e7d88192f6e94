// A JSON text with the place of every value, so that a complaint can name the line.
#pragma once
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace octet {

using Json = nlohmann::ordered_json;

// Where a value was written: a line and column of the file (from 1), or an override of the command line.
struct Place {
  int line = 0, column = 0;
  std::string override_text;  // "model.layers=8" when the value came from --set
};

struct Document {
  Json root;
  std::map<std::string, Place> places;  // by JSON pointer
};

// Strict JSON plus comments; a UTF-8 byte order mark is skipped. Errors (Usage) carry line and column:
// syntax, invalid UTF-8, duplicate keys (with the line of the first), numbers beyond a double, nesting deeper
// than 32.
Document read_document(const std::string& text, const std::string& source_name);

// Applies "a.b.c=value": the value is JSON, or a bare string when it does not parse as JSON. Overriding
// model.preset or precision.recipe starts that section afresh: what the file wrote beside the old name
// belonged to the old name. Returns what was wrong with the override, or empty.
std::string apply_override(Document& document, const std::string& text);

std::string escape_pointer_token(const std::string& key);  // RFC 6901: ~ and /
std::string show(const Json& value);                       // one short line, safe to print

}  // namespace octet
