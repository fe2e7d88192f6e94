// What a configuration file may hold, and what a wrong one is told.
#include <fmt/format.h>

#include "base/error.h"
#include "base/text.h"
#include "catch.h"
#include "config/complaint.h"
#include "config/fields.h"
#include "config/presets.h"
#include "numerics/recipes.h"

using namespace octet;
using octet::testing::Complaint;
using octet::testing::complaint_of;

namespace {

// {"a": {"b": value}} for "/a/b".
std::string file_with(const std::string& pointer, const std::string& value) {
  std::string open, close;
  for (size_t begin = 1; begin <= pointer.size();) {
    const size_t end = std::min(pointer.find('/', begin), pointer.size());
    open += fmt::format("{{\"{}\": ", pointer.substr(begin, end - begin));
    close += "}";
    begin = end + 1;
  }
  return open + value + close;
}

}  // namespace

TEST_CASE("an empty object is the default configuration") {
  RunConfig expected = default_config();
  expected.run.output = "runs/run";
  CHECK(parse_config("{}", "test.json") == expected);
}

TEST_CASE("every field reads back what it writes") {
  for (const Field& field : fields()) {
    INFO(field.pointer);
    if (field.shorthand) continue;
    RunConfig config = default_config();
    const Json value = field.get(config);
    field.set(config, value);
    CHECK(field.get(config) == value);
    for (const std::string& name : field.choices) {
      RunConfig changed = default_config();
      field.set(changed, name);
      CHECK(field.get(changed) == Json(name));
    }
  }
}

TEST_CASE("every key's misspelt sibling is refused with the key that was meant") {
  for (const Field& field : fields()) {
    const size_t slash = field.pointer.rfind('/');
    const std::string section = field.pointer.substr(0, slash), key = field.pointer.substr(slash + 1);
    // One letter doubled in the middle: one edit away from the key.
    const std::string misspelt =
        key.substr(0, key.size() / 2) + key[key.size() / 2] + key.substr(key.size() / 2);
    const Complaint c = complaint_of(file_with(section + "/" + misspelt, "1"));
    INFO(c.what);
    CHECK(c.code == ExitCode::Usage);
    CHECK(c.has(fmt::format("{}/{}: unknown key; did you mean \"{}\"?", section, misspelt, key)));
    // The control: the key itself is never called unknown.
    CHECK_FALSE(complaint_of(file_with(field.pointer, "1")).has("unknown key"));
  }
}

TEST_CASE("a misspelt section and a key in the wrong section are both found") {
  CHECK(complaint_of(R"({"modle": {"width": 1}})").has("/modle: unknown key; did you mean \"model\"?"));
  const auto sweep = complaint_of(R"({"name": "grid", "base": "run.json", "variants": {}, "axes": {}})");
  CHECK(sweep.has("/base: a sweep has this, a run does not; train its cells with octet sweep"));
  CHECK_FALSE(sweep.has("unknown key"));
  CHECK(complaint_of(R"({"optimizer": {"learning_rate": 1}})")
            .has("/optimizer/learning_rate: unknown key; did you mean /schedule/learning_rate?"));
  CHECK(complaint_of(R"({"log": {"xyzzyx": 1}})").has("unknown key; allowed: every, tensorboard"));
}

TEST_CASE("every field refuses a value of the wrong type and says what it takes") {
  for (const Field& field : fields()) {
    for (const char* wrong : {"null", "{}", "[{}, []]"}) {
      const Complaint c = complaint_of(file_with(field.pointer, wrong));
      INFO(field.pointer << " " << wrong << ": " << c.what);
      CHECK(c.code == ExitCode::Usage);
      CHECK(c.has(allowed(field)));
    }
  }
}

