#include "config/checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <set>

#include "base/text.h"
#include "config/check_precision.h"
#include "config/fields.h"

namespace octet {
namespace {

using Problems = std::vector<RuleProblem>;

bool plain_name(const std::string& name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

// What is wrong with a path as the user wrote it, or empty. There is no shell: nothing is expanded.
std::string path_problem(const std::string& path) {
  for (unsigned char c : path) {
    if (c < 0x20 || c == 0x7f)
      return fmt::format("found \"{}\"; control characters are not allowed", escape_control(path));
  }
  if (!path.empty() && path[0] == '~') {
    return fmt::format("found \"{}\"; ~ is not expanded: write the folder's full path", path);
  }
  if (path.find('$') != std::string::npos) {
    return fmt::format("found \"{}\"; variables are not expanded: write the value", path);
  }
  return {};
}

void check_parallel(const RunConfig& c, Problems& out) {
  constexpr double least = 0.5;
  if (const double stall = c.parallel.stall_seconds; stall > 0 && stall < least)
    out.push_back({"/parallel/stall_seconds",
                   {},
                   fmt::format("found {}; allowed: 0 (never), or {} and more", stall, least)});
}

// Local SGD: what needs the ranks to be one after every step.
void check_sync(const RunConfig& c, Problems& out) {
  const int64_t every = c.parallel.sync_every;
  if (every <= 1) return;
  const char* here = "/parallel/sync_every";
  if (c.parallel.zero != 0)
    out.push_back(
        {here,
         {"/parallel/zero"},
         fmt::format("found {} with /parallel/zero {}: ranks that train alone have whole masters and "
                     "moments each; allowed: /parallel/zero 0",
                     every, c.parallel.zero)});
  if (c.memory.offload != Offload::None)
    out.push_back(
        {here,
         {"/memory/offload"},
         fmt::format("found {} with /memory/offload \"optimizer\": the outer step needs the masters "
                     "on the device; allowed: /memory/offload \"none\"",
                     every)});
  if (c.precision.master != MasterFormat::FP32)
    out.push_back({here,
                   {"/precision"},
                   fmt::format("found {} with /precision/master: the outer step adds to FP32 masters; "
                               "allowed: /precision/master \"fp32\"",
                               every)});
  if (c.health.on_spike != SpikePolicy::Log)
    out.push_back(
        {here,
         {"/health/on_spike"},
         fmt::format("found {} with /health/on_spike: the loss of all ranks is known when a step is "
                     "over; allowed: /health/on_spike \"log\"",
                     every)});
  const auto check_multiple = [&](const std::string& pointer, int64_t steps, const char* what) {
    if (steps % every == 0) return;
    const int64_t below = steps / every * every;
    out.push_back(
        {pointer,
         {here},
         fmt::format("found {}; ranks that train alone for {} steps (/parallel/sync_every) {} only "
                     "after a multiple of {}; nearest: {}",
                     steps, every, what, every,
                     below > 0 ? fmt::format("{} or {}", below, below + every) : fmt::format("{}", every))});
  };
  for (size_t i = 0; i < c.precision_schedule.size(); ++i)
    check_multiple(fmt::format("/precision_schedule/{}/from", i), c.precision_schedule[i].from,
                   "have one model to go on with in another precision");
  check_multiple("/run/steps", c.run.steps, "have one model");
  check_multiple("/checkpoint/every", c.checkpoint.every, "have one model to save");
  if (!c.data.validation.empty())
    check_multiple("/evaluation/every", c.evaluation.every, "have one model to evaluate");
}

// Newton-Schulz needs a matrix whole.
void check_muon(const RunConfig& c, Problems& out) {
  if (c.optimizer.name != OptimizerName::Muon) return;
  if (c.model.parametrization == Parametrization::Unit)
    out.push_back({"/optimizer/name",
                   {"/model/parametrization", "/model/preset"},
                   "found \"muon\" with /model/parametrization \"unit\", whose learning rates are those of "
                   "Adam's updates; allowed: \"adamw\", or \"standard\""});
  if (c.parallel.zero == 0) return;
  out.push_back(
      {"/parallel/zero",
       {"/optimizer/name"},
       fmt::format("found {} with /optimizer/name \"muon\": a rank would own parts of matrices, and Muon "
                   "makes whole ones orthogonal; allowed: 0, or /optimizer/name \"adamw\"",
                   c.parallel.zero)});
}

void check_run(const RunConfig& c, Problems& out) {
  if (!plain_name(c.run.name) || c.run.name == "." || c.run.name == "..") {
    out.push_back({"/run/name",
                   {},
                   fmt::format("found \"{}\"; allowed: letters, digits, '.', '_' and '-'",
                               escape_control(c.run.name))});
  } else if (c.run.name.size() > 100) {
    out.push_back(
        {"/run/name", {}, fmt::format("found {} characters; allowed: at most 100", c.run.name.size())});
  }
  const std::string problem = path_problem(c.run.output);
  if (!problem.empty()) {
    out.push_back({"/run/output", {}, problem});
  } else if (!c.run.output.empty()) {
    std::filesystem::path folder = std::filesystem::path(c.run.output).lexically_normal();
    if (!folder.has_filename() && folder.has_parent_path() && folder != folder.root_path())
      folder = folder.parent_path();
    const bool above = folder == folder.root_path() || folder == "." || folder.filename() == "..";
    if (above) {
      out.push_back({"/run/output",
                     {},
                     fmt::format("found \"{}\"; a run needs a folder of its own, not the root, "
                                 "the current folder or one above it",
                                 c.run.output)});
    }
  }
}

void check_data(const RunConfig& c, Problems& out) {
  const auto check_sources = [&](const std::vector<DataSource>& sources, const std::string& pointer) {
    std::set<std::string> names;
    for (size_t i = 0; i < sources.size(); ++i) {
      const std::string at = fmt::format("{}/{}", pointer, i);
      if (!plain_name(sources[i].name)) {
        out.push_back({at + "/name",
                       {pointer},
                       fmt::format("found \"{}\"; allowed: letters, digits, '.', '_' and '-'",
                                   escape_control(sources[i].name))});
      }
      if (!names.insert(sources[i].name).second) {
        out.push_back({at + "/name",
                       {pointer},
                       fmt::format("two sources are called \"{}\"; every source needs a name of its own",
                                   escape_control(sources[i].name))});
      }
      for (const std::string& file : sources[i].files) {
        const std::string problem = file.empty() ? "found an empty path" : path_problem(file);
        if (!problem.empty()) out.push_back({at, {pointer}, problem});
      }
    }
  };
  check_sources(c.data.train, "/data/train");
  check_sources(c.data.validation, "/data/validation");
  if (c.data.raw_width == "uint16" && c.model.vocabulary > 65536) {
    out.push_back({"/data/raw_width",
                   {"/model/vocabulary", "/model/preset"},
                   fmt::format("found \"uint16\", which holds 65536 ids; /model/vocabulary is {}",
                               c.model.vocabulary)});
  }
}

void check_batch(const RunConfig& c, Problems& out) {
  const int64_t micro_tokens = c.batch.micro * c.model.context;
  const std::vector<std::string> involved = {"/batch/micro", "/model/context", "/model/preset"};
  constexpr int64_t most = int64_t{1} << 27;  // keeps every size of a micro-batch inside 64 bits
  if (micro_tokens > most) {
    out.push_back({"/batch/micro", involved,
                   fmt::format("{} windows of {} tokens are {} tokens; allowed: at most {}", c.batch.micro,
                               c.model.context, micro_tokens, most)});
  } else if (c.batch.tokens % micro_tokens != 0) {
    const int64_t below = c.batch.tokens / micro_tokens * micro_tokens, above = below + micro_tokens;
    out.push_back(
        {"/batch/tokens", involved,
         fmt::format("found {}; allowed: a multiple of /batch/micro * /model/context = {} * {} = {}; "
                     "nearest: {}",
                     c.batch.tokens, c.batch.micro, c.model.context, micro_tokens,
                     below > 0 ? fmt::format("{} or {}", below, above) : fmt::format("{}", above))});
  }
  constexpr int64_t most_tokens = int64_t{1} << 60;  // of a run: sample numbers stay inside 64 bits
  if (c.run.steps > most_tokens / c.batch.tokens) {
    out.push_back({"/run/steps",
                   {"/batch/tokens"},
                   fmt::format("found {}; with /batch/tokens = {} allowed: at most {}", c.run.steps,
                               c.batch.tokens, most_tokens / c.batch.tokens)});
  }
}

// FP8 GEMMs read rows of 16 codes, and the weight gradient's rows are tokens.
void check_micro_alignment(const RunConfig& c, Problems& out) {
  const int64_t micro_tokens = c.batch.micro * c.model.context;
  if (c.precision.float8() && micro_tokens % 16 != 0) {
    out.push_back(
        {"/batch/micro",
         {"/model", "/precision"},
         fmt::format("found {}; {} windows of {} tokens are {} tokens; allowed with FP8: a multiple of 16",
                     c.batch.micro, c.batch.micro, c.model.context, micro_tokens)});
  }
}

void check_states(const RunConfig& c, Problems& out) {
  if (const std::string problem = saved_activations_problem(c.precision, c.model, c.batch.recompute);
      !problem.empty())
    out.push_back({"/precision/saved_activations",
                   {"/precision", "/batch/recompute", "/model"},
                   "found \"fp8\"; " + problem});
  const Moments& m = c.precision.moments;
  const std::vector<std::string> section = {"/precision"};
  if (const std::string problem = master_problem(c.precision); !problem.empty())
    out.push_back({"/precision/master", section, "found another format than \"fp32\"; " + problem});
  if (m.range_expansion && (!is_float8(m.first) || !is_float8(m.second) || m.block == 0))
    out.push_back({"/precision/moments/range_expansion", section,
                   "found true; it spreads the values of blocks over FP8: both moments have to be e4m3 or "
                   "e5m2, and /precision/moments/block above 0"});
  constexpr int64_t most = 1024, block = 128;  // of a master
  const bool coded =
      is_float8(m.first) || is_float8(m.second) || m.first == Format::FP16 || m.second == Format::FP16;
  if (c.precision.master == MasterFormat::FP16Scaled && coded && m.block > 0 &&
      std::lcm(block, static_cast<int64_t>(m.block)) > most)
    out.push_back(
        {"/precision/moments/block", section,
         fmt::format("found {} with masters in blocks of 128 (\"fp16_scaled\"); allowed: 0, or what "
                     "has a common multiple of at most 1024 with 128",
                     m.block)});
}

void check_memory(const RunConfig& c, Problems& out) {
  if (c.memory.offload == Offload::None) return;
  const std::string problem = offload_problem(c.precision);
  if (!problem.empty()) out.push_back({"/memory/offload", {"/precision"}, "found \"optimizer\"; " + problem});
}

void check_schedule(const RunConfig& c, Problems& out) {
  if (c.schedule.final_steps > 0 && c.schedule.final_steps >= c.run.steps - c.schedule.warmup_steps)
    out.push_back({"/schedule/final_steps",
                   {"/run/steps", "/schedule/warmup_steps"},
                   fmt::format("found {}; allowed: less than what /run/steps leaves after the warm-up, {}",
                               c.schedule.final_steps, c.run.steps - c.schedule.warmup_steps)});
  if (c.schedule.warmup_steps > 0 && c.schedule.warmup_steps >= c.run.steps) {
    out.push_back(
        {"/schedule/warmup_steps",
         {"/run/steps"},
         fmt::format("found {}; allowed: less than /run/steps = {}", c.schedule.warmup_steps, c.run.steps)});
  }
}

// What the section "precision" has to do with itself and with the others.
void check_recipe(const RunConfig& c, Problems& out) {
  check_micro_alignment(c, out);
  check_precision(c, out);
  check_states(c, out);
  check_memory(c, out);
  for (const SpecProblem& problem : check(c.model, c.precision.float8())) {
    std::string key = problem.key;
    std::replace(key.begin(), key.end(), '.', '/');
    out.push_back({"/model/" + key, {"/model", "/precision"}, problem.message});
  }
}

// A stage goes on with the states of the one before: their formats are converted nowhere.
void check_states_of_stage(const RunConfig& c, const RunConfig& staged, const std::string& at,
                           Problems& out) {
  for (const Field& field : fields()) {
    if (!field.of_stage || field.shorthand || field.change != ChangeClass::Forbidden) continue;
    const Json first = field.get(c), here = field.get(staged);
    if (first != here)
      out.push_back(
          {at + in_precision(field),
           {"/precision"},
           fmt::format("found {}, {} is {}; a stage goes on with the optimizer's states as they are; "
                       "allowed: {}",
                       show(here), field.pointer, show(first), show(first))});
  }
}

void check_stages(const RunConfig& c, Problems& out) {
  const std::string section = "/precision";
  const auto moved = [&](const std::string& pointer, const std::string& at) {
    const bool inside = pointer == section || pointer.starts_with(section + "/");
    return inside ? at + pointer.substr(section.size()) : pointer;
  };
  int64_t before = 0;
  for (size_t i = 0; i < c.precision_schedule.size(); ++i) {
    const PrecisionStage& stage = c.precision_schedule[i];
    const std::string here = fmt::format("/precision_schedule/{}", i), at = here + section;
    if (stage.from <= before || stage.from >= c.run.steps)
      out.push_back({here + "/from",
                     {"/run/steps"},
                     fmt::format("found {}; allowed: above {}, where the stage before begins, and below "
                                 "/run/steps = {}",
                                 stage.from, before, c.run.steps)});
    before = stage.from;
    RunConfig staged = c;
    staged.precision = stage.precision;
    check_states_of_stage(c, staged, at, out);
    Problems found;
    check_recipe(staged, found);
    for (RuleProblem& problem : found) {
      for (std::string& pointer : problem.involved) pointer = moved(pointer, at);
      const std::string pointer = moved(problem.pointer, at);
      const auto known = [&](const RuleProblem& other) {
        return other.pointer == problem.pointer && other.message == problem.message;
      };
      if (pointer == problem.pointer && std::any_of(out.begin(), out.end(), known)) continue;
      if (pointer == problem.pointer) problem.message += fmt::format(" (in the stage {})", here);
      problem.involved.push_back(at);
      out.push_back({pointer, problem.involved, problem.message});
    }
  }
}

void check_fallback(const RunConfig& c, Problems& out) {
  const FallbackOptions& limits = c.fallback;
  if (!limits.on()) return;
  const char* here = "/precision/fallback";
  if (limits.reads_statistics() && c.health.every == 0)
    out.push_back({here,
                   {"/health/every"},
                   "found limits that are judged in steps with statistics, and /health/every 0 has none; "
                   "allowed: /health/every above 0"});
  if (limits.kurtosis > 0 && !c.health.activations)
    out.push_back(
        {"/precision/fallback/kurtosis",
         {"/health/activations"},
         fmt::format("found {:g} with /health/activations false, which measures none; allowed: true",
                     limits.kurtosis)});
  if (c.parallel.sync_every > 1)
    out.push_back(
        {here,
         {"/parallel/sync_every"},
         fmt::format("found limits with /parallel/sync_every {}: ranks that train alone see numbers of "
                     "their own, and would fall back each for itself; allowed: /parallel/sync_every 1",
                     c.parallel.sync_every)});
  const auto float8 = [](const PrecisionStage& stage) { return stage.precision.float8(); };
  if (!c.precision.float8() && std::none_of(c.precision_schedule.begin(), c.precision_schedule.end(), float8))
    out.push_back({here,
                   {"/precision", "/precision_schedule"},
                   "found limits, and no linear runs in FP8 that could fall back; allowed: an FP8 recipe, or "
                   "no limits"});
}

}  // namespace

std::vector<RuleProblem> check_rules(const RunConfig& c) {
  Problems out;
  check_parallel(c, out);
  check_sync(c, out);
  check_muon(c, out);
  check_run(c, out);
  check_data(c, out);
  check_batch(c, out);
  check_recipe(c, out);
  check_stages(c, out);
  check_fallback(c, out);
  check_schedule(c, out);
  return out;
}

}  // namespace octet
