#include "comm/agreement.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>

#include "base/text.h"

namespace octet {
namespace {

const std::string* find(const std::vector<NamedValue>& list, const std::string& name) {
  for (const NamedValue& item : list)
    if (item.name == name) return &item.value;
  return nullptr;
}

// Names in the order in which the ranks list them.
template <class Member>
std::vector<std::string> names_of(std::span<const Agreement> agreements, Member member) {
  std::vector<std::string> names;
  for (const Agreement& agreement : agreements)
    for (const NamedValue& item : agreement.*member)
      if (std::find(names.begin(), names.end(), item.name) == names.end()) names.push_back(item.name);
  return names;
}

std::string shown(const std::string& value) {
  constexpr size_t most = 120;
  const std::string safe = escape_control(value);
  return safe.size() <= most ? safe : safe.substr(0, most) + "...";
}

// "ranks 0-2 have A, rank 3 (host b, pid 7) has B": the largest group first, the odd ones with their hosts.
std::string groups_text(std::span<const Peer> peers, const std::map<std::string, std::vector<int>>& groups) {
  std::vector<std::pair<std::string, std::vector<int>>> sorted(groups.begin(), groups.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.second.size() != b.second.size() ? a.second.size() > b.second.size()
                                              : a.second.front() < b.second.front();
  });
  constexpr size_t most = 4;
  std::vector<std::string> parts;
  for (const auto& [value, ranks] : sorted) {
    if (parts.size() == most) {
      parts.push_back(fmt::format("and {} more values", sorted.size() - most));
      break;
    }
    const std::string who =
        ranks.size() == 1 ? name_of(peers[static_cast<size_t>(ranks[0])]) : rank_list(ranks);
    parts.push_back(fmt::format("{} {} {}", who, ranks.size() == 1 ? "has" : "have", value));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace

Peer this_process(int rank, const std::string& host) {
  Peer peer{.rank = rank, .host = host, .pid = getpid(), .machine = {}, .network = {}};
  if (peer.host.empty()) {
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    peer.host = name;
  }
  std::ifstream("/proc/sys/kernel/random/boot_id") >> peer.machine;
  if (peer.machine.empty()) peer.machine = peer.host;
  struct stat space {};
  const bool known = stat("/proc/self/ns/net", &space) == 0;
  peer.network = fmt::format("{}/{}", peer.machine, known ? uint64_t{space.st_ino} : 0);
  return peer;
}

std::string name_of(const Peer& peer) {
  return fmt::format("rank {} (host {}, pid {})", peer.rank, shown(peer.host), peer.pid);
}

std::string rank_list(std::span<const int> ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    if (i != 0) text += ", ";
    text += end - i == 1   ? fmt::format("{}", ranks[i])
            : end - i == 2 ? fmt::format("{}, {}", ranks[i], ranks[i + 1])
                           : fmt::format("{}-{}", ranks[i], ranks[end - 1]);
    i = end;
  }
  return text;
}

std::string disagreement(std::span<const Peer> peers, std::span<const Agreement> agreements) {
  for (const std::string& name : names_of(agreements, &Agreement::equal)) {
    std::map<std::string, std::vector<int>> groups;
    for (size_t r = 0; r < agreements.size(); ++r) {
      const std::string* value = find(agreements[r].equal, name);
      groups[value == nullptr ? "none" : shown(*value)].push_back(static_cast<int>(r));
    }
    // Two long values may be shown alike: compare what they are, not what is shown.
    const bool same = std::all_of(agreements.begin(), agreements.end(), [&](const Agreement& other) {
      const std::string *a = find(agreements[0].equal, name), *b = find(other.equal, name);
      return a != nullptr && b != nullptr && *a == *b;
    });
    if (!same)
      return fmt::format("the ranks do not have the same {}: {}", shown(name), groups_text(peers, groups));
  }
  for (const std::string& name : names_of(agreements, &Agreement::unique)) {
    std::map<std::string, int> owners;
    for (size_t r = 0; r < agreements.size(); ++r) {
      const std::string* value = find(agreements[r].unique, name);
      if (value == nullptr) continue;
      const auto [owner, is_new] = owners.emplace(peers[r].machine + '\0' + *value, static_cast<int>(r));
      if (!is_new)
        return fmt::format("two ranks have the same {} {}: {} and {}", shown(name), shown(*value),
                           name_of(peers[static_cast<size_t>(owner->second)]), name_of(peers[r]));
    }
  }
  return {};
}

}  // namespace octet