TEST_CASE("every number refuses what lies just outside its range and takes its limits") {
  int64_t limits = 0;
  for (const Field& field : fields()) {
    if (field.kind != ValueKind::Integer && field.kind != ValueKind::Number) continue;
    const bool integer = field.kind == ValueKind::Integer;
    const auto refused = [&](double value) {
      const std::string text = integer ? fmt::format("{:.0f}", value) : fmt::format("{:.17g}", value);
      return complaint_of(file_with(field.pointer, text)).has(": found " + (integer ? text : "")) &&
             complaint_of(file_with(field.pointer, text)).has(allowed(field));
    };
    INFO(field.pointer);
    const double low = field.bounds.low, high = field.bounds.high;
    if (std::abs(low) < 1e300) {
      CHECK(refused(integer ? low - 1 : std::nextafter(low, -1e300)));
      CHECK(refused(low) == field.bounds.open_low);
      ++limits;
    }
    if (high < 1e18) {
      CHECK(refused(integer ? high + 1 : std::nextafter(high, 1e300)));
      CHECK(refused(high) == field.bounds.open_high);
      ++limits;
    }
  }
  CHECK(limits > 60);
  CHECK(complaint_of(R"({"run": {"seed": 18446744073709551615}})")
            .has("/run/seed: found 18446744073709551615"));
  CHECK(complaint_of(R"({"run": {"steps": 10.5}})").has("/run/steps: found 10.5; allowed: an integer"));
  CHECK(parse_config(R"({"run": {"steps": 1e4}})", "t").run.steps == 10000);
}

TEST_CASE("a name that is not a choice gets the nearest one") {
  CHECK(complaint_of(R"({"schedule": {"name": "cosin"}})").has("did you mean \"cosine\"?"));
  CHECK(complaint_of(R"({"precision": {"recipe": "fp88"}})").has("did you mean \"fp8\"?"));
  CHECK(complaint_of(R"({"model": {"preset": "lama-7b"}})").has("did you mean \"llama-7b\"?"));
  CHECK(complaint_of(R"({"model": {"preset": "fog-mix"}})").has("did you mean \"fog-max\"?"));
}

TEST_CASE("syntax errors carry line and column") {
  const struct {
    const char* text;
    const char* at;
    const char* says;
  } cases[] = {
      {"{\n  \"run\": {\n    \"steps\": 5,\n  }\n}", ":4:3:", "a comma stands before the closing '}'"},
      {"{\"data\": {\"train\": [\"a\",]}}", ":1:25:", "a comma stands before the closing ']'"},
      {"{\n \"run\": {\"steps\": 1},\n \"run\": {}\n}", ":3:", "duplicate key \"run\"; line 2 has it too"},
      {"{\"run\": {\"steps\": NaN}}", ":1:19:", "syntax error"},
      {"{\"run\": {\"steps\": Infinity}}", ":1:19:", "syntax error"},
      {"{\"schedule\":\n{\"learning_rate\": 1e400}}", ":2:", "too large"},
      {"{\"run\": {\"name\": \"\xff\"}}", ":1:", "ill-formed UTF-8"},
      {"{\"run\": {\"name\": \"a\nb\"}}", ":", "control character"},
      {"{} {}", ":1:4:", "syntax error"},
      {"", ":1:1:", "syntax error"},
      {"\xff\xfe{", ":1:", "syntax error"},
      {"{\"run\": 'x'}", ":1:9:", "syntax error"},
  };
  for (const auto& c : cases) {
    const Complaint found = complaint_of(c.text);
    INFO(c.text << "\n" << found.what);
    CHECK(found.code == ExitCode::Usage);
    CHECK(found.has(std::string("test.json") + c.at));
    CHECK(found.has(c.says));
    CHECK(escape_control(found.what) == found.what);
  }
  CHECK(complaint_of(std::string("{\0}", 3)).has("zero byte"));
}

TEST_CASE("comments and a byte order mark are accepted") {
  const std::string text = "\xef\xbb\xbf// first\n{ /* inside */ \"run\": {\"steps\": 7} // last\n}";
  CHECK(parse_config(text, "test.json").run.steps == 7);
}

TEST_CASE("deep nesting is refused, not followed") {
  const std::string deep(200000, '[');
  CHECK(complaint_of(deep).has("nested deeper than 32 levels"));
  CHECK(complaint_of("{\"model\": " + deep).has("nested deeper than 32 levels"));
  std::string shallow(31, '[');
  CHECK_FALSE(complaint_of("{\"model\": " + shallow + std::string(31, ']') + "}").has("nested"));
}

