// The ranks of a run as its checkpoints see them: numbered, able to tell each other short strings.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace octet {

class ControlPlane;

// The default is a process alone. Every rank calls what takes a RankGroup, in the same order.
struct RankGroup {
  int rank = 0, ranks = 1;
  // Everybody's string, by rank. Names are unique in a run. Throws once a rank is lost; unused by one alone.
  std::function<std::vector<std::string>(const std::string& name, const std::string& mine)> all_gather = {};
  // A sign of life within long work that others wait for; may be empty.
  std::function<void()> progress = {};
  int64_t exchanges = 0;  // begun by this group so far: part of their names

  bool alone() const { return ranks == 1; }
  bool leads() const { return rank == 0; }
};

RankGroup rank_group(ControlPlane& control);  // which must outlive it

// One step of a common work. Every rank does its part, then all learn how it went: what each rank's `work`
// returned, by rank, or, on every rank, the same Error(Checkpoint) that quotes the first rank whose work
// threw a std::exception. Anything else that is thrown, and what all_gather throws, passes through. Alone,
// nothing is told and every exception passes through.
std::vector<std::string> together(const RankGroup& group, const std::string& name,
                                  const std::function<std::string()>& work);

}  // namespace octet
