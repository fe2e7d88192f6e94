// Reading what a run wrote, which a person may have edited since: every mistake names its file and key.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "training/metrics.h"

namespace octet {

// The fields of one JSON object. A field that is there with another type is Error(Data): "SOURCE: /KEY: found
// ..., expected ...". Without a default the field must be there.
class JsonFields {
 public:
  JsonFields(const Json& object, std::string source) : object_(object), source_(std::move(source)) {}
  std::string text(const char* key) const;
  std::string text(const char* key, const std::string& otherwise) const;
  int64_t integer(const char* key) const;
  int64_t integer(const char* key, int64_t otherwise) const;
  double number(const char* key, double otherwise) const;  // "NaN", "Infinity", "-Infinity" are numbers
  std::vector<double> numbers(const char* key) const;      // a list of them; none when it is missing
  Json object(const char* key) const;                      // an empty one when it is missing
  std::vector<Json> objects(const char* key) const;        // an array of objects; none when it is missing

 private:
  const Json* find(const char* key) const { return object_.contains(key) ? &object_.at(key) : nullptr; }
  [[noreturn]] void refuse(const char* key, const Json* found, const char* expected) const;

  const Json& object_;
  std::string source_;
};

// A file that holds one JSON object; Error(Data) otherwise.
Json read_json_object(const std::filesystem::path& path);

}  // namespace octet