TEST_CASE("all violations are reported at once, each with its line") {
  const Complaint c = complaint_of(R"({
  "run":   { "name": "a b", "stepz": 4 },
  "model": { "width": 250, "heads": 3, "kv_heads": 2 },
  "batch": { "tokens": 1000,
             "micro": 3 },
  "optimizer": { "beta2": 1.0 },
  "schedule": { "warmup_steps": 500 }
})");
  INFO(c.what);
  CHECK(c.has("line 2, column 29: /run/stepz: unknown key; did you mean \"steps\"?"));
  CHECK(c.has("line 2, column 14: /run/name: found \"a b\""));
  CHECK(c.has("line 3"));
  CHECK(c.has("line 4, column 14: /batch/tokens: found 1000; allowed: a multiple of"));
  CHECK(c.has("3 * 256 = 768; nearest: 768 or 1536"));
  CHECK(c.has("line 6, column 18: /optimizer/beta2: found 1.0; allowed: a number from 0 and below 1"));
  CHECK(c.count("/run/steps") ==
        0);  // warmup is not judged against a default the typo may have meant to change
  CHECK(c.count("\n") >= 6);
}

TEST_CASE("the nearest batch sizes that work are accepted") {
  for (const char* tokens : {"768", "1536"}) {
    CHECK_NOTHROW(parse_config(fmt::format(R"({{"batch": {{"tokens": {}, "micro": 3}}}})", tokens), "t"));
  }
}

TEST_CASE("FP8 needs micro-batches of a multiple of 16 tokens, BF16 does not") {
  const char* file =
      R"({{"model": {{"context": {}}}, "batch": {{"micro": 1, "tokens": {}}}, "precision": {{"recipe": "{}"}}}})";
  CHECK(complaint_of(fmt::format(fmt::runtime(file), 24, 240, "fp8"))
            .has("/batch/micro: found 1; 1 windows of 24"));
  CHECK(complaint_of(fmt::format(fmt::runtime(file), 24, 240, "bf16")).what.empty());
  CHECK(complaint_of(fmt::format(fmt::runtime(file), 32, 320, "fp8")).what.empty());
}

TEST_CASE("recipes whose masters a micro-batch reads cannot be offloaded") {
  const std::string offload = R"({"memory": {"offload": "optimizer"}, "precision": {)";
  for (const char* reads : {R"("recipe": "fp32"}})", R"("recipe": "fp8", "smooth_swiglu": "channel"}})",
                            R"("recipe": "fp8", "smooth_swiglu": "none", "smooth_quant": 0.5}})"})
    CHECK(complaint_of(offload + reads).has("/memory/offload: found \"optimizer\"; "));
  for (const char* does_not : {R"("recipe": "bf16"}})", R"("recipe": "fp8", "smooth_swiglu": "dual"}})"})
    CHECK_NOTHROW(parse_config(offload + does_not, "t"));
}

TEST_CASE("local SGD refuses what needs the ranks to be one after every step, and says what works") {
  const std::vector<std::string> works = {"parallel.zero=0",     "parallel.sync_every=20",
                                          "run.steps=200",       "checkpoint.every=40",
                                          "evaluation.every=60", R"(data.validation=["v"])"};
  CHECK(complaint_of("{}", works).what.empty());
  const auto complaint_with = [&](const std::string& change) {
    std::vector<std::string> settings = works;
    settings.push_back(change);
    return complaint_of("{}", settings);
  };
  for (const char* zero : {"1", "2"})
    CHECK(complaint_with(std::string("parallel.zero=") + zero).has("allowed: /parallel/zero 0"));
  CHECK(complaint_with("memory.offload=optimizer").has("/memory/offload"));
  for (const char* policy : {"skip", "rollback"})
    CHECK(complaint_with(std::string("health.on_spike=") + policy).has("/health/on_spike"));
  CHECK(complaint_with("run.steps=210").has("nearest: 200 or 220"));
  CHECK(complaint_with("checkpoint.every=10").has("/checkpoint/every: found 10"));
  CHECK(complaint_with("checkpoint.every=10").has("nearest: 20"));
  CHECK(complaint_with("checkpoint.every=0").what.empty());
  CHECK(complaint_with("evaluation.every=50").has("nearest: 40 or 60"));
  std::vector<std::string> unseen = works;
  unseen.insert(unseen.end(), {"evaluation.every=50", "data.validation=[]"});
  CHECK(complaint_of("{}", unseen).what.empty());  // no evaluation
  CHECK(complaint_with("parallel.outer_momentum=1").has("/parallel/outer_momentum"));
  // Negative control: synchronous ranks may do all of that.
  CHECK(complaint_of("{}", {"parallel.zero=2", "checkpoint.every=10", "run.steps=210"}).what.empty());
}

