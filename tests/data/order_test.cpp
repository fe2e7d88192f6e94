#include <fmt/format.h>

#include <cmath>
#include <numeric>
#include <set>

#include "base/error.h"
#include "catch.h"
#include "data/loader.h"
#include "data/shard_files.h"

using namespace octet;
using namespace shard_files;

namespace {

// A data set of sources with the given windows of 2 + 1 tokens each and weights.
Dataset dataset_of(const TemporaryFolder& folder, const std::vector<int64_t>& windows,
                   const std::vector<double>& weights) {
  std::vector<DataSource> sources;
  for (size_t i = 0; i < windows.size(); ++i) {
    const std::string path = folder / fmt::format("s{}", i);
    write_file(path, llmc16(std::vector<int64_t>(static_cast<size_t>(2 * windows[i] + 1), 1)));
    sources.push_back({.name = fmt::format("s{}", i), .files = {path}, .weight = weights[i]});
  }
  return Dataset(sources, "", 2, 10);
}

}  // namespace

TEST_CASE("over one epoch every window comes exactly once, in another order each epoch") {
  const TemporaryFolder folder;
  for (const int64_t windows : {1, 2, 3, 7, 64, 100, 1000}) {
    const Dataset dataset = dataset_of(folder, {windows}, {1});
    const SampleOrder order(dataset, 7, WindowOrder::Shuffled);
    std::vector<std::vector<int64_t>> epochs;
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<int64_t> seen;
      for (int64_t i = 0; i < windows; ++i) {
        const SampleLocation location = order.locate(epoch * windows + i);
        REQUIRE(location.source == 0);
        REQUIRE(location.epoch == epoch);
        seen.push_back(location.window);
      }
      epochs.push_back(seen);
      std::sort(seen.begin(), seen.end());
      std::vector<int64_t> all(static_cast<size_t>(windows));
      std::iota(all.begin(), all.end(), 0);
      REQUIRE(seen == all);
    }
    if (windows >= 64) {  // two equal random orders of 64 have a chance of 1 in 64!
      CHECK(epochs[0] != epochs[1]);
      CHECK(epochs[1] != epochs[2]);
      CHECK_FALSE(std::is_sorted(epochs[0].begin(), epochs[0].end()));
    }
  }
}

TEST_CASE("without shuffling windows come in order") {
  const TemporaryFolder folder;
  const Dataset dataset = dataset_of(folder, {5}, {1});
  const SampleOrder order(dataset, 7, WindowOrder::AsStored);
  for (int64_t i = 0; i < 12; ++i) {
    CHECK(order.locate(i).window == i % 5);
    CHECK(order.locate(i).epoch == i / 5);
  }
}

TEST_CASE("the order is a pure function of seed and sample: no horizon, no history") {
  const TemporaryFolder folder;
  const Dataset dataset = dataset_of(folder, {100, 37, 5}, {0.5, 0.3, 0.2});
  const SampleOrder forward(dataset, 7, WindowOrder::Shuffled), backward(dataset, 7, WindowOrder::Shuffled),
      other(dataset, 8, WindowOrder::Shuffled);
  std::vector<SampleLocation> reference;
  for (int64_t i = 0; i < 500; ++i) reference.push_back(forward.locate(i));
  int64_t differing = 0;
  for (int64_t i = 499; i >= 0; --i) {
    const SampleLocation again = backward.locate(i), moved = other.locate(i),
                         &first = reference[static_cast<size_t>(i)];
    REQUIRE(again.source == first.source);
    REQUIRE(again.window == first.window);
    REQUIRE(again.epoch == first.epoch);
    differing += moved.window != first.window;
  }
  CHECK(differing >
        250);  // another seed is another order; chance hits are about 1 in 5 for the smallest source
}

TEST_CASE("a mixture keeps its weights after every sample and reads every window of a source once an epoch") {
  const TemporaryFolder folder;
  struct Case {
    std::vector<double> weights;
    double bound;  // ceil(log2 sources) / 2
  };
  for (const Case& c : {Case{{3}, 0}, Case{{1, 1}, 0.5}, Case{{0.7, 0.3}, 0.5}, Case{{0.5, 0.3, 0.2}, 1},
                        Case{{5, 1, 1, 1e-9}, 1}, Case{{1e-12, 1}, 0.5}, Case{{1e300, 1e300, 1e300}, 1},
                        Case{{1, 2, 3, 4, 5, 6, 7}, 1.5}}) {
    CAPTURE(c.weights);
    const size_t sources = c.weights.size();
    std::vector<int64_t> windows;
    for (size_t i = 0; i < sources; ++i) windows.push_back(11 + static_cast<int64_t>(i));
    const Dataset dataset = dataset_of(folder, windows, c.weights);
    const SampleOrder order(dataset, 3, WindowOrder::Shuffled);
    double all = 0;
    for (const double weight : c.weights) all += weight / c.weights[0];
    std::vector<int64_t> counts(sources, 0);
    std::vector<std::multiset<int64_t>> seen(sources);
    for (int64_t n = 1; n <= 3000; ++n) {
      const SampleLocation location = order.locate(n - 1);
      const size_t s = static_cast<size_t>(location.source);
      REQUIRE(location.epoch == counts[s] / windows[s]);
      seen[s].insert(location.window);
      if (++counts[s] % windows[s] == 0) {
        const std::set<int64_t> distinct(seen[s].begin(), seen[s].end());
        REQUIRE(static_cast<int64_t>(distinct.size()) == windows[s]);
        REQUIRE(seen[s].size() == distinct.size());
        seen[s].clear();
      }
      REQUIRE(order.counts(n) == counts);
      for (size_t i = 0; i < sources; ++i)
        REQUIRE(std::abs(static_cast<double>(counts[i]) -
                         static_cast<double>(n) * (c.weights[i] / c.weights[0] / all)) <= c.bound + 1e-9);
    }
  }
}

TEST_CASE("mixture counts stay exact at the end of long runs") {
  const TemporaryFolder folder;
  const Dataset dataset = dataset_of(folder, {11, 12, 13}, {0.5, 0.3, 0.2});
  const SampleOrder order(dataset, 3, WindowOrder::Shuffled);
  const int64_t far = (int64_t{1} << 45) + 12345;
  std::vector<int64_t> counts = order.counts(far);
  CHECK(counts[0] + counts[1] + counts[2] == far);
  for (int64_t n = far; n < far + 1000; ++n) {
    ++counts[static_cast<size_t>(order.locate(n).source)];
    REQUIRE(order.counts(n + 1) == counts);
  }
}

TEST_CASE("more epochs than allowed are refused before the run") {
  const TemporaryFolder folder;
  const Dataset dataset = dataset_of(folder, {10, 100}, {1, 1});
  const SampleOrder order(dataset, 3, WindowOrder::Shuffled);
  CHECK(order.epochs(20) == std::vector<int64_t>{1, 1});
  CHECK(order.epochs(21) ==
        std::vector<int64_t>{2, 1});  // sample 20 begins the second epoch of the first source
  CHECK(order.locate(20).epoch == 1);
  CHECK_NOTHROW(check_epochs(dataset, order, 20, 1));
  CHECK_NOTHROW(check_epochs(dataset, order, 1000000, 0));
  try {
    check_epochs(dataset, order, 21, 1);
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Data);
    CHECK(std::string(error.what())
              .find("\"s0\" has 10 windows, the run reads 11 of them: 2 epochs, data.epochs allows 1") !=
          std::string::npos);
  }
}
