// Runs a fuzz target without libFuzzer: every seed as it stands, then mutations of seeds until the time is
// up. fuzz_NAME SECONDS SEED_FOLDER [RANDOM_SEED]. A crash or a sanitizer report is the failure; the input
// that was running is then in fuzz_NAME.last (written before each call when OCTET_FUZZ_KEEP is set).
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : key_(octet::random_key(seed, octet::Purpose::Test)) {}

  Bytes mutate(const std::vector<Bytes>& seeds) {
    Bytes input = seeds[below(seeds.size())];
    for (uint64_t changes = 1 + below(6); changes > 0; --changes) change(input, seeds);
    if (input.size() > largest) input.resize(largest);
    return input;
  }

 private:
  static constexpr size_t largest = 1 << 16;

  uint64_t below(uint64_t n) { return n ? octet::random_bits(key_, counter_++) % n : 0; }

  void change(Bytes& input, const std::vector<Bytes>& seeds) {
    // Numbers that parsers trip over: ends of the integer ranges, powers of two, JSON's own characters.
    static constexpr uint64_t numbers[] = {0,
                                           1,
                                           0x7f,
                                           0x80,
                                           0xff,
                                           0x7fff,
                                           0xffff,
                                           0x7fffffff,
                                           0x80000000,
                                           0xffffffff,
                                           0x7fffffffffffffff,
                                           0x8000000000000000,
                                           0xffffffffffffffff};
    static constexpr char characters[] = "{}[],:\"\\0129-.eE \n\xff";
    const size_t at = below(input.size() + 1);
    const size_t length = std::min<size_t>(below(16) + 1, input.size() - at);
    const auto here = input.begin() + static_cast<std::ptrdiff_t>(at);
    switch (below(8)) {
      case 0:  // a flipped bit
        if (at < input.size()) input[at] ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 1:  // another byte
        if (at < input.size()) input[at] = static_cast<uint8_t>(below(256));
        break;
      case 2:  // a character of JSON
        if (at < input.size()) input[at] = static_cast<uint8_t>(characters[below(sizeof characters - 1)]);
        break;
      case 3:  // bytes taken away
        input.erase(here, here + static_cast<std::ptrdiff_t>(length));
        break;
      case 4: {  // bytes doubled
        const Bytes part(here, here + static_cast<std::ptrdiff_t>(length));
        input.insert(here, part.begin(), part.end());
        break;
      }
      case 5: {  // an interesting number, little-endian, of 1 to 8 bytes
        const uint64_t number = numbers[below(std::size(numbers))];
        for (size_t i = 0; i < length && i < 8; ++i) input[at + i] = static_cast<uint8_t>(number >> (8 * i));
        break;
      }
      case 6:  // cut short
        input.resize(at);
        break;
      default: {  // a piece of another seed
        const Bytes& other = seeds[below(seeds.size())];
        if (other.empty()) break;
        const size_t from = below(other.size());
        const size_t taken = std::min<size_t>(below(64) + 1, other.size() - from);
        input.insert(here, other.begin() + static_cast<std::ptrdiff_t>(from),
                     other.begin() + static_cast<std::ptrdiff_t>(from + taken));
      }
    }
  }

  uint64_t key_, counter_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s SECONDS SEED_FOLDER [RANDOM_SEED]\n", argv[0]);
    return 2;
  }
  const double deadline = octet::monotonic_seconds() + std::atof(argv[1]);
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(argv[2])) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());  // the same mutations wherever the seeds were unpacked
  std::vector<Bytes> seeds;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  if (seeds.empty()) {
    std::fprintf(stderr, "no seeds in %s\n", argv[2]);
    return 2;
  }
  const bool keep = std::getenv("OCTET_FUZZ_KEEP") != nullptr;
  const std::string last = std::filesystem::path(argv[0]).filename().string() + ".last";
  uint64_t runs = 0;
  const auto run = [&](const Bytes& input) {
    if (keep)
      std::ofstream(last, std::ios::binary)
          .write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
    LLVMFuzzerTestOneInput(input.data(), input.size());
    ++runs;
  };
  for (const Bytes& seed : seeds) run(seed);
  Mutator mutator(argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1);
  while (octet::monotonic_seconds() < deadline) run(mutator.mutate(seeds));
  std::printf("%llu inputs\n", static_cast<unsigned long long>(runs));
  return 0;
}