TEST_CASE("Muon refuses parts of matrices on ranks, and says what works") {
  const std::vector<std::string> works = {"optimizer.name=muon", "parallel.zero=0"};
  CHECK(complaint_of("{}", works).what.empty());
  CHECK(parse_config("{}", "t", works).optimizer.name == OptimizerName::Muon);
  const auto complaint_with = [&](const std::string& change) {
    std::vector<std::string> settings = works;
    settings.push_back(change);
    return complaint_of("{}", settings);
  };
  for (const char* zero : {"1", "2"}) {
    const Complaint complaint = complaint_with(std::string("parallel.zero=") + zero);
    CHECK(complaint.has(std::string("/parallel/zero: found ") + zero));
    CHECK(complaint.has("/optimizer/name \"muon\""));
    CHECK(complaint.has("allowed: 0, or /optimizer/name \"adamw\""));
    CHECK(complaint_of("{}", {std::string("parallel.zero=") + zero}).what.empty());  // negative control
  }
  CHECK(complaint_of("{}", {"optimizer.name=muon"}).has("/parallel/zero"));  // 1 is the default
  CHECK(complaint_with("optimizer.muon_momentum=1").has("/optimizer/muon_momentum"));
  CHECK(complaint_with("optimizer.muon_steps=0").has("/optimizer/muon_steps"));
  CHECK(complaint_with("memory.offload=optimizer").what.empty());
  CHECK(complaint_with("optimizer.name=moun").has("muon"));
}

TEST_CASE("a preset or recipe is expanded first and the fields beside it override, in any order") {
  const RunConfig c = parse_config(
      R"({"model": {"layers": 8, "preset": "llama-1b"}, "precision": {"smooth_swiglu": "token", "recipe": "fp8"},
          "batch": {"micro": 1}})",
      "t");
  TransformerSpec spec = make_model("llama-1b");
  spec.layers = 8;
  CHECK(c.model == spec);
  Recipe recipe = make_recipe("fp8");
  recipe.smooth_swiglu = SmoothSwiGLU::Token;
  CHECK(c.precision == recipe);
}

TEST_CASE("data sources are globs or weighted mixtures, not both") {
  const RunConfig plain = parse_config(R"({"data": {"train": ["a_*.bin", "b.bin"]}})", "t");
  REQUIRE(plain.data.train.size() == 1);
  CHECK(plain.data.train[0] == DataSource{"default", {"a_*.bin", "b.bin"}, 1});
  const RunConfig mixed = parse_config(
      R"({"data": {"train": [{"name": "web", "files": ["w*"], "weight": 3}, {"name": "code", "files": ["c"]}]}})",
      "t");
  REQUIRE(mixed.data.train.size() == 2);
  CHECK(mixed.data.train[0] == DataSource{"web", {"w*"}, 3});
  CHECK(mixed.data.train[1] == DataSource{"code", {"c"}, 1});

  CHECK(complaint_of(R"({"data": {"train": ["a", {"name": "b", "files": ["c"]}]}})")
            .has("/data/train/1: found"));
  CHECK(complaint_of(R"({"data": {"train": [{"file": ["c"]}]}})").has("did you mean \"files\"?"));
  CHECK(complaint_of(R"({"data": {"train": [{"files": ["c"], "weight": 0}]}})")
            .has("/data/train/0/weight: found 0"));
  CHECK(complaint_of(R"({"data": {"train": [{"files": ["a"]}, {"files": ["b"]}]}})")
            .has("two sources are called \"default\""));
  CHECK(complaint_of(R"({"data": {"train": "a"}})").has("/data/train: found \"a\""));
}

