#include "config/document.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace octet {
namespace {

constexpr size_t deepest_nesting = 32;

struct LineColumn {
  int line = 1, column = 1;
};
// Lines of a text by byte offset: one scan, then a binary search a value.
class Lines {
 public:
  explicit Lines(const std::string& text) : size_(text.size()) {
    for (size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 1))
      starts_.push_back(at + 1);
  }
  LineColumn at(size_t offset) const {
    offset = std::min(offset, size_);
    const auto next = std::upper_bound(starts_.begin(), starts_.end(), offset);
    return {static_cast<int>(next - starts_.begin()), static_cast<int>(offset - *std::prev(next)) + 1};
  }

 private:
  size_t size_;
  std::vector<size_t> starts_ = {0};
};

// An input iterator that publishes how far the parser has read: nlohmann's SAX events carry no position.
class TrackedIterator {
 public:
  using difference_type = std::ptrdiff_t;
  using value_type = char;
  using pointer = const char*;
  using reference = const char&;
  using iterator_category = std::input_iterator_tag;
  TrackedIterator(const char* at, const char** published) : at_(at), published_(published) {}
  reference operator*() const { return *at_; }
  TrackedIterator& operator++() {
    ++at_;
    if (published_) *published_ = at_;
    return *this;
  }
  TrackedIterator operator++(int) {
    TrackedIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const TrackedIterator& other) const { return at_ == other.at_; }
  bool operator!=(const TrackedIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  const char** published_;
};

// Builds the tree and the places; stops at the first fault.
class Builder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(const std::string& text, const char* const* cursor, Document& document)
      : text_(text), lines_(text), cursor_(cursor), document_(document) {}

  std::string fault;  // one sentence
  LineColumn fault_at;

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return value(v); }
  bool number_unsigned(number_unsigned_t v) override { return value(v); }
  bool number_float(number_float_t v, const string_t&) override { return value(v); }
  bool string(string_t& v) override { return value(v); }
  bool binary(binary_t&) override { return fail("binary values are not JSON"); }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    Level& level = levels_.back();
    level.key = name;
    const std::string pointer = level.pointer + "/" + escape_pointer_token(name);
    if (level.node->contains(name)) {
      return fail(fmt::format("duplicate key \"{}\"; line {} has it too", escape_control(name),
                              document_.places.at(pointer).line));
    }
    (*level.node)[name] = nullptr;
    document_.places[pointer] = key_start();
    return true;
  }
  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::json::exception& error) override {
    const size_t at = position > 0 ? position - 1 : 0;
    fault_at = lines_.at(at);
    const std::string what = error.what();
    if (error.id == 406) {
      fault = fmt::format("the number {} is too large", escape_control(token));
      return false;
    }
    // "[json.exception.parse_error.101] parse error at line 3, column 5: syntax error while ...; expected
    // ..."
    const size_t colon = what.find(": ");
    fault = escape_control(colon == std::string::npos ? what : what.substr(colon + 2));
    const size_t before = at > 0 ? text_.find_last_not_of(" \t\r\n", at - 1) : std::string::npos;
    if (at < text_.size() && (text_[at] == '}' || text_[at] == ']') && before != std::string::npos &&
        text_[before] == ',') {
      fault = fmt::format("a comma stands before the closing '{}'", text_[at]);
    }
    return false;
  }

 private:
  struct Level {
    Json* node;
    std::string pointer, key;
  };

  Place here() const {
    // The cursor stands behind the token; a newline read as look-ahead belongs to the next line.
    size_t offset = static_cast<size_t>(*cursor_ - text_.data());
    offset = offset > 0 ? offset - 1 : 0;
    while (offset > 0 && (text_[offset] == '\n' || text_[offset] == '\r' || text_[offset] == ' ')) --offset;
    const LineColumn at = lines_.at(offset);
    return {at.line, at.column, {}};
  }
  // The opening quote of the key that was just read: the last quote before the closing one that no backslash
  // escapes.
  Place key_start() const {
    const size_t closing = static_cast<size_t>(*cursor_ - text_.data()) - 1;
    size_t at = closing;
    for (bool found = false; at > 0 && !found;) {
      --at;
      size_t backslashes = 0;
      while (backslashes < at && text_[at - 1 - backslashes] == '\\') ++backslashes;
      found = text_[at] == '"' && backslashes % 2 == 0;
    }
    const LineColumn begin = lines_.at(at);
    return {begin.line, begin.column, {}};
  }
  bool fail(const std::string& message) {
    fault = message;
    const Place place = here();
    fault_at = {place.line, place.column};
    return false;
  }
  Json* place_value(Json v) {
    if (levels_.empty()) {
      document_.root = std::move(v);
      document_.places[""] = here();
      return &document_.root;
    }
    Level& level = levels_.back();
    if (level.node->is_array()) {
      document_.places[level.pointer + "/" + std::to_string(level.node->size())] = here();
      level.node->push_back(std::move(v));
      return &level.node->back();
    }
    Json& slot = (*level.node)[level.key];
    slot = std::move(v);
    return &slot;
  }
  bool value(Json v) {
    place_value(std::move(v));
    return true;
  }
  bool open(Json v) {
    if (levels_.size() == deepest_nesting)
      return fail(fmt::format("nested deeper than {} levels", deepest_nesting));
    std::string pointer;
    if (!levels_.empty()) {
      const Level& level = levels_.back();
      pointer =
          level.pointer + "/" +
          (level.node->is_array() ? std::to_string(level.node->size()) : escape_pointer_token(level.key));
    }
    Json* node = place_value(std::move(v));
    levels_.push_back({node, pointer, {}});
    return true;
  }
  bool close() {
    levels_.pop_back();
    return true;
  }

  const std::string& text_;
  const Lines lines_;
  const char* const* cursor_;
  Document& document_;
  std::vector<Level> levels_;
};

