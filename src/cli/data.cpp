// octet data: what shards are (info), whether they are whole (check), what they say (head).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/progress_bar.h"
#include "data/byte_tokenizer.h"
#include "data/scan.h"
#include "data/shard_reader.h"

namespace octet {
namespace {

struct DataCommand {
  std::vector<std::string> patterns;
  std::string raw_width;
  int64_t vocabulary = 0, end_of_text = -1, tokens = 256;
  bool ids = false;
};

constexpr int64_t sample_tokens = 1 << 20;  // what info reads of a shard

// Failures go to standard error as they come; the command goes on with the next file.
struct Failures {
  int64_t count = 0;
  void report(const Error& error) {
    ++count;
    complain({error.code(), escape_control(error.what()), error.hint()});
  }
  int exit_code() const { return static_cast<int>(count ? ExitCode::Data : ExitCode::Success); }
};

// The shards behind the patterns; a Megatron pair named by both halves counts once.
std::vector<ShardInfo> open_all(const DataCommand& command, Failures& failures) {
  std::vector<ShardInfo> shards;
  for (const std::string& pattern : command.patterns) {
    const std::vector<std::string> files = expand_glob(pattern);
    if (files.empty())
      failures.report(Error(ExitCode::Data, fmt::format("{}: no file matches", pattern), "check the path"));
    for (const std::string& file : files) try {
        ShardInfo info = inspect_shard(file, command.raw_width);
        const bool known = std::any_of(shards.begin(), shards.end(),
                                       [&](const ShardInfo& s) { return s.path == info.path; });
        if (!known) shards.push_back(std::move(info));
      } catch (const Error& error) {
        if (error.code() != ExitCode::Data) throw;
        failures.report(error);
      }
  }
  return shards;
}

int64_t end_of_text_of(const DataCommand& command, const ShardInfo& info) {
  if (command.end_of_text >= 0) return command.end_of_text;
  return likely_end_of_text(info, scan_shard(info, {.limit = sample_tokens}).largest);
}

int info(const DataCommand& command) {
  Failures failures;
  const std::vector<ShardInfo> shards = open_all(command, failures);
  int64_t tokens = 0;
  uint64_t bytes = 0;
  for (const ShardInfo& shard : shards) try {
      const ScanResult sample =
          scan_shard(shard, {.limit = sample_tokens, .end_of_text = end_of_text_of(command, shard)});
      const bool whole = sample.tokens == shard.tokens;
      const double scale =
          sample.tokens ? static_cast<double>(shard.tokens) / static_cast<double>(sample.tokens) : 0;
      const std::string documents =
          shard.documents >= 0 ? fmt::format("{}", shard.documents)
          : whole              ? fmt::format("{}", sample.documents)
                  : "about " + human_count(std::round(static_cast<double>(sample.documents) * scale));
      fmt::print("{}\n  format     {}\n  tokens     {} ({})\n  documents  {}\n", escape_control(shard.path),
                 name_of(shard.format), shard.tokens, human_bytes(shard.file_bytes), documents);
      if (sample.tokens > 0)
        fmt::print("  ids        {} to {}{}\n", sample.smallest, sample.largest,
                   whole ? "" : fmt::format(" (first {} tokens)", sample.tokens));
      if (shard.declared_vocabulary > 0)
        fmt::print("  vocabulary {} (declared)\n", shard.declared_vocabulary);
      tokens += shard.tokens;
      bytes += shard.file_bytes;
    } catch (const Error& error) {
      failures.report(error);
    }
  if (shards.size() > 1)
    fmt::print("{} shards, {} tokens ({}), {}\n", shards.size(), tokens,
               human_count(static_cast<double>(tokens)), human_bytes(bytes));
  return failures.exit_code();
}

int check(const DataCommand& command) {
  Failures failures;
  const std::vector<ShardInfo> shards = open_all(command, failures);
  uint64_t all = 0, before = 0;
  for (const ShardInfo& shard : shards) all += static_cast<uint64_t>(shard.tokens);
  for (const ShardInfo& shard : shards) try {
      ScanResult result;
      {
        ProgressBar bar("checking");
        const int64_t vocabulary = command.vocabulary > 0 ? command.vocabulary : shard.declared_vocabulary;
        result = scan_shard(shard, {.vocabulary = vocabulary,
                                    .end_of_text = end_of_text_of(command, shard),
                                    .progress = [&](int64_t done) {
                                      bar.update(before + static_cast<uint64_t>(done), all);
                                    }});
      }
      before += static_cast<uint64_t>(shard.tokens);
      fmt::print("{}  {}  {}, {}, ids {} to {}, hash {}  {}\n", result.problem ? "BAD" : "ok ",
                 escape_control(shard.path), plural(result.tokens, "token"),
                 plural(shard.documents >= 0 ? shard.documents : result.documents, "document"),
                 result.smallest, result.largest, hex(result.hash), name_of(shard.format));
      if (result.problem) {
        failures.report(*result.problem);
        if (result.out_of_range > 1)
          std::fputs(
              fmt::format("       and {} out of range\n", plural(result.out_of_range - 1, "more id")).c_str(),
              stderr);
      }
    } catch (const Error& error) {
      failures.report(error);
    }
  return failures.exit_code();
}

// Text for a terminal: lines stay lines, tabs stay tabs, other control bytes are escaped.
std::string printable(const std::string& text) {
  std::string out;
  for (size_t from = 0; from < text.size();) {
    const size_t stop = std::min(text.find_first_of("\n\t", from), text.size());
    out += escape_control(std::string_view(text).substr(from, stop - from));
    if (stop < text.size()) out += text[stop];
    from = stop + 1;
  }
  return out;
}

int head(const DataCommand& command) {
  Failures failures;
  const std::vector<ShardInfo> shards = open_all(command, failures);
  for (const ShardInfo& shard : shards) try {
      std::vector<int64_t> ids(static_cast<size_t>(std::clamp<int64_t>(command.tokens, 0, shard.tokens)));
      ShardReader(shard).read(0, ids);
      const bool bytes = std::all_of(ids.begin(), ids.end(),
                                     [](int64_t id) { return id >= 0 && id <= byte_tokenizer::end_of_text; });
      if (shards.size() > 1) fmt::print("==> {} <==\n", escape_control(shard.path));
      fmt::print("{}\n", bytes && !command.ids ? printable(byte_tokenizer::decode(ids))
                                               : fmt::format("{}", fmt::join(ids, " ")));
    } catch (const Error& error) {
      failures.report(error);
    }
  return failures.exit_code();
}

}  // namespace

void add_data(CLI::App& app, Action& action) {
  const auto options = std::make_shared<DataCommand>();
  CLI::App* data = app.add_subcommand("data", "Looks into token shards");
  data->require_subcommand(1);
  data->footer("Example:\n  octet data info 'data/quickstart/*.bin'");
  const auto add = [&](const std::string& name, const std::string& what, const std::string& example,
                       int (*run)(const DataCommand&)) {
    CLI::App* command = data->add_subcommand(name, what);
    command->add_option("files", options->patterns, "shards, or patterns such as 'data/*.bin'")->required();
    command->add_option("--raw-width", options->raw_width, "how files without a header are read")
        ->check(CLI::IsMember({"uint16", "uint32"}));
    command->footer("Example:\n  " + example);
    command->callback([options, run, &action] { action = [options, run] { return run(*options); }; });
    return command;
  };
  const std::string documents =
      "id that begins a document; by default 256 (bytes), 50256 or 128000, by format and ids";
  CLI::App* info_command = add("info", "Format, tokens, documents, range of ids (from the beginning)",
                               "octet data info 'data/quickstart/*.bin'", info);
  info_command->add_option("--end-of-text", options->end_of_text, documents);
  CLI::App* check_command =
      add("check", "Reads everything: sizes, ids against the vocabulary, checksum; exit code 3 on a fault",
          "octet data check --vocabulary 257 'data/quickstart/*.bin'", check);
  check_command->add_option("--vocabulary", options->vocabulary, "ids allowed: 0 to VOCABULARY - 1")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  check_command->add_option("--end-of-text", options->end_of_text, documents);
  CLI::App* head_command = add("head", "The first tokens: text where the ids are bytes, numbers otherwise",
                               "octet data head --tokens 500 data/quickstart/train_000000.bin", head);
  head_command->add_option("--tokens", options->tokens, "tokens shown")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  head_command->add_flag("--ids", options->ids, "numbers, never text");
}

}  // namespace octet
