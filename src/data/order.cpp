#include <fmt/format.h>

#include "base/error.h"
#include "base/permutation.h"
#include "base/random.h"
#include "base/text.h"
#include "data/loader.h"

namespace octet {
namespace {

__extension__ typedef unsigned __int128 uint128;

// Of the first n samples of a node, those that go left: floor(n q + 1/2), q = left_share / 2^64.
int64_t left_of(int64_t n, uint64_t left_share) {
  const uint128 half = static_cast<uint128>(1) << 63;
  return static_cast<int64_t>((static_cast<uint128>(static_cast<uint64_t>(n)) * left_share + half) >> 64);
}

uint64_t share_of(double left, double right) {
  const double q = left / (left + right);  // weights are positive and finite
  if (q <= 0x1p-63) return 2;              // every source is read now and then
  if (q >= 1 - 0x1p-53) return ~static_cast<uint64_t>(0) << 11;
  return static_cast<uint64_t>(q * 0x1p64);
}

}  // namespace

SampleOrder::SampleOrder(const Dataset& dataset, uint64_t seed, WindowOrder windows)
    : seed_(seed), window_order_(windows) {
  std::vector<double> weights;
  double largest = 0;
  for (size_t i = 0; i < dataset.sources().size(); ++i) {
    weights.push_back(dataset.sources()[i].weight);
    windows_.push_back(dataset.windows(static_cast<int>(i)));
    largest = std::max(largest, weights.back());
  }
  for (double& weight : weights) weight /= largest;  // sums of huge weights stay finite
  root_ = build(weights, 0, static_cast<int>(weights.size()));
}

int SampleOrder::build(const std::vector<double>& weights, int first, int last) {
  const int index = static_cast<int>(nodes_.size());
  nodes_.push_back({0, -1, -1, first});
  if (last - first == 1) return index;
  const int middle = first + (last - first) / 2;
  double left = 0, right = 0;
  for (int i = first; i < last; ++i) (i < middle ? left : right) += weights[static_cast<size_t>(i)];
  const int left_node = build(weights, first, middle), right_node = build(weights, middle, last);
  nodes_[static_cast<size_t>(index)] = {share_of(left, right), left_node, right_node, -1};
  return index;
}

SampleLocation SampleOrder::locate(int64_t sample) const {
  if (sample < 0) throw Error(ExitCode::Internal, fmt::format("sample {} asked for", sample));
  const Node* node = &nodes_[static_cast<size_t>(root_)];
  while (node->left >= 0) {
    const int64_t before = left_of(sample, node->left_share);
    const bool goes_left = left_of(sample + 1, node->left_share) > before;
    sample = goes_left ? before : sample - before;
    node = &nodes_[static_cast<size_t>(goes_left ? node->left : node->right)];
  }
  const int64_t windows = windows_[static_cast<size_t>(node->source)];
  const int64_t epoch = sample / windows, index = sample % windows;
  if (window_order_ == WindowOrder::AsStored) return {node->source, index, epoch};
  const uint64_t key = random_key(seed_, Purpose::DataOrder, static_cast<uint64_t>(node->source),
                                  static_cast<uint64_t>(epoch));
  return {node->source,
          static_cast<int64_t>(permute(key, static_cast<uint64_t>(windows), static_cast<uint64_t>(index))),
          epoch};
}

std::vector<int64_t> SampleOrder::counts(int64_t samples) const {
  std::vector<int64_t> of_node(nodes_.size(), 0), of_source(windows_.size(), 0);
  of_node[static_cast<size_t>(root_)] = samples;
  for (size_t i = 0; i < nodes_.size(); ++i) {  // parents come before their children
    const Node& node = nodes_[i];
    if (node.left < 0) {
      of_source[static_cast<size_t>(node.source)] = of_node[i];
      continue;
    }
    const int64_t left = left_of(of_node[i], node.left_share);
    of_node[static_cast<size_t>(node.left)] = left;
    of_node[static_cast<size_t>(node.right)] = of_node[i] - left;
  }
  return of_source;
}

std::vector<int64_t> SampleOrder::epochs(int64_t samples) const {
  std::vector<int64_t> begun = counts(samples);
  for (size_t i = 0; i < begun.size(); ++i) begun[i] = begun[i] / windows_[i] + (begun[i] % windows_[i] != 0);
  return begun;
}

void check_epochs(const Dataset& dataset, const SampleOrder& order, int64_t samples, int64_t epochs) {
  if (epochs <= 0) return;
  const std::vector<int64_t> needed = order.epochs(samples), counts = order.counts(samples);
  for (size_t i = 0; i < needed.size(); ++i)
    if (needed[i] > epochs)
      throw Error(
          ExitCode::Data,
          fmt::format("source \"{}\" has {}, the run reads {} of them: {}, data.epochs allows {}",
                      dataset.sources()[i].name, plural(dataset.windows(static_cast<int>(i)), "window"),
                      counts[i], plural(needed[i], "epoch"), epochs),
          "run fewer steps, bring more data, or raise data.epochs (0 allows any number)");
}

}  // namespace octet