void forget_places(Document& document, const std::string& pointer) {
  auto it = document.places.lower_bound(pointer);
  while (it != document.places.end() && it->first.compare(0, pointer.size(), pointer) == 0) {
    const bool inside = it->first.size() == pointer.size() || it->first[pointer.size()] == '/';
    it = inside ? document.places.erase(it) : std::next(it);
  }
}

}  // namespace

std::string escape_pointer_token(const std::string& key) {
  std::string out;
  for (char c : key) {
    if (c == '~')
      out += "~0";
    else if (c == '/')
      out += "~1";
    else
      out += c;
  }
  return out;
}

std::string show(const Json& value) {
  std::string text = escape_control(value.dump(-1, ' ', false, Json::error_handler_t::replace));
  if (text.size() > 60) {
    size_t end = 57;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;  // whole characters
    text = text.substr(0, end) + "...";
  }
  return text;
}

Document read_document(const std::string& text, const std::string& source_name) {
  Document document;
  const char* cursor = text.data();
  Builder builder(text, &cursor, document);
  bool good = false;
  if (text.find('\0') != std::string::npos) {
    builder.fault = "a zero byte: this is not a text file";
    builder.fault_at = Lines(text).at(text.find('\0'));
  } else {
    good = nlohmann::json::sax_parse(TrackedIterator(text.data(), &cursor),
                                     TrackedIterator(text.data() + text.size(), nullptr), &builder,
                                     nlohmann::json::input_format_t::json, true, true);
  }
  if (!good) {
    throw Error(ExitCode::Usage,
                fmt::format("{}:{}:{}: {}", escape_control(source_name), builder.fault_at.line,
                            builder.fault_at.column, builder.fault),
                "a configuration is one JSON object; // comments are allowed, trailing commas are not");
  }
  return document;
}

std::string apply_override(Document& document, const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) return "expected section.key=value";
  const std::string path = text.substr(0, equals), value_text = text.substr(equals + 1);
  Json value;
  try {
    value = read_document(value_text, "").root;
  } catch (const Error&) {
    value = value_text;
  }
  std::vector<std::string> keys;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t dot = std::min(path.find('.', begin), path.size());
    keys.push_back(path.substr(begin, dot - begin));
    if (keys.back().empty()) return "expected section.key=value; a name between the dots is empty";
    begin = dot + 1;
  }
  if (keys.size() > deepest_nesting) return fmt::format("nested deeper than {} levels", deepest_nesting);
  if (path == "model.preset" || path == "precision.recipe") {
    document.root[keys[0]] = Json::object();
    forget_places(document, "/" + keys[0]);
  }
  Json* node = &document.root;
  std::string pointer;
  for (size_t i = 0; i < keys.size(); ++i) {
    pointer += "/" + escape_pointer_token(keys[i]);
    if (node->is_array()) {
      const bool digits =
          std::all_of(keys[i].begin(), keys[i].end(), [](char c) { return c >= '0' && c <= '9'; });
      if (!digits || keys[i].size() > 6 || std::stoul(keys[i]) >= node->size()) {
        return fmt::format("{} does not exist: the list has {} entries", escape_control(pointer),
                           node->size());
      }
      node = &(*node)[std::stoul(keys[i])];
    } else {
      if (node->is_null()) *node = Json::object();
      if (!node->is_object()) return fmt::format("{} is not a section", escape_control(pointer));
      node = &(*node)[keys[i]];
    }
    if (!document.places.count(pointer)) document.places[pointer] = {0, 0, text};
  }
  *node = std::move(value);
  forget_places(document, pointer);
  document.places[pointer] = {0, 0, text};
  return {};
}

}  // namespace octet
