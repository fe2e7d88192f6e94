#include "data/tokenize.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>

#include "base/files.h"
#include "base/permutation.h"
#include "base/random.h"
#include "base/text.h"
#include "data/byte_tokenizer.h"
#include "data/shard_writer.h"

namespace octet {
namespace fs = std::filesystem;
namespace {

constexpr const char* work_folder = ".octet-tokenize";
constexpr const char* prefixes[] = {"train", "validation"};

struct Document {
  std::string path;
  uint64_t offset = 0, bytes = 0;
  bool validation = false;
};

struct Corpus {
  std::vector<Document> documents;
  int64_t empty = 0, binary = 0, other = 0;
  std::vector<std::string> problems;
};

bool is_binary(const fs::path& path, uint64_t bytes) {
  std::array<char, 8192> head;
  const size_t size = std::min<uint64_t>(bytes, head.size());
  FileReader(path, ExitCode::Data).read(0, head.data(), size);
  return std::find(head.begin(), head.begin() + static_cast<int64_t>(size), '\0') !=
         head.begin() + static_cast<int64_t>(size);
}

void add_file(Corpus& corpus, const fs::path& path) {
  std::error_code failure;
  const uint64_t bytes = fs::file_size(path, failure);
  if (failure || ::access(path.c_str(), R_OK) != 0)
    corpus.problems.push_back(fmt::format("{}: cannot be read", escape_control(path.string())));
  else if (bytes == 0)
    ++corpus.empty;
  else if (is_binary(path, bytes))
    ++corpus.binary;
  else
    corpus.documents.push_back({path.string(), 0, bytes});
}

void add_folder(Corpus& corpus, const fs::path& folder) {
  std::error_code failure;
  std::vector<fs::path> entries;
  for (fs::directory_iterator entry(folder, failure), end; !failure && entry != end; entry.increment(failure))
    entries.push_back(entry->path());
  if (failure) {
    corpus.problems.push_back(fmt::format("{}: {}", escape_control(folder.string()), failure.message()));
    return;
  }
  std::sort(entries.begin(), entries.end(),
            [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  for (const fs::path& entry : entries) {
    const auto status = fs::symlink_status(entry, failure);
    if (entry.filename().native().starts_with('.'))
      ++corpus.other;
    else if (fs::is_directory(status))
      add_folder(corpus, entry);
    else if (fs::is_regular_file(status))
      add_file(corpus, entry);
    else
      ++corpus.other;
  }
}

Corpus find_documents(const std::vector<std::string>& inputs) {
  Corpus corpus;
  for (const std::string& input : inputs) {
    std::error_code failure;
    const auto status = fs::status(input, failure);
    if (fs::is_directory(status))
      add_folder(corpus, input);
    else if (fs::is_regular_file(status))
      add_file(corpus, input);
    else
      corpus.problems.push_back(fmt::format("{}: no such file or folder", escape_control(input)));
  }
  if (corpus.problems.size() == 1)
    throw Error(ExitCode::Data, corpus.problems[0], "name text files or folders that can be read");
  if (!corpus.problems.empty()) {
    std::string all = fmt::format("{} inputs cannot be read", corpus.problems.size());
    for (const std::string& problem : corpus.problems) all += "\n  " + problem;
    throw Error(ExitCode::Data, all, "name text files or folders that can be read");
  }
  if (corpus.documents.empty())
    throw Error(ExitCode::Data,
                fmt::format("no text in {}: {}, {} (with NUL bytes)", fmt::join(inputs, ", "),
                            plural(corpus.empty, "empty file"), plural(corpus.binary, "binary file")),
                "name text files or folders that hold some");
  return corpus;
}

// The only document becomes two: its tail, from the line end nearest before the cut on, is for validation.
void cut_document(std::vector<Document>& documents, double fraction) {
  Document& whole = documents[0];
  if (whole.bytes < 2)
    throw Error(ExitCode::Usage,
                fmt::format("{}: one byte of text leaves nothing to validate on", whole.path),
                "bring more text, or leave out --validation");
  const uint64_t tail = std::clamp<uint64_t>(
      static_cast<uint64_t>(static_cast<double>(whole.bytes) * fraction), 1, whole.bytes - 1);
  uint64_t cut = whole.bytes - tail;
  std::string before(std::min<uint64_t>(cut, 65536), '\0');  // lines longer than this are cut anywhere
  FileReader(whole.path, ExitCode::Data).read(cut - before.size(), before.data(), before.size());
  if (const size_t line_end = before.rfind('\n'); line_end != std::string::npos)
    cut -= before.size() - line_end - 1;
  Document rest{whole.path, cut, whole.bytes - cut, true};
  whole.bytes = cut;
  documents.push_back(rest);
}

void choose_validation(std::vector<Document>& documents, double fraction) {
  if (fraction <= 0) return;
  if (documents.size() == 1) return cut_document(documents, fraction);
  uint64_t all = 0, chosen_bytes = 0;
  for (const Document& document : documents) all += document.bytes;
  const double wanted = static_cast<double>(all) * fraction;
  const uint64_t key = random_key(0, Purpose::DataOrder, documents.size());
  size_t chosen = 0;
  for (uint64_t i = 0; i < documents.size() && chosen + 1 < documents.size(); ++i) {
    Document& document = documents[permute(key, documents.size(), i)];
    // Taken when that brings the sum nearer to what is wanted.
    if (static_cast<double>(chosen_bytes) + static_cast<double>(document.bytes) / 2 > wanted) continue;
    document.validation = true;
    chosen_bytes += document.bytes;
    ++chosen;
  }
  if (chosen == 0)
    std::min_element(documents.begin(), documents.end(), [](const Document& a, const Document& b) {
      return a.bytes < b.bytes;
    })->validation = true;
}

// Beside what a call that died may have left.
bool holds_anything(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename() != work_folder) return true;
  return false;
}

std::vector<fs::path> former_shards(const fs::path& folder) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    for (const std::string prefix : prefixes)
      if (name.size() == prefix.size() + 11 && name.starts_with(prefix + "_") && name.ends_with(".bin") &&
          std::all_of(name.begin() + static_cast<int64_t>(prefix.size()) + 1, name.end() - 4,
                      [](char c) { return c >= '0' && c <= '9'; }))
        found.push_back(entry.path());
  }
  return found;
}

// What a call that was killed left: whole shards, and the one it was at.
void remove_leftovers(const fs::path& work) {
  std::vector<fs::path> leftovers = former_shards(work);
  for (const auto& entry : fs::directory_iterator(work))
    if (entry.path().extension() == ShardWriter::partial_extension) leftovers.push_back(entry.path());
  for (const fs::path& leftover : leftovers) fs::remove(leftover);
}

void write_document(ShardWriter& writer, const Document& document,
                    const std::function<void(uint64_t)>& progress) {
  const int32_t end_of_text[] = {byte_tokenizer::end_of_text};
  writer.write(end_of_text);
  const FileReader file(document.path, ExitCode::Data);
  std::array<unsigned char, 65536> bytes;
  std::array<int32_t, 65536> ids;
  for (uint64_t done = 0; done < document.bytes;) {
    const size_t here = std::min<uint64_t>(bytes.size(), document.bytes - done);
    file.read(document.offset + done, bytes.data(), here);
    std::copy_n(bytes.begin(), here, ids.begin());
    writer.write(std::span(ids).first(here));
    done += here;
    progress(here);
  }
}

// The search passes over hidden folders, so those may hold the output.
void require_output_outside(const TokenizeOptions& options) {
  const fs::path output = fs::weakly_canonical(fs::absolute(options.output));
  for (const std::string& input : options.inputs) {
    std::error_code failure;
    if (!fs::is_directory(input, failure)) continue;
    const fs::path inside = output.lexically_relative(fs::canonical(input));
    if (std::any_of(inside.begin(), inside.end(),
                    [](const fs::path& part) { return part != "." && part.native().starts_with('.'); }))
      continue;
    throw Error(ExitCode::Usage,
                fmt::format("the output folder {} lies in the input folder {}",
                            escape_control(options.output.string()), escape_control(input)),
                "its shards would be taken for text: name a folder beside the input");
  }
}

void check_options(const TokenizeOptions& options) {
  if (!(options.validation >= 0 && options.validation < 1))
    throw Error(ExitCode::Usage, fmt::format("validation fraction {}", options.validation),
                "use a number from 0 to below 1");
  if (options.shard_tokens < 1 || options.shard_tokens > INT32_MAX)
    throw Error(ExitCode::Usage, fmt::format("shards of {} tokens", options.shard_tokens),
                "use 1 to 2147483647");
  if (options.inputs.empty()) throw Error(ExitCode::Usage, "no input", "name text files or folders");
  if (options.output.empty()) throw Error(ExitCode::Usage, "no output folder", "name one with --output");
  std::error_code failure;
  if (fs::exists(options.output, failure) && !fs::is_directory(options.output, failure))
    throw Error(ExitCode::Usage, fmt::format("{}: not a folder", options.output.string()),
                "name a folder for the shards");
  require_output_outside(options);
}

}  // namespace

