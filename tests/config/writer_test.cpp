// What is written: the resolved file, its hash, the schema and what changed between two.
#include <fmt/format.h>

#include "base/error.h"
#include "catch.h"
#include "config/fields.h"
#include "config/presets.h"

using namespace octet;

namespace {

std::vector<std::string> pointers_of(const std::vector<ConfigChange>& changes) {
  std::vector<std::string> out;
  for (const ConfigChange& change : changes) out.push_back(change.pointer);
  return out;
}

// A value of the field that differs from the one it has, staying inside its own limits.
Json another_value(const Field& field, const RunConfig& config) {
  const Json now = field.get(config);
  switch (field.kind) {
    case ValueKind::Boolean:
      return !now.get<bool>();
    case ValueKind::Integer:
      return now.get<int64_t>() + 1;
    case ValueKind::Number:
      return now.get<double>() * 0.5 + 0.25 * (field.bounds.low < 1 ? 1 : 4);
    case ValueKind::Text:
      return "other";
    case ValueKind::Choice:
      for (const std::string& name : field.choices) {
        if (name != now.get<std::string>()) return name;
      }
      return now;
    case ValueKind::Overrides:
      return Json::array({{{"blocks", "first:1"}, {"linears", {"down"}}}});
    case ValueKind::Stages:
      return Json::array({{{"from", 1}, {"precision", Json::object()}}});
    default:
      return Json::array({{{"name", "other"}, {"files", {"x"}}, {"weight", 2.0}}});
  }
}

const char* rich_file = R"({
  "run": {"name": "rich", "seed": 7, "steps": 200},
  "model": {"preset": "qwen2.5-0.5b", "layers": 3, "rope_scaling": {"factor": 8}},
  "precision": {"recipe": "fp8", "scaling": "delayed", "delayed": {"window": 4}, "moments": {"block": 0}},
  "data": {"train": [{"name": "a", "files": ["x*", "y"], "weight": 0.1}], "validation": ["v"]},
  "batch": {"tokens": 8192, "micro": 2, "recompute": "block"},
  "schedule": {"name": "wsd", "learning_rate": 3e-4}
})";

}  // namespace

TEST_CASE("a resolved configuration reads back as itself, byte for byte") {
  for (const char* text : {"{}", rich_file}) {
    const RunConfig config = parse_config(text, "t");
    const std::string resolved = to_json(config);
    CHECK(parse_config(resolved, "t") == config);
    CHECK(to_json(parse_config(resolved, "t")) == resolved);
  }
  for (const std::string& name : model_names()) {
    RunConfig config = parse_config("{}", "t", {"batch.micro=1", "model.preset=" + name});
    CHECK(parse_config(to_json(config), "t") == config);
  }
}

TEST_CASE("the config.json of a run, with what the run added, is a configuration") {
  Json root = Json::parse(to_json(parse_config(rich_file, "t")));
  root["octet"] = {{"version", "0.1.0"}, {"config_hash", "0123"}};
  root["$schema"] = "schema.json";
  CHECK(parse_config(root.dump(), "t") == parse_config(rich_file, "t"));
}

TEST_CASE("a resolved file under another name is a run with a folder of its own") {
  const std::string resolved = to_json(parse_config(R"({"run": {"name": "ref"}})", "t"));
  CHECK(parse_config(resolved, "t").run.output == "runs/ref");
  CHECK(parse_config(resolved, "t", {"run.name=ref2"}).run.output == "runs/ref2");
  const std::string elsewhere = to_json(parse_config(R"({"run": {"name": "ref", "output": "o"}})", "t"));
  CHECK(parse_config(elsewhere, "t", {"run.name=ref2"}).run.output == "o");
}

TEST_CASE("the resolved file holds every field once and no shorthand") {
  const Json root = Json::parse(to_json(default_config()));
  for (const Field& field : fields())
    CHECK(root.contains(Json::json_pointer(field.pointer)) == !field.shorthand);
}

