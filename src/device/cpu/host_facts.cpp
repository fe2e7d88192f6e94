#include "device/cpu/host_facts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace octet {
namespace {

std::string after_colon(const std::string& line) {
  const size_t colon = line.find(':');
  const size_t begin = colon == std::string::npos ? colon : line.find_first_not_of(" \t", colon + 1);
  return begin == std::string::npos ? std::string() : line.substr(begin);
}

// The number in a file that holds just one; SIZE_MAX when there is none ("max", no such file).
size_t number_in(const std::string& path) {
  std::ifstream file(path);
  size_t value = 0;
  return file >> value ? value : SIZE_MAX;
}

// The value of "key 123" in a file of such lines; 0 when missing.
size_t value_of(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    size_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return 0;
}

}  // namespace

ProcessorFacts read_processor_facts() {
  ProcessorFacts facts;
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line) && !line.empty()) {  // the first processor's paragraph
    if (line.rfind("model name", 0) == 0) facts.name = after_colon(line);
    if (line.rfind("cpu MHz", 0) == 0) facts.megahertz = std::atof(after_colon(line).c_str());
    if (line.rfind("flags", 0) == 0) {
      const std::string flags = after_colon(line) + " ";
      const auto has = [&](const char* flag) {
        return flags.find(std::string(flag) + " ") != std::string::npos;
      };
      facts.avx2 = has("avx2") && has("fma");
      facts.avx512f = has("avx512f");
      facts.avx512_bf16 = has("avx512_bf16");
      facts.amx_bf16 = has("amx_bf16");
    }
  }
  if (facts.name.empty()) facts.name = "unknown processor";
  return facts;
}

StatedPeak stated_peak(const ProcessorFacts& facts, int threads) {
  struct Unit {
    bool there;
    int flops_per_cycle;
    const char* what;
  };
  // AMX: one 16x16x32 BF16 tile product (16,384 FLOP) in 16 cycles. AVX-512 BF16: one 512-bit dot product of
  // pairs a cycle. FMA: two units.
  const Unit units[] = {{facts.amx_bf16, 1024, "AMX BF16 tiles"},
                        {facts.avx512_bf16, 64, "one 512-bit BF16 dot product"},
                        {facts.avx512f, 64, "two 512-bit FP32 multiply-adds"},
                        {facts.avx2, 32, "two 256-bit FP32 multiply-adds"}};
  const auto* const unit =
      std::find_if(std::begin(units), std::end(units), [](const Unit& u) { return u.there; });
  if (unit == std::end(units) || facts.megahertz <= 0) {
    return {0, "no peak stated: the processor's clock or vector units are not known"};
  }
  const double hertz = facts.megahertz * 1e6;
  return {threads * hertz * unit->flops_per_cycle,
          fmt::format("{} threads x {:.2f} GHz (/proc/cpuinfo) x {} FLOP per cycle ({})", threads,
                      hertz * 1e-9, unit->flops_per_cycle, unit->what)};
}

size_t available_memory() {
  const size_t kibibytes = value_of("/proc/meminfo", "MemAvailable:");
  size_t available = kibibytes == 0 ? SIZE_MAX : kibibytes * 1024;
  const std::string group = "/sys/fs/cgroup/";  // version 2, as a container sees its own
  const size_t limit = number_in(group + "memory.max"), used = number_in(group + "memory.current");
  if (limit != SIZE_MAX && used != SIZE_MAX) {
    const size_t reclaimable = std::min(value_of(group + "memory.stat", "inactive_file"), used);
    const size_t held = used - reclaimable;
    available = std::min(available, limit > held ? limit - held : 1);
  }
  return available == SIZE_MAX ? 0 : available;
}

}  // namespace octet