TokenizeResult tokenize(const TokenizeOptions& options) {
  check_options(options);
  Corpus corpus = find_documents(options.inputs);
  choose_validation(corpus.documents, options.validation);

  TokenizeResult result;
  result.skipped_empty = corpus.empty;
  result.skipped_binary = corpus.binary;
  result.skipped_other = corpus.other;
  TokenizeResult::Split* const splits[] = {&result.train, &result.validation};
  uint64_t all_bytes = 0, done_bytes = 0, validation_bytes = 0;
  for (const Document& document : corpus.documents) {
    TokenizeResult::Split& split = *splits[document.validation];
    ++split.documents;
    split.tokens += 1 + static_cast<int64_t>(document.bytes);
    all_bytes += document.bytes;
    if (document.validation) validation_bytes += document.bytes;
  }
  result.validation_share = static_cast<double>(validation_bytes) / static_cast<double>(all_bytes);
  const fs::path work = options.output / work_folder;
  std::error_code failure;
  fs::create_directories(work, failure);
  if (failure)
    throw Error(ExitCode::Data,
                fmt::format("{}: cannot be made: {}", options.output.string(), failure.message()),
                "name a folder that can be written");
  std::optional<FolderLock> lock(std::in_place, work, ExitCode::Usage);
  remove_leftovers(work);
  // Under the lock: another call in the same folder is done with it, or has not begun.
  if (options.existing == ExistingShards::Refuse && holds_anything(options.output)) {
    lock.reset();
    fs::remove(work, failure);
    throw Error(ExitCode::Usage, fmt::format("{}: the output folder is not empty", options.output.string()),
                "name another folder, or replace its shards with --overwrite");
  }
  // 2 bytes a token, and room for headers.
  if (const uint64_t needed = 2 * (all_bytes + corpus.documents.size()) + (1u << 20), free = free_bytes(work);
      free < needed)
    throw Error(ExitCode::Data,
                fmt::format("{}: {} free, the shards take {}", options.output.string(), human_bytes(free),
                            human_bytes(needed)),
                "free some space, or name a folder on another disk");

  for (int part = 0; part < 2; ++part) {
    if (splits[part]->documents == 0) continue;
    ShardWriter writer({.folder = work,
                        .prefix = prefixes[part],
                        .vocabulary = byte_tokenizer::vocabulary,
                        .shard_tokens = options.shard_tokens,
                        .total_tokens = splits[part]->tokens});
    for (const Document& document : corpus.documents)
      if (document.validation == (part == 1))
        write_document(writer, document, [&](uint64_t bytes) {
          done_bytes += bytes;
          if (options.progress) options.progress(done_bytes, all_bytes);
        });
    writer.close();
    splits[part]->files = writer.files();
  }
  // Former shards go before the new ones come: a stop in between leaves too few shards, never a mixture.
  if (options.existing == ExistingShards::Replace)
    for (const fs::path& former : former_shards(options.output)) remove_durably(former, ExitCode::Data);
  for (TokenizeResult::Split* split : splits)
    for (fs::path& file : split->files) {
      const fs::path final_path = options.output / file.filename();
      rename_durably(file, final_path, ExitCode::Data);
      file = final_path;
    }
  lock.reset();
  fs::remove(work, failure);  // unless another call has begun in it
  return result;
}

}  // namespace octet
