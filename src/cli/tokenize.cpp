// octet tokenize: text files and folders to llm.c shards with the byte tokenizer.
#include "data/tokenize.h"

#include <fmt/format.h>

#include <memory>

#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/progress_bar.h"

namespace octet {
namespace {

int run(TokenizeOptions options) {
  const double begun = monotonic_seconds();
  TokenizeResult result;
  {
    ProgressBar bar("tokenizing");
    options.progress = [&bar](uint64_t done, uint64_t all) { bar.update(done, all); };
    result = tokenize(options);
  }
  const auto print = [](const char* name, const TokenizeResult::Split& split) {
    if (split.files.empty()) return;
    fmt::print("{:<11} {:>8} tokens  {:>17}  {}  {}\n", name, human_count(static_cast<double>(split.tokens)),
               plural(split.documents, "document"), plural(static_cast<int64_t>(split.files.size()), "shard"),
               escape_control((split.files[0].parent_path() / (std::string(name) + "_*.bin")).string()));
  };
  print("train", result.train);
  print("validation", result.validation);
  if (options.validation > 0) {
    fmt::print("held out    {:.1f} % of the bytes; asked for {:.1f} %\n", 100 * result.validation_share,
               100 * options.validation);
    // Twice what was asked for, or half of either part.
    const double asked = options.validation, held = result.validation_share;
    if (held > 2 * asked || held < asked / 2 || 1 - held < (1 - asked) / 2)
      log_warning(
          "validation holds {:.1f} % of the bytes, not {:.1f} %: whole documents are held out, and these "
          "are too few or too uneven",
          100 * held, 100 * asked);
  }
  if (result.skipped_empty + result.skipped_binary + result.skipped_other > 0)
    fmt::print(
        "passed over {}, {} (with NUL bytes) and {} (hidden, links or devices)\n",
        plural(result.skipped_empty, "empty file"), plural(result.skipped_binary, "binary file"),
        result.skipped_other == 1 ? "1 other entry" : fmt::format("{} other entries", result.skipped_other));
  fmt::print("byte tokenizer: set model.vocabulary to 257. Done in {}.\n",
             human_duration(monotonic_seconds() - begun));
  return 0;
}

}  // namespace

void add_tokenize(CLI::App& app, Action& action) {
  const auto options = std::make_shared<TokenizeOptions>();
  const auto overwrite = std::make_shared<bool>(false);
  CLI::App* command =
      app.add_subcommand("tokenize", "Text files or folders to token shards (bytes + end of text)");
  command->add_option("input", options->inputs, "text files or folders; folders are searched recursively")
      ->required();
  command->add_option("--output", options->output, "folder for train_000000.bin, validation_000000.bin, ...")
      ->required();
  command
      ->add_option("--validation", options->validation,
                   "fraction of the bytes held out: whole documents, or the tail of a single one")
      ->capture_default_str();
  command->add_option("--shard-tokens", options->shard_tokens, "tokens a shard at most")
      ->capture_default_str();
  command->add_flag("--overwrite", *overwrite, "replace the shards that the output folder holds");
  command->footer(
      "Every byte becomes an id from 0 to 255; 256 goes before each document (a file). Hidden entries of "
      "folders, empty\n"
      "files and binary ones (a NUL byte near the beginning) are passed over. The same input gives the same "
      "shards.\n\n"
      "Example:\n  octet tokenize /usr/include/c++ --output data/cpp --validation 0.05");
  command->callback([options, overwrite, &action] {
    options->existing = *overwrite ? ExistingShards::Replace : ExistingShards::Refuse;
    action = [options] { return run(*options); };
  });
}

}  // namespace octet
