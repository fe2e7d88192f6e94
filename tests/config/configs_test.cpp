// The configurations that ship: valid, twins, and described by the schema.
#include <filesystem>
#include <set>

#include "base/files.h"
#include "catch.h"
#include "config/fields.h"
#include "numerics/recipes.h"

using namespace octet;
namespace fs = std::filesystem;

namespace {

Json document_of(const fs::path& path) {
  return read_document(read_text(path, ExitCode::Usage), path.string()).root;
}

// Of runs; a file with a "base" is a sweep (tests/analysis/sweep_test.cpp).
std::vector<fs::path> shipped() {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(fs::path(OCTET_SOURCE_DIR) / "configs")) {
    if (entry.path().extension() == ".json" && !document_of(entry.path()).contains("base"))
      paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// The subset of JSON Schema that octet config --schema uses. Returns the first complaint, or empty.
std::string violates(const Json& schema, const Json& value, const std::string& at) {
  if (schema.contains("anyOf")) {
    for (const Json& option : schema["anyOf"]) {
      if (violates(option, value, at).empty()) return {};
    }
    return at + ": no option of anyOf";
  }
  if (schema.contains("enum")) {
    for (const Json& choice : schema["enum"]) {
      if (choice == value) return {};
    }
    return at + ": not in enum";
  }
  const std::string type = schema.at("type");
  const bool fits = type == "object"    ? value.is_object()
                    : type == "array"   ? value.is_array()
                    : type == "string"  ? value.is_string()
                    : type == "boolean" ? value.is_boolean()
                    : type == "integer" ? value.is_number_integer()
                                        : value.is_number();
  if (!fits) return at + ": not of type " + type;
  if (value.is_number()) {
    const double x = value;
    if (schema.contains("minimum") && x < schema["minimum"].get<double>()) return at + ": below minimum";
    if (schema.contains("maximum") && x > schema["maximum"].get<double>()) return at + ": above maximum";
    if (schema.contains("exclusiveMinimum") && x <= schema["exclusiveMinimum"].get<double>())
      return at + ": too low";
    if (schema.contains("exclusiveMaximum") && x >= schema["exclusiveMaximum"].get<double>())
      return at + ": too high";
  }
  if (value.is_array()) {
    for (const Json& item : value) {
      const std::string complaint = violates(schema.at("items"), item, at + "/*");
      if (!complaint.empty()) return complaint;
    }
  }
  if (value.is_object() && schema.contains("properties")) {
    for (const auto& [key, item] : value.items()) {
      if (!schema["properties"].contains(key)) return at + "/" + key + ": unknown";
      const std::string complaint = violates(schema["properties"][key], item, at + "/" + key);
      if (!complaint.empty()) return complaint;
    }
  }
  return {};
}

}  // namespace

TEST_CASE("every shipped configuration is valid and survives its own resolution") {
  REQUIRE(shipped().size() >= 37);
  for (const fs::path& path : shipped()) {
    INFO(path);
    const RunConfig config = load_config(path.string());
    CHECK(parse_config(to_json(config), "resolved") == config);
  }
}

TEST_CASE("shipped twins differ in the precision section only") {
  std::set<std::string> twins;
  for (const fs::path& path : shipped()) {
    const std::string stem = path.stem().string();
    if (stem.size() < 5 || stem.substr(stem.size() - 5) != "-bf16") continue;
    const std::string base = stem.substr(0, stem.size() - 5);
    fs::path fp8 = path.parent_path() / (base + "-fp8.json");
    if (!fs::exists(fp8)) fp8 = path.parent_path() / (base + ".json");
    INFO(path << " and " << fp8);
    REQUIRE(fs::exists(fp8));
    Json a = document_of(path), b = document_of(fp8);
    CHECK(a["precision"] != b["precision"]);
    a.erase("precision");
    b.erase("precision");
    CHECK(a.dump() == b.dump());
    CHECK_FALSE(load_config(path.string()).precision.float8());
    CHECK(load_config(fp8.string()).precision.float8());
    twins.insert(base);
  }
  // Neither: 3b-fp8-24gb.json and the quickstart with one thing changed, below.
  CHECK(twins.size() * 2 + 13 == shipped().size());
}

TEST_CASE("every file in configs/ is in its table") {
  const fs::path folder = fs::path(OCTET_SOURCE_DIR) / "configs";
  const std::string table = read_text(folder / "README.md", ExitCode::Usage);
  for (const fs::path& in : {folder, folder / "recipes"}) {
    for (const auto& entry : fs::directory_iterator(in)) {
      if (entry.path().extension() != ".json") continue;
      std::string stem = entry.path().stem().string();
      INFO(stem);
      bool named = table.find("`" + stem + ".json`") != std::string::npos;
      // Twins by what they share: `124m-{bf16,fp8}.json`.
      for (const std::string end : {"bf16", "fp8"})
        if (stem.size() > end.size() && stem.compare(stem.size() - end.size(), end.size(), end) == 0)
          named |= table.find("`" + stem.substr(0, stem.size() - end.size())) != std::string::npos;
      CHECK(named);
    }
  }
}

TEST_CASE("the recipes of configs/recipes are the quickstart with another section precision") {
  const fs::path folder = fs::path(OCTET_SOURCE_DIR) / "configs";
  Json quickstart = document_of(folder / "quickstart.json");
  quickstart.erase("precision");
  const Json schema = Json::parse(json_schema());
  int found = 0;
  for (const auto& entry : fs::directory_iterator(folder / "recipes")) {
    INFO(entry.path());
    ++found;
    Json file = document_of(entry.path());
    CHECK(violates(schema, file, "file") == "");
    CHECK(file["run"]["name"] == "quickstart-" + entry.path().stem().string());
    file["run"]["name"] = "quickstart";
    file.erase("precision");
    CHECK(file.dump() == quickstart.dump());
    const RunConfig config = load_config(entry.path().string());
    CHECK(parse_config(to_json(config), "resolved") == config);
    CHECK(violates(schema, Json::parse(to_json(config)), "resolved") == "");
    const LinearFormats plain = config.precision.formats();
    CHECK((plain.simulate.reduces() || !is_one_scale(plain.input.scaling) ||
           !config.precision.overrides.empty()));
  }
  CHECK(found >= 3);
}

TEST_CASE("the quickstart with FP8 attention is the quickstart, but for attention") {
  const fs::path folder = fs::path(OCTET_SOURCE_DIR) / "configs";
  RunConfig attention = load_config((folder / "quickstart-fp8-attention.json").string());
  CHECK(attention.precision.attention == AttentionFormat::FP8);
  attention.precision.attention = AttentionFormat::Storage;
  const RunConfig quickstart = load_config((folder / "quickstart.json").string());
  attention.run.name = quickstart.run.name;
  attention.run.output = quickstart.run.output;
  CHECK(attention == quickstart);
}

TEST_CASE("the quickstart of DeepSeek-V3's recipe is the quickstart, but for its precision") {
  const fs::path folder = fs::path(OCTET_SOURCE_DIR) / "configs";
  RunConfig deepseek = load_config((folder / "quickstart-deepseek.json").string());
  CHECK(deepseek.precision == make_recipe("deepseek"));
  const RunConfig quickstart = load_config((folder / "quickstart.json").string());
  deepseek.precision = quickstart.precision;
  deepseek.run.name = quickstart.run.name;
  deepseek.run.output = quickstart.run.output;
  CHECK(deepseek == quickstart);
}

TEST_CASE("the quickstart whose scales follow the distribution is the quickstart, but for these") {
  const fs::path folder = fs::path(OCTET_SOURCE_DIR) / "configs";
  RunConfig c = load_config((folder / "quickstart-quantile.json").string());
  const RunConfig quickstart = load_config((folder / "quickstart.json").string());
  CHECK(c.precision.adaptive == AdaptiveScaling{});  // what the file spells out is the default
  CHECK(c.precision.input.scaling == Scaling::Quantile);
  CHECK(c.precision.grad.scaling == Scaling::Following);
  c.precision.input.scaling = c.precision.grad.scaling = Scaling::Current;
  c.precision.smooth_swiglu = quickstart.precision.smooth_swiglu;
  c.run = quickstart.run;
  CHECK(c == quickstart);
}

TEST_CASE("the quickstart of nanotron's recipe is the quickstart but for what its runs have") {
  const fs::path folder = fs::path(OCTET_SOURCE_DIR) / "configs";
  RunConfig nanotron = load_config((folder / "quickstart-nanotron.json").string());
  Recipe recipe = make_recipe("nanotron");
  recipe.smooth_quant = 0.5;
  recipe.input.scaling = Scaling::Current;
  recipe.master = MasterFormat::FP32;
  CHECK(nanotron.precision == recipe);
  CHECK(nanotron.model.softmax_clip_low == -0.03);
  CHECK(nanotron.model.softmax_clip_high == 1.3);
  CHECK(nanotron.optimizer.update_clipping);
  const RunConfig quickstart = load_config((folder / "quickstart.json").string());
  nanotron.precision = quickstart.precision;
  nanotron.model = quickstart.model;
  nanotron.optimizer = quickstart.optimizer;
  nanotron.run = quickstart.run;
  CHECK(nanotron == quickstart);
}

TEST_CASE("3B for 24 GB is the run of 3b-fp8.json: only names and places differ") {
  const fs::path folder = fs::path(OCTET_SOURCE_DIR) / "configs";
  RunConfig small = load_config((folder / "3b-fp8-24gb.json").string());
  const RunConfig large = load_config((folder / "3b-fp8.json").string());
  CHECK(small.memory.offload == Offload::Optimizer);
  CHECK(small.run.steps == large.run.steps);
  small.run = large.run;
  small.memory = large.memory;
  small.batch.micro = large.batch.micro;
  small.batch.recompute = large.batch.recompute;
  CHECK(small == large);
}

TEST_CASE("the quickstart with local SGD is the quickstart: only what ranks exchange differs") {
  const fs::path folder = fs::path(OCTET_SOURCE_DIR) / "configs";
  RunConfig local = load_config((folder / "quickstart-local-sgd.json").string());
  const RunConfig quickstart = load_config((folder / "quickstart.json").string());
  CHECK(local.parallel.sync_every > 1);
  CHECK(local.batch.tokens % (2 * local.batch.micro * local.model.context) == 0);  // two ranks work
  local.run = quickstart.run;
  local.parallel = quickstart.parallel;
  local.batch.micro = quickstart.batch.micro;
  CHECK(local == quickstart);
}

TEST_CASE("the quickstart's schedules and its fallback are the quickstart but for what they show") {
  const fs::path folder = fs::path(OCTET_SOURCE_DIR) / "configs";
  const Json schema = Json::parse(json_schema());
  const RunConfig quickstart = load_config((folder / "quickstart.json").string());
  for (const char* name : {"bf16-cooldown", "progressive-bits", "fallback"}) {
    INFO(name);
    const fs::path path = folder / (std::string("quickstart-") + name + ".json");
    CHECK(violates(schema, document_of(path), "file") == "");
    RunConfig c = load_config(path.string());
    CHECK(violates(schema, Json::parse(to_json(c)), "resolved") == "");
    CHECK((!c.precision_schedule.empty() || c.fallback.on()));
    c.precision = quickstart.precision;
    c.precision_schedule.clear();
    c.fallback = {};
    c.run = quickstart.run;
    CHECK(c == quickstart);
  }
}

TEST_CASE("the quickstart's optimizers are the quickstart but for what they show") {
  const fs::path folder = fs::path(OCTET_SOURCE_DIR) / "configs";
  const RunConfig fp8 = load_config((folder / "quickstart.json").string()),
                  bf16 = load_config((folder / "quickstart-bf16.json").string());
  for (const char* name : {"six-bytes", "update-clipping"}) {
    INFO(name);
    RunConfig c = load_config((folder / (std::string("quickstart-") + name + ".json")).string());
    const RunConfig& plain = c.precision.float8() ? fp8 : bf16;
    CHECK_FALSE(c == plain);
    CHECK(c.optimizer.update_clipping == (name == std::string("update-clipping")));
    CHECK((c.precision.master == MasterFormat::BF16Stochastic) == (name == std::string("six-bytes")));
    c.run.name = plain.run.name;
    c.run.output = plain.run.output;
    c.precision.master = plain.precision.master;
    c.precision.moments = plain.precision.moments;
    c.precision.weight_gradient = plain.precision.weight_gradient;
    c.optimizer.update_clipping = false;
    CHECK(c == plain);
  }
  RunConfig coat = load_config((folder / "quickstart-coat.json").string());
  CHECK(coat.precision == make_recipe("coat"));
  coat.run.name = fp8.run.name;
  coat.run.output = fp8.run.output;
  coat.precision = fp8.precision;
  CHECK(coat == fp8);
}

TEST_CASE("the quickstart with Muon is the quickstart but for the optimizer") {
  const fs::path folder = fs::path(OCTET_SOURCE_DIR) / "configs";
  RunConfig muon = load_config((folder / "quickstart-muon.json").string());
  const RunConfig plain = load_config((folder / "quickstart.json").string());
  CHECK(muon.optimizer.name == OptimizerName::Muon);
  muon.optimizer.name = plain.optimizer.name;
  muon.parallel.zero = plain.parallel.zero;
  muon.run.name = plain.run.name;
  muon.run.output = plain.run.output;
  CHECK(muon == plain);
}

TEST_CASE("the quickstart's FP8 section spells out the recipe fp8") {
  const fs::path path = fs::path(OCTET_SOURCE_DIR) / "configs" / "quickstart.json";
  const RunConfig plain = parse_config(R"({"precision": {"recipe": "fp8"}})", "t");
  CHECK(load_config(path.string()).precision == plain.precision);
}

TEST_CASE("the schema accepts every shipped and every resolved configuration") {
  const Json schema = Json::parse(json_schema());
  for (const fs::path& path : shipped()) {
    CHECK(violates(schema, document_of(path), path.stem().string()) == "");
    CHECK(violates(schema, Json::parse(to_json(load_config(path.string()))), path.stem().string()) == "");
  }
}

TEST_CASE("the schema knows every key, with its default and limits, and refuses what the reader refuses") {
  const Json schema = Json::parse(json_schema());
  const std::vector<std::string> wrong = {
      R"({"modle": {}})",
      R"({"model": {"widht": 1}})",
      R"({"model": {"width": 0}})",
      R"({"model": {"width": "256"}})",
      R"({"optimizer": {"beta2": 1.0}})",
      R"({"schedule": {"name": "cosin"}})",
      R"({"data": {"train": [1]}})",
      R"({"data": {"train": [{"files": ["a"], "weight": 0}]}})",
      R"({"run": {"deterministic": 1}})",
  };
  for (const std::string& text : wrong) {
    INFO(text);
    CHECK(violates(schema, Json::parse(text), "") != "");
    CHECK_THROWS_AS(parse_config(text, "t"), Error);
  }
  for (const Field& field : fields()) {
    std::string pointer;
    for (char c : field.pointer) pointer += c == '/' ? std::string("/properties/") : std::string(1, c);
    INFO(field.pointer);
    const Json& node = schema.at(Json::json_pointer(pointer));
    CHECK(node.at("description") == field.help);
    if (!field.shorthand) {
      CHECK(node.at("default") == field.get(default_config()));
      CHECK(violates(node, node.at("default"), field.pointer) == "");
    }
  }
}
