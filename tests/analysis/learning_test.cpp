// Learning is real: the quickstart model, trained as the quickstart trains it, predicts unseen text better
// than a trigram model of the same training text.
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "analysis/run_history.h"
#include "base/files.h"
#include "catch.h"
#include "cli/command_run.h"

using namespace octet;

namespace {

std::vector<uint16_t> tokens_of(const std::filesystem::path& shard) {
  const FileReader file(shard, ExitCode::Data);
  std::vector<uint16_t> tokens((file.size() - 1024) / 2);
  file.read(1024, tokens.data(), tokens.size() * 2);
  return tokens;
}

// Bits a token of `text` under a trigram model of `training`: each order falls back on the one below with the
// weight of 5 observations (Dirichlet smoothing), the unigram on one observation of every token.
double trigram_bits(const std::vector<uint16_t>& training, const std::vector<uint16_t>& text) {
  constexpr uint64_t vocabulary = 257;
  constexpr double fallback = 5;
  std::unordered_map<uint64_t, double> three, two_context, two, one_context;
  std::vector<double> one(vocabulary, 1.0);
  for (size_t i = 0; i < training.size(); ++i) {
    const uint64_t c = training[i];
    one[c] += 1;
    if (i < 1) continue;
    const uint64_t bc = training[i - 1] * vocabulary + c;
    two[bc] += 1;
    one_context[training[i - 1]] += 1;
    if (i < 2) continue;
    three[training[i - 2] * vocabulary * vocabulary + bc] += 1;
    two_context[training[i - 2] * vocabulary + training[i - 1]] += 1;
  }
  const auto count = [](const auto& map, uint64_t key) {
    const auto it = map.find(key);
    return it == map.end() ? 0.0 : it->second;
  };
  double bits = 0;
  for (size_t i = 2; i < text.size(); ++i) {
    const uint64_t a = text[i - 2], b = text[i - 1], c = text[i];
    const double p1 = one[c] / static_cast<double>(training.size() + vocabulary);
    const double p2 = (count(two, b * vocabulary + c) + fallback * p1) / (count(one_context, b) + fallback);
    const double p3 = (count(three, (a * vocabulary + b) * vocabulary + c) + fallback * p2) /
                      (count(two_context, a * vocabulary + b) + fallback);
    bits -= std::log2(p3);
  }
  return bits / static_cast<double>(text.size() - 2);
}

}  // namespace

TEST_CASE("the quickstart model in FP8 learns more than a trigram model of the same text (slow)") {
  const TemporaryFolder folder;
  REQUIRE(run_octet("tokenize /usr/include/c++ --output data --validation 0.05", folder.path()).code == 0);
  const double trigram = trigram_bits(tokens_of(folder.path() / "data/train_000000.bin"),
                                      tokens_of(folder.path() / "data/validation_000000.bin"));
  const CommandRun run = run_octet(
      "train '" OCTET_SOURCE_DIR
      "/configs/quickstart.json' --quiet --set run.output=run --set run.steps=800"
      " --set 'data.train=[\"data/train_*.bin\"]' --set 'data.validation=[\"data/validation_*.bin\"]'",
      folder.path());
  INFO(run.output);
  REQUIRE(run.code == 0);
  const RunHistory log = read_run_history(folder.path() / "run");
  REQUIRE(log.validations.size() >= 2);
  const double first = log.validations.front().loss / std::log(2.0),
               last = log.validations.back().loss / std::log(2.0);
  INFO("trigram " << trigram << " bits a byte, model " << first << " at step " << log.validations.front().step
                  << ", " << last << " at the end");
  CHECK(last < trigram);
  CHECK(first > trigram);  // negative control: hardly trained, it must lose
  CHECK(log.steps.back().fp8_flop_share > 0.5);
}
