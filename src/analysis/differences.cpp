#include "analysis/differences.h"

#include <fmt/format.h>

#include <algorithm>

#include "config/run_config.h"

namespace octet {
namespace {

constexpr const char* train_data = "training data";
constexpr const char* validation_data = "validation data";

// Of the configuration: /data/train and /data/validation are compared by what is in them.
bool counts(const std::string& pointer) {
  static constexpr const char* passed_over[] = {
      "/precision/", "/run/name",        "/run/output",   "/run/threads",
      "/log/",       "/checkpoint/",     "/health/every", "/health/activations",
      "/data/train", "/data/validation", "/data/epochs"};
  return std::none_of(std::begin(passed_over), std::end(passed_over),
                      [&](const char* prefix) { return pointer.starts_with(prefix); });
}

std::string configuration_of(const RunHistory& run) {
  Json config = run.config;
  config.erase("octet");
  return config.dump();
}

std::string text_of(const RunHistory& run, const char* key) {
  return run.start.is_object() ? run.start.value(key, std::string{}) : std::string{};
}

// Weights of a mixture, without names and paths; one source alone has none.
std::string weights_of(const RunHistory& run, const char* split) {
  const Json::json_pointer at(std::string("/data/") + split);
  std::string text;
  if (!run.config.contains(at) || !run.config.at(at).is_array() || run.config.at(at).size() < 2) return text;
  for (const Json& source : run.config.at(at))
    if (source.is_object() && source.contains("weight"))
      text += (text.empty() ? "weights " : ", ") + source.at("weight").dump();
  return text;
}

// What a start record's "TRAIN+VALIDATION" says of one part, and the mixture's weights.
std::string data_of(const RunHistory& run, const char* part) {
  const std::string both = text_of(run, "data_fingerprint");
  const size_t plus = both.find('+');
  const bool validation = std::string_view(part) == validation_data;
  std::string text =
      validation ? (plus == std::string::npos ? "none" : both.substr(plus + 1)) : both.substr(0, plus);
  if (both.empty()) text.clear();
  const std::string weights = weights_of(run, validation ? "validation" : "train");
  return weights.empty() ? text : text + ", " + weights;
}

std::string changes_on_the_way(const RunHistory& run) {
  std::string text;
  for (const EventRecord& event : run.events)
    if (event.event == "resume" && event.message.find(" changed") != std::string::npos)
      text += fmt::format("{}step {}: {}", text.empty() ? "" : "; ", event.step, event.message);
  return text.empty() ? "nothing" : text;
}

}  // namespace

std::vector<Difference> other_differences(const RunHistory& baseline, const RunHistory& variant) {
  std::vector<Difference> all;
  for (const ConfigChange& change : compare_configs(configuration_of(baseline), configuration_of(variant)))
    if (counts(change.pointer)) all.push_back({change.pointer, change.before, change.after});
  const auto add = [&](const std::string& key, const std::string& a, const std::string& b) {
    if (a != b) all.push_back({key, a, b});
  };
  for (const char* part : {train_data, validation_data})
    add(part, data_of(baseline, part), data_of(variant, part));
  add("device", text_of(baseline, "device"), text_of(variant, "device"));
  add("changed by a resume", changes_on_the_way(baseline), changes_on_the_way(variant));
  return all;
}

bool same_validation(const std::vector<Difference>& differences) {
  return std::none_of(differences.begin(), differences.end(), [](const Difference& d) {
    return d.key == validation_data || d.key == "/batch/micro" || d.key.starts_with("/evaluation/") ||
           d.key.starts_with("/data/");
  });
}

bool same_schedule(const std::vector<Difference>& differences, const RunHistory& baseline) {
  const Json::json_pointer at("/schedule/name");
  const bool constant = baseline.config.contains(at) && baseline.config.at(at) == "constant";
  return std::none_of(differences.begin(), differences.end(), [&](const Difference& d) {
    return (d.key.starts_with("/schedule/") && d.key != "/schedule/learning_rate") ||
           (d.key == "/run/steps" && !constant);
  });
}

std::string describe(const std::vector<Difference>& differences) {
  std::string text;
  for (const Difference& d : differences)
    text += fmt::format("{}{} ({} and {})", text.empty() ? "" : ", ", d.key, d.baseline, d.variant);
  return text;
}

}  // namespace octet