TEST_CASE("the hash follows what decides the numbers and nothing else") {
  const RunConfig before = default_config();
  const std::string hash = config_hash(before);
  CHECK(hash.size() == 16);
  for (const Field& field : fields()) {
    if (field.shorthand || field.choices.size() == 1) continue;
    if (field.pointer == "/model/preset" || field.pointer == "/precision/recipe")
      continue;  // expand to others
    RunConfig after = before;
    field.set(after, another_value(field, before));
    INFO(field.pointer);
    REQUIRE(field.get(after) != field.get(before));
    CHECK((config_hash(after) != hash) == field.decides_numbers);
  }
  RunConfig renamed = before;
  renamed.run.name = "other";
  renamed.run.output = "elsewhere";
  renamed.log.every = 10;
  renamed.data.train = renamed.data.validation = {{"default", {"a"}, 1}};
  RunConfig moved = renamed;
  moved.data.train[0].files = {"b"};
  CHECK(config_hash(renamed) == config_hash(moved));
  moved.data.train[0].weight = 2;
  CHECK(config_hash(renamed) != config_hash(moved));
}

TEST_CASE("changes on resume are free, recorded or forbidden, key by key") {
  const RunConfig before = default_config();
  for (const Field& field : fields()) {
    if (field.shorthand || field.choices.size() == 1) continue;
    if (field.pointer == "/model/preset" || field.pointer == "/precision/recipe") continue;
    RunConfig after = before;
    field.set(after, another_value(field, before));
    const std::vector<ConfigChange> changes = compare_configs(to_json(before), to_json(after));
    INFO(field.pointer);
    REQUIRE(pointers_of(changes) == std::vector<std::string>{field.pointer});
    CHECK(changes[0].change_class == field.change);
  }
  CHECK(compare_configs(to_json(before), to_json(before)).empty());

  // The classes of the fault table: shape is forbidden, rate, horizon and precision are recorded, intervals
  // free.
  const auto class_of = [](const char* pointer) {
    for (const Field& field : fields()) {
      if (field.pointer == pointer) return field.change;
    }
    throw Error(ExitCode::Internal, pointer);
  };
  for (const char* p : {"/model/width", "/model/vocabulary", "/model/layers", "/run/seed", "/batch/tokens"})
    CHECK(class_of(p) == ChangeClass::Forbidden);
  for (const char* p :
       {"/run/steps", "/schedule/learning_rate", "/precision/input/format", "/precision/smooth_swiglu"})
    CHECK(class_of(p) == ChangeClass::Recorded);
  for (const char* p :
       {"/log/every", "/checkpoint/every", "/run/output", "/evaluation/every", "/batch/recompute"})
    CHECK(class_of(p) == ChangeClass::Free);
}

TEST_CASE("parallel.zero is recorded where it changes bits: between 1 and 2, not between 0 and 1") {
  const auto with = [](int64_t zero) {
    RunConfig config = default_config();
    config.parallel.zero = zero;
    return config;
  };
  const auto change_of = [&](int64_t from, int64_t to) {
    const auto changes = compare_configs(to_json(with(from)), to_json(with(to)));
    REQUIRE(pointers_of(changes) == std::vector<std::string>{"/parallel/zero"});
    return changes[0].change_class;
  };
  for (const auto& [from, to] : {std::pair{0, 1}, {1, 0}}) {
    CHECK(change_of(from, to) == ChangeClass::Free);
    CHECK(config_hash(with(from)) == config_hash(with(to)));
  }
  for (const auto& [from, to] : {std::pair{1, 2}, {2, 1}, {0, 2}, {2, 0}}) {
    CHECK(change_of(from, to) == ChangeClass::Recorded);
    CHECK(config_hash(with(from)) != config_hash(with(to)));
  }
}

TEST_CASE("a number written in another way is no change, and a missing key has its default") {
  CHECK(compare_configs(R"({"schedule": {"learning_rate": 1}})", R"({"schedule": {"learning_rate": 1.0}})")
            .empty());
  CHECK(compare_configs("{}", to_json(default_config())).empty());
  const auto changes = compare_configs("{}", R"({"model": {"width": 512}})");
  REQUIRE(changes.size() == 1);
  CHECK(changes[0].before == "256");
  CHECK(changes[0].after == "512");
}
