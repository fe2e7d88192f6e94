#include "device/cuda/matmul_plan_cache.h"

#include <fmt/format.h>

#include <cctype>
#include <cstdlib>
#include <sstream>
#include <utility>

#include "base/files.h"
#include "base/hash.h"
#include "base/log.h"

namespace octet {

// The file: a title, the machine, a line "key<tab>eight numbers in hex" for each choice, and the hash of all
// that.
namespace {

const std::string title = "octet matmul plans 1\n";

std::string hash_line(const std::string& body) { return hex(hash64(body.data(), body.size())) + "\n"; }

bool parse(const std::string& text, MatmulChoice& choice) {
  std::istringstream numbers(text);
  numbers >> std::hex;
  for (uint64_t& number : choice)
    if (!(numbers >> number)) return false;
  std::string more;
  return !(numbers >> more);
}

}  // namespace

std::filesystem::path matmul_plan_file(const std::string& machine) {
  std::string name;
  for (const char c : machine) {
    if (std::isalnum(static_cast<unsigned char>(c)) || c == '.')
      name += c;
    else if (!name.empty() && name.back() != '-')
      name += '-';
  }
  const char* cache = std::getenv("XDG_CACHE_HOME");
  std::filesystem::path folder = cache ? cache : "";
  if (!folder.is_absolute()) {  // as the specification wants it
    const char* home = std::getenv("HOME");
    if (home == nullptr || *home == '\0') return {};
    folder = std::filesystem::path(home) / ".cache";
  }
  return folder / "octet" / ("matmul-plans-" + name + ".txt");
}

MatmulPlanCache::MatmulPlanCache(std::filesystem::path file, std::string machine)
    : file_(std::move(file)), machine_(std::move(machine)) {
  std::error_code ignored;
  if (file_.empty() || !std::filesystem::exists(file_, ignored)) return;
  try {
    if (read(read_text(file_, ExitCode::Hardware))) return;
    log_warning("{} is damaged or of another machine: products are measured again", file_.string());
  } catch (const Error& error) {
    log_warning("{}: products are measured again", error.what());
  }
  choices_.clear();
}

bool MatmulPlanCache::read(const std::string& text) {
  const std::string head = title + machine_ + "\n";
  const size_t hash_length = hash_line("").size();
  if (text.size() < head.size() + hash_length || text.compare(0, head.size(), head) != 0) return false;
  const std::string body = text.substr(0, text.size() - hash_length);
  if (text.substr(body.size()) != hash_line(body)) return false;
  std::istringstream lines(body.substr(head.size()));
  for (std::string line; std::getline(lines, line);) {
    const size_t tab = line.find('\t');
    MatmulChoice choice{};
    if (tab == std::string::npos || !parse(line.substr(tab + 1), choice)) return false;
    choices_[line.substr(0, tab)] = choice;
  }
  return true;
}

const MatmulChoice* MatmulPlanCache::find(const std::string& key) const {
  const auto found = choices_.find(key);
  return found == choices_.end() ? nullptr : &found->second;
}

void MatmulPlanCache::save() const {
  if (file_.empty()) return;
  std::string body = title + machine_ + "\n";
  for (const auto& [key, choice] : choices_) {
    body += key + "\t";
    for (size_t i = 0; i < choice.size(); ++i) body += fmt::format("{}{:x}", i ? " " : "", choice[i]);
    body += "\n";
  }
  try {
    std::filesystem::create_directories(file_.parent_path());
    write_atomically(file_, body + hash_line(body), ExitCode::Hardware);
  } catch (const std::exception& error) {
    log_warning("the choice of products' algorithms is not kept: {}", error.what());
  }
}

}  // namespace octet
