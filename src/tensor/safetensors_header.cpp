#include "tensor/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>

#include "base/text.h"

namespace octet {
namespace {

using nlohmann::json;

std::optional<DType> dtype_named(std::string_view name) {
  for (const DType t : {DType::F32, DType::BF16, DType::F16, DType::E4M3, DType::E5M2, DType::U8, DType::U16,
                        DType::I32, DType::U32, DType::I64, DType::U64, DType::F64})
    if (name == name_of(t)) return t;
  return std::nullopt;
}

// Reads the header event by event. The format has exactly three levels, so every event has one meaning at
// each, and anything else ends the parse: nothing is built from what was not understood.
class HeaderParser final : public nlohmann::json_sax<json> {
 public:
  SafetensorsHeader header;

  bool key(string_t& name) override {
    if (level_ == 1) {
      name_ = name;
      if (!names_.insert(name).second) return reject("the name {} occurs twice", quoted(name));
      return true;
    }
    if (in_metadata()) {
      field_ = name;
      if (header.metadata.count(name)) return reject("the metadata key {} occurs twice", quoted(name));
      return true;
    }
    field_ = name;
    const unsigned bit = name == "dtype" ? 1u : name == "shape" ? 2u : name == "data_offsets" ? 4u : 0u;
    if (!bit) return reject("tensor {} has the unknown field {}", quoted(name_), quoted(name));
    if (seen_ & bit) return reject("tensor {} has {} twice", quoted(name_), name);
    seen_ |= bit;
    return true;
  }
  bool start_object(size_t) override {
    if (level_ >= 2) return unexpected("an object");
    if (++level_ == 2) {
      seen_ = 0;
      entry_ = {name_, DType::F32, {}, 0, 0};
      offsets_.clear();
    }
    return true;
  }
  bool end_object() override {
    if (level_-- == 2 && name_ != "__metadata__") return finish_entry();
    return true;
  }
  bool start_array(size_t) override {
    if (level_ != 2 || in_metadata() || (field_ != "shape" && field_ != "data_offsets"))
      return unexpected("an array");
    level_ = 3;
    return true;
  }
  bool end_array() override {
    level_ = 2;
    return true;
  }
  bool string(string_t& value) override {
    if (in_metadata()) {
      header.metadata.emplace(field_, value);
      return true;
    }
    if (level_ != 2 || field_ != "dtype") return unexpected("a string");
    const std::optional<DType> dtype = dtype_named(value);
    if (!dtype) return reject("tensor {} has the unsupported dtype {}", quoted(name_), quoted(value));
    entry_.dtype = *dtype;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (level_ != 3) return unexpected("a number");
    if (field_ == "data_offsets") {
      if (offsets_.size() == 2) return reject("tensor {} has more than two data_offsets", quoted(name_));
      offsets_.push_back(value);
      return true;
    }
    if (entry_.shape.rank() == 4) return reject("tensor {} has more than four dimensions", quoted(name_));
    if (value > static_cast<uint64_t>(INT64_MAX))
      return reject("tensor {} has a dimension of {}", quoted(name_), value);
    entry_.shape.push_back(static_cast<int64_t>(value));
    return true;
  }
  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { return unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return unexpected("a fraction"); }
  bool binary(json::binary_t&) override { return unexpected("binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    if (header.problem.empty()) header.problem = fmt::format("the header is not JSON at byte {}", position);
    return false;
  }

 private:
  bool in_metadata() const { return level_ == 2 && name_ == "__metadata__"; }
  static std::string quoted(const std::string& text) {
    constexpr size_t longest = 200;  // a hostile name must not fill the terminal
    return fmt::format("\"{}{}\"", escape_control(std::string_view(text).substr(0, longest)),
                       text.size() > longest ? "..." : "");
  }
  template <class... Args>
  bool reject(fmt::format_string<Args...> text, Args&&... args) {
    header.problem = fmt::format(text, std::forward<Args>(args)...);
    return false;
  }
  bool unexpected(const char* what) {
    if (level_ == 0) return reject("the header is {}, not an object", what);
    if (level_ == 1) return reject("{} is {}, not an object", quoted(name_), what);
    return reject("{} of {} is {}", quoted(field_), quoted(name_), what);
  }
  bool finish_entry() {
    if (seen_ != 7u) return reject("tensor {} lacks dtype, shape or data_offsets", quoted(name_));
    if (offsets_.size() != 2 || offsets_[0] > offsets_[1])
      return reject("tensor {} has data_offsets that are not [begin, end]", quoted(name_));
    uint64_t bytes = size_of(entry_.dtype);
    for (int i = 0; i < entry_.shape.rank(); ++i)
      if (!multiply(bytes, static_cast<uint64_t>(entry_.shape[i]), bytes))
        return reject("tensor {} has a shape {} of more than 2^64 bytes", quoted(name_),
                      to_string(entry_.shape));
    if (bytes != offsets_[1] - offsets_[0])
      return reject("tensor {} of type {} and shape {} needs {} bytes, its data_offsets span {}",
                    quoted(name_), name_of(entry_.dtype), to_string(entry_.shape), bytes,
                    offsets_[1] - offsets_[0]);
    entry_.offset = offsets_[0];
    entry_.bytes = bytes;
    header.entries.push_back(entry_);
    return true;
  }

  int level_ = 0;  // 0 outside, 1 in the root object, 2 in a tensor or the metadata, 3 in an array
  unsigned seen_ = 0;
  std::string name_, field_;
  std::vector<uint64_t> offsets_;
  SafetensorsEntry entry_;
  std::unordered_set<std::string> names_;
};

// The tensors must tile the data: first at 0, each where the one before ends, the last at the end.
std::string tiling_problem(const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes) {
  uint64_t end = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.offset != end)
      return fmt::format("{} before \"{}\": it starts at {} and the data before it ends at {}",
                         entry.offset > end ? "a hole" : "an overlap",
                         escape_control(std::string_view(entry.name).substr(0, 200)), entry.offset, end);
    end += entry.bytes;  // cannot overflow: offset + bytes was read as one number
  }
  if (end != data_bytes) return fmt::format("the tensors take {} bytes, the file has {}", end, data_bytes);
  return {};
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t data_bytes) {
  HeaderParser parser;
  if (text.empty() || text.front() != '{') {
    parser.header.problem = "the header does not start with '{'";
    return parser.header;
  }
  const bool complete = json::sax_parse(text.begin(), text.end(), &parser);
  SafetensorsHeader& header = parser.header;
  if (!complete && header.problem.empty()) header.problem = "the header is not JSON";
  if (header.problem.empty()) {
    std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
      return a.offset != b.offset ? a.offset < b.offset
             : a.bytes != b.bytes ? a.bytes < b.bytes
                                  : a.name < b.name;
    });
    header.problem = tiling_problem(header.entries, data_bytes);
  }
  return header;
}

}  // namespace octet
