#include "config/checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/text.h"

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

void check_precision(const RunConfig& c, Problems& out) {
  const Recipe& r = c.precision;
  const std::pair<const char*, const Cast*> roles[] = {
      {"input", &r.input}, {"weight", &r.weight}, {"grad", &r.grad}};
  const auto pointer = [](const char* role) { return fmt::format("/precision/{}/format", role); };
  const std::vector<std::string> section = {"/precision"};
  for (const auto& [role, cast] : roles) {
    if (cast->format == Format::FP32 && r.storage != Format::FP32) {
      out.push_back({pointer(role), section,
                     "found \"fp32\" with /precision/storage \"bf16\"; an fp32 operand needs "
                     "fp32 storage (recipe \"fp32\")"});
    }
    if (cast->format == Format::BF16 && r.storage == Format::FP32) {
      out.push_back({pointer(role), section,
                     "found \"bf16\" with /precision/storage \"fp32\"; an operand that is not "
                     "FP8 has the format of the storage"});
    }
    const bool stochastic = is_float8(cast->format) && cast->rounding == Rounding::Stochastic;
    if (stochastic && cast != &r.grad) {
      out.push_back({fmt::format("/precision/{}/rounding", role), section,
                     "found \"stochastic\"; only grad may be rounded stochastically"});
    }
  }
  if (is_float8(r.input.format) != is_float8(r.weight.format)) {
    out.push_back(
        {pointer(is_float8(r.input.format) ? "weight" : "input"), section,
         "one of input and weight is FP8 and the other is not; their product needs both or neither"});
  } else if (is_float8(r.grad.format) && !r.float8()) {
    out.push_back({pointer("grad"), section,
                   "grad is FP8 while input and weight are not; every product needs both operands in FP8"});
  }
  // FP8 GEMMs multiply E4M3 by E4M3 or by E5M2, never E5M2 by E5M2.
  const auto both_e5m2 = [](const Cast& a, const Cast& b) {
    return a.format == Format::E5M2 && b.format == Format::E5M2;
  };
  if (both_e5m2(r.input, r.weight) || both_e5m2(r.grad, r.weight) || both_e5m2(r.grad, r.input)) {
    const char* role = both_e5m2(r.input, r.weight) || both_e5m2(r.grad, r.weight) ? "weight" : "input";
    out.push_back({pointer(role), section,
                   "found \"e5m2\" for two operands that are multiplied; a GEMM takes at most "
                   "one E5M2 operand"});
  }
  const bool no_float8 = std::none_of(std::begin(roles), std::end(roles),
                                      [](const auto& role) { return is_float8(role.second->format); });
  if (r.name == "fp8" && no_float8) {
    out.push_back({"/precision/recipe", section,
                   "the recipe is called \"fp8\" but the fields beside it leave no FP8 "
                   "operand; call it \"bf16\""});
  }
  if (r.name != "fp8" && (r.float8() || is_float8(r.grad.format))) {
    out.push_back({"/precision/recipe", section,
                   fmt::format("the recipe is called \"{}\" but its operands are FP8; call it \"fp8\"",
                               escape_control(r.name))});
  }
  if (r.attention == AttentionFormat::FP8 && !r.float8()) {
    out.push_back({"/precision/attention", section,
                   "found \"fp8\" while the linear layers around attention are not FP8; allowed: "
                   "\"storage\", or an FP8 recipe"});
  }
  if (r.float8() && r.first_blocks_bf16 + r.last_blocks_bf16 == c.model.layers) {
    out.push_back(
        {"/precision/recipe",
         {"/precision", "/model/layers", "/model/preset"},
         fmt::format("first {} and last {} blocks in BF16 leave none of the {} in FP8; use the recipe "
                     "\"bf16\"",
                     r.first_blocks_bf16, r.last_blocks_bf16, c.model.layers)});
  }
  if (r.first_blocks_bf16 + r.last_blocks_bf16 > c.model.layers) {
    out.push_back({"/precision/first_blocks_bf16",
                   {"/precision/last_blocks_bf16", "/model/layers", "/model/preset"},
                   fmt::format("first {} and last {} blocks in BF16 are more than the {} blocks there are",
                               r.first_blocks_bf16, r.last_blocks_bf16, c.model.layers)});
  }
}

void check_memory(const RunConfig& c, Problems& out) {
  if (c.memory.offload == Offload::None) return;
  const std::string problem = offload_problem(c.precision);
  if (!problem.empty()) out.push_back({"/memory/offload", {"/precision"}, "found \"optimizer\"; " + problem});
}

void check_schedule(const RunConfig& c, Problems& out) {
  if (c.schedule.warmup_steps > 0 && c.schedule.warmup_steps >= c.run.steps) {
    out.push_back(
        {"/schedule/warmup_steps",
         {"/run/steps"},
         fmt::format("found {}; allowed: less than /run/steps = {}", c.schedule.warmup_steps, c.run.steps)});
  }
}

}  // namespace

std::vector<RuleProblem> check_rules(const RunConfig& c) {
  Problems out;
  check_parallel(c, out);
  check_run(c, out);
  check_data(c, out);
  check_batch(c, out);
  check_micro_alignment(c, out);
  check_precision(c, out);
  check_memory(c, out);
  check_schedule(c, out);
  for (const SpecProblem& problem : check(c.model, c.precision.float8())) {
    std::string key = problem.key;
    std::replace(key.begin(), key.end(), '.', '/');
    out.push_back({"/model/" + key, {"/model", "/precision"}, problem.message});
  }
  return out;
}

}  // namespace octet
