#include <thread>

#include "base/error.h"
#include "base/hash.h"
#include "catch.h"
#include "data/loader.h"
#include "data/shard_files.h"

using namespace octet;
using namespace shard_files;

namespace {

constexpr int64_t context = 4;

// Window w of source s begins with the id 100 s + w.
Dataset two_sources(const TemporaryFolder& folder) {
  std::vector<DataSource> sources;
  for (int64_t s = 0; s < 2; ++s) {
    std::vector<int64_t> ids;
    for (int64_t w = 0; w < 30; ++w)
      for (int64_t i = 0; i < context; ++i) ids.push_back(i ? 500 + i : 100 * s + w);
    ids.push_back(999);
    const std::string path = folder / ("source" + std::to_string(s));
    write_file(path, llmc16(ids));
    sources.push_back({.name = std::to_string(s), .files = {path}, .weight = s ? 1.0 : 2.0});
  }
  return Dataset(sources, "", context, 1000);
}

struct Row {
  int64_t sample;
  int source;
  std::vector<int32_t> tokens, targets;
  bool operator==(const Row&) const = default;
};

std::vector<Row> rows_of(const MicroBatch& batch) {
  std::vector<Row> rows;
  for (size_t r = 0; r < batch.samples.size(); ++r) {
    const auto part = [&](const std::vector<int32_t>& all) {
      return std::vector<int32_t>(all.begin() + static_cast<int64_t>(r) * context,
                                  all.begin() + static_cast<int64_t>(r + 1) * context);
    };
    rows.push_back({batch.samples[r], batch.sources[r], part(batch.tokens), part(batch.targets)});
  }
  return rows;
}

std::vector<Row> take(Loader& loader, int64_t micro_batches) {
  std::vector<Row> rows;
  for (int64_t i = 0; i < micro_batches; ++i)
    for (Row& row : rows_of(loader.next())) rows.push_back(std::move(row));
  return rows;
}

}  // namespace

TEST_CASE("a batch holds the windows of its samples and their targets one token on") {
  const TemporaryFolder folder;
  const Dataset dataset = two_sources(folder);
  const SampleOrder order(dataset, 5, WindowOrder::Shuffled);
  Loader loader(dataset, {.seed = 5, .micro_batch = 3, .global_batch = 6});
  for (int64_t batch = 0; batch < 40; ++batch) {
    const MicroBatch& got = loader.next();
    REQUIRE(got.tokens.size() == 12);
    CHECK(got.hash == hash64(got.tokens.data(), got.tokens.size() * 4));
    const std::vector<Row> rows = rows_of(got);
    for (size_t r = 0; r < 3; ++r) {
      const int64_t sample = 3 * batch + static_cast<int64_t>(r);
      const SampleLocation location = order.locate(sample);
      REQUIRE(rows[r].sample == sample);
      REQUIRE(rows[r].source == location.source);
      std::vector<int32_t> window(context + 1);
      dataset.read(location.source, location.window, window);
      REQUIRE(rows[r].tokens == std::vector<int32_t>(window.begin(), window.end() - 1));
      REQUIRE(rows[r].targets == std::vector<int32_t>(window.begin() + 1, window.end()));
    }
  }
}

TEST_CASE("the union over ranks is the serial order, for every number of ranks") {
  const TemporaryFolder folder;
  const Dataset dataset = two_sources(folder);
  constexpr int64_t global = 12, steps = 9;
  Loader serial(dataset, {.seed = 5, .micro_batch = 1, .global_batch = global});
  const std::vector<Row> reference = take(serial, steps * global);
  for (const int64_t ranks : {1, 2, 3, 4})
    for (const int64_t micro : {1, 3}) {
      if (global / ranks % micro) continue;
      CAPTURE(ranks, micro);
      std::vector<Row> united(reference.size());
      std::vector<int> seen(reference.size(), 0);
      for (int64_t rank = 0; rank < ranks; ++rank) {
        Loader loader(
            dataset, {.seed = 5, .micro_batch = micro, .global_batch = global, .rank = rank, .ranks = ranks});
        int64_t i = 0;
        for (Row& row : take(loader, steps * global / ranks / micro)) {
          // Every ranks-th micro-batch, not a contiguous part of the global batch.
          REQUIRE(row.sample == (i / micro * ranks + rank) * micro + i % micro);
          ++seen[static_cast<size_t>(row.sample)];
          united[static_cast<size_t>(row.sample)] = std::move(row);
          ++i;
        }
      }
      REQUIRE(seen == std::vector<int>(reference.size(), 1));
      REQUIRE(united == reference);
    }
  Loader other_seed(dataset, {.seed = 6, .micro_batch = 1, .global_batch = global});
  CHECK_FALSE(take(other_seed, steps * global) == reference);
}

