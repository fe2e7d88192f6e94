#include "cli/machine.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"

namespace octet {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The value after "key\t: " of the first such line.
std::string line_value(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return {};
}

void inspect_cpu(MachineFacts& facts) {
  facts.cpu = line_value("/proc/cpuinfo", "model name");
  if (facts.cpu.empty()) facts.cpu = line_value("/proc/cpuinfo", "CPU implementer");
  std::istringstream flags(line_value("/proc/cpuinfo", "flags"));
  const std::array<const char*, 9> known = {"avx2",        "fma",      "f16c",     "avx512f",    "avx512bw",
                                            "avx512_bf16", "amx_bf16", "amx_tile", "avx512_vnni"};
  for (std::string flag; flags >> flag;) {
    if (std::find(known.begin(), known.end(), flag) != known.end()) facts.features.push_back(flag);
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  facts.cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                            : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
}

uint64_t kibibytes(const std::string& text) { return std::strtoull(text.c_str(), nullptr, 10) * 1024; }

// Control groups nest, and every level limits: the tightest of the group and its parents.
std::vector<std::filesystem::path> control_groups() {
  std::vector<std::filesystem::path> folders;
  std::string own;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, 3, "0::") == 0) own = line.substr(3);
  }
  std::filesystem::path folder = "/sys/fs/cgroup" + own;
  for (;; folder = folder.parent_path()) {
    folders.push_back(folder);
    if (folder == "/sys/fs/cgroup" || !folder.has_parent_path() || folder == folder.parent_path()) break;
  }
  return folders;
}

void inspect_limits(MachineFacts& facts) {
  facts.memory_bytes = kibibytes(line_value("/proc/meminfo", "MemTotal"));
  facts.available_bytes = kibibytes(line_value("/proc/meminfo", "MemAvailable"));
  std::vector<std::string> memory_limits = {first_line("/sys/fs/cgroup/memory/memory.limit_in_bytes")};
  for (const std::filesystem::path& group : control_groups()) {
    memory_limits.push_back(first_line((group / "memory.max").string()));
    std::istringstream cpu(first_line((group / "cpu.max").string()));
    double quota = 0, period = 0;
    if (cpu >> quota >> period && quota > 0 && period > 0) {
      const double cores = quota / period;
      facts.cpu_quota = facts.cpu_quota > 0 ? std::min(facts.cpu_quota, cores) : cores;
    }
  }
  for (const std::string& text : memory_limits) {
    const uint64_t limit = std::strtoull(text.c_str(), nullptr, 10);  // "max" reads as 0
    if (limit == 0 || (facts.memory_bytes > 0 && limit >= facts.memory_bytes)) continue;
    facts.cgroup_memory_bytes =
        facts.cgroup_memory_bytes > 0 ? std::min(facts.cgroup_memory_bytes, limit) : limit;
  }
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) facts.open_files = limit.rlim_cur;
  if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0)
    facts.locked_memory = limit.rlim_cur == RLIM_INFINITY ? -1 : static_cast<int64_t>(limit.rlim_cur);
  struct statvfs shm {};
  if (statvfs("/dev/shm", &shm) == 0) facts.shared_memory_bytes = shm.f_bavail * shm.f_frsize;
}

void inspect_system(MachineFacts& facts) {
  utsname name{};
  if (uname(&name) == 0) facts.kernel = fmt::format("{} {} {}", name.sysname, name.release, name.machine);
  std::error_code ignored;
  if (std::filesystem::exists("/.dockerenv", ignored)) facts.container = "docker";
  if (std::filesystem::exists("/run/.containerenv", ignored)) facts.container = "podman";
  const char* kind = std::getenv("container");
  if (facts.container.empty() && kind) facts.container = kind;
}

void inspect_disk(MachineFacts& facts) {
  try {
    facts.disk_free_bytes = free_bytes(facts.folder);
    const std::filesystem::path probe =
        std::filesystem::path(facts.folder) / fmt::format(".octet-doctor-{}", getpid());
    const std::string text = "octet doctor writes, syncs and removes this file\n";
    write_atomically(probe, text, ExitCode::Usage);
    const bool same = read_text(probe, ExitCode::Usage) == text;
    remove_durably(probe, ExitCode::Usage);
    if (!same) facts.write_problem = "what was read back is not what was written";
  } catch (const Error& error) {
    facts.write_problem = error.what();
  }
}

}  // namespace

MachineFacts inspect_machine(const std::string& folder) {
  MachineFacts facts;
  facts.folder = folder;
  inspect_cpu(facts);
  inspect_limits(facts);
  inspect_system(facts);
  inspect_disk(facts);
  facts.nvidia = inspect_nvidia();
  return facts;
}

}  // namespace octet
