// What the ranks of a run must have in common before they start, and what each must have for itself.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace octet {

struct NamedValue {
  std::string name, value;
  bool operator==(const NamedValue&) const = default;
};

struct Agreement {
  std::vector<NamedValue> equal;   // {"configuration", "9f31..."}: the same on every rank
  std::vector<NamedValue> unique;  // {"device", "GPU-4b7c..."}: no two ranks of one machine have the same
};

// A process of the run.
struct Peer {
  int rank = 0;
  std::string host;  // its name, for people
  int64_t pid = 0;
  std::string machine;  // equal for two processes exactly when they run on the same kernel
  std::string network;  // equal when they also share its loopback device
  bool operator==(const Peer&) const = default;
};

// This process, as a peer.
Peer this_process(int rank, const std::string& host);

std::string name_of(const Peer& peer);              // "rank 3 (host b, pid 4711)"
std::string rank_list(std::span<const int> ranks);  // rising: "rank 3", "ranks 0-2, 5"

// The first difference, naming the item, the ranks and their values; "" when all agree. Entry r of both spans
// is rank r's.
std::string disagreement(std::span<const Peer> peers, std::span<const Agreement> agreements);

}  // namespace octet