TEST_CASE("a loader resumed at any step continues the sequence, on another number of ranks too") {
  const TemporaryFolder folder;
  const Dataset dataset = two_sources(folder);
  Loader whole(dataset, {.seed = 5, .micro_batch = 2, .global_batch = 4});
  const std::vector<Row> reference = take(whole, 60);
  for (const int64_t step : {0, 1, 7, 22, 29}) {  // epochs of the sources end at samples 45 and 90
    Loader resumed(dataset, {.seed = 5, .micro_batch = 2, .global_batch = 4, .first_sample = 4 * step});
    CHECK(take(resumed, 60 - 2 * step) == std::vector<Row>(reference.begin() + 4 * step, reference.end()));
    Loader half(
        dataset,
        {.seed = 5, .micro_batch = 2, .global_batch = 4, .rank = 1, .ranks = 2, .first_sample = 4 * step});
    CHECK(take(half, 1) ==
          std::vector<Row>(reference.begin() + 4 * step + 2, reference.begin() + 4 * step + 4));
  }
}

TEST_CASE("what next() returned stays until its next call, however far the thread reads ahead") {
  const TemporaryFolder folder;
  const Dataset dataset = two_sources(folder);
  for (const int prefetch : {1, 2, 5}) {
    Loader loader(dataset, {.seed = 5, .micro_batch = 2, .global_batch = 2, .prefetch = prefetch});
    for (int i = 0; i < 100; ++i) {
      const MicroBatch& batch = loader.next();
      std::this_thread::yield();
      REQUIRE(batch.samples == std::vector<int64_t>{2 * i, 2 * i + 1});
      REQUIRE(batch.hash == hash64(batch.tokens.data(), batch.tokens.size() * 4));
    }
    CHECK(loader.stalled_seconds() >= 0);
  }
}

TEST_CASE("the wait for a batch that is not there yet is counted, and only that") {
  const TemporaryFolder folder;
  const Dataset dataset = two_sources(folder);
  double waited = 0;
  // Whoever asks a loader before its thread could read anything waits, unless the machine takes the core away
  // just then; so try until it does.
  for (int attempt = 0; attempt < 1000 && waited == 0; ++attempt) {
    Loader loader(dataset, {.seed = 5, .micro_batch = 2, .global_batch = 2});
    CHECK(loader.stalled_seconds() == 0);
    loader.next();
    waited = loader.stalled_seconds();
  }
  CHECK(waited > 0);
}

TEST_CASE("a loader shuts down at any time") {
  const TemporaryFolder folder;
  const Dataset dataset = two_sources(folder);
  for (int taken = 0; taken < 20; ++taken) {
    Loader loader(dataset, {.seed = 5, .micro_batch = 2, .global_batch = 2, .prefetch = 1 + taken % 3});
    for (int i = 0; i < taken; ++i) loader.next();
  }
}

TEST_CASE("a fault of the reading thread comes out of next() after the batches before it, and again") {
  const TemporaryFolder folder;
  std::vector<int64_t> ids(41, 1);
  ids[4 * 5 + 2] = 70;  // window 5
  write_file(folder / "s", llmc16(ids));
  const Dataset dataset({{.name = "s", .files = {folder / "s"}}}, "", context, 64);
  Loader loader(dataset, {.windows = WindowOrder::AsStored, .micro_batch = 1, .global_batch = 1});
  for (int64_t i = 0; i < 5; ++i) CHECK(loader.next().samples[0] == i);
  for (int again = 0; again < 2; ++again) {
    try {
      loader.next();
      FAIL("no error");
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Data);
      CHECK(std::string(error.what()).find("token 22 (byte 1068) is id 70, the vocabulary has 64") !=
            std::string::npos);
    }
  }
}

TEST_CASE("a shard truncated while training ends in a data error") {
  const TemporaryFolder folder;
  const Dataset dataset = two_sources(folder);
  Loader loader(dataset, {.seed = 5, .micro_batch = 1, .global_batch = 1, .prefetch = 2});
  loader.next();
  fs::resize_file(folder / "source0", 1100);
  int64_t batches = 0;
  try {
    for (; batches < 100; ++batches) loader.next();
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Data);
    CHECK(std::string(error.what())
              .find("source0: the shard changed while it was in use: 1100 bytes now, 1266") !=
          std::string::npos);
  }
  CHECK(batches <= 4);  // two read ahead, one in the making, at most one in a row from the other source
}

TEST_CASE("a batch that does not divide among ranks and micro-batches is refused") {
  const TemporaryFolder folder;
  const Dataset dataset = two_sources(folder);
  for (const LoaderOptions& options :
       {LoaderOptions{.micro_batch = 3, .global_batch = 8},
        LoaderOptions{.micro_batch = 2, .global_batch = 6, .ranks = 2},
        LoaderOptions{.micro_batch = 1, .global_batch = 4, .rank = 2, .ranks = 2},
        LoaderOptions{.micro_batch = 0}, LoaderOptions{.first_sample = -1}, LoaderOptions{.prefetch = 0}})
    CHECK_THROWS_AS(Loader(dataset, options), Error);
}