TEST_CASE("surprising names and paths are refused") {
  const auto refused = [](const char* pointer, const std::string& value) {
    return complaint_of(file_with(pointer, Json(value).dump())).has(pointer);
  };
  for (const char* name : {"", "a b", "a/b", "..", "a\nb", "\x1b[31m", "é"})
    CHECK(refused("/run/name", name));
  for (const char* folder : {"/", "//", "/.", "/x/..", ".", "./", "..", "../..", "a/..", "~/runs",
                             "$HOME/runs", "runs/${USER}", "runs/\n", "\x1b[2J"})
    CHECK(refused("/run/output", folder));
  CHECK(complaint_of(R"({"data": {"train": ["~/a.bin"]}})").has("~ is not expanded"));
  for (const char* folder : {"runs/x", "/scratch/runs/x", "../runs/x", "x", "x/"})
    CHECK_FALSE(refused("/run/output", folder));
  const Complaint c = complaint_of(file_with("/run/name", R"("\u001b[31mred")"));
  CHECK(c.what.find('\x1b') == std::string::npos);
  CHECK(parse_config(R"({"run": {"name": "a-b_c.1"}})", "t").run.output == "runs/a-b_c.1");
}

TEST_CASE("overrides are JSON or bare strings, and complaints name them") {
  const RunConfig c = parse_config(R"({"run": {"steps": 5}})", "t",
                                   {"run.steps=9", "run.name=nine", "schedule.learning_rate=1e-4",
                                    "data.train=[\"x.bin\"]", "model.rope_scaling.factor=8"});
  CHECK(c.run.steps == 9);
  CHECK(c.run.name == "nine");
  CHECK(c.schedule.learning_rate == 1e-4);
  CHECK(c.data.train[0].files[0] == "x.bin");
  CHECK(c.model.rope_scaling.factor == 8);
  CHECK(complaint_of("{}", {"run.stepz=9"})
            .has("--set run.stepz=9: /run/stepz: unknown key; did you mean \"steps\"?"));
  CHECK(complaint_of("{}", {"run.steps=nan"}).has("found \"nan\""));
  CHECK(complaint_of("{}", {"run.steps="}).has("/run/steps: found \"\""));
  CHECK(complaint_of("{}", {"steps"}).has("expected section.key=value"));
  CHECK(complaint_of("{}", {"run..steps=1"}).has("is empty"));
  CHECK(complaint_of("{}", {"run.steps.x=1"}).code == ExitCode::Usage);
  CHECK(complaint_of("{}", {"run.name=\xff"}).has("/run/name: found"));
  const RunConfig source =
      parse_config(R"({"data": {"train": [{"files": ["a"]}]}})", "t", {"data.train.0.weight=2.5"});
  CHECK(source.data.train[0].weight == 2.5);
}

TEST_CASE("an override of a recipe or preset does not undo the overrides around it, in any order") {
  for (const bool recipe_first : {false, true}) {
    std::vector<std::string> overrides = {"precision.smooth_swiglu=none", "model.layers=3"};
    overrides.insert(recipe_first ? overrides.begin() : overrides.end(),
                     {"precision.recipe=fp8", "model.preset=op"});
    const RunConfig c = parse_config(R"({"precision": {"recipe": "bf16"}})", "t", overrides);
    CHECK(c.precision.smooth_swiglu == SmoothSwiGLU::None);
    CHECK(c.precision.name == "fp8");
    CHECK(c.model.layers == 3);
    CHECK(c.model.preset == "op");
  }
}

TEST_CASE("overriding the recipe of a resolved file replaces the whole recipe") {
  const std::string resolved = to_json(parse_config(R"({"precision": {"recipe": "bf16"}})", "t"));
  // The resolved file spells out every BF16 operand; a run labelled fp8 must not keep them.
  const RunConfig c = parse_config(resolved, "t", {"precision.recipe=fp8", "precision.weight_gradient=bf16"});
  CHECK(c.precision.float8());
  CHECK(c.precision.weight_gradient == Format::BF16);
  Recipe expected = make_recipe("fp8");
  expected.weight_gradient = Format::BF16;
  CHECK(c.precision == expected);
}
