#include "data/loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "base/hash.h"

namespace octet {

struct Loader::Implementation {
  const Dataset& dataset;
  const LoaderOptions options;
  const SampleOrder order;

  // A ring of slots: [taken, filled) are ready; the one before `taken` is in the caller's hands. The reading
  // thread owns slot filled % size outside the lock, the caller slot (taken - 1) % size.
  std::vector<MicroBatch> slots;
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t filled = 0, taken = 0;
  bool stopping = false;
  std::exception_ptr failure;
  double stalled = 0;
  std::thread thread;

  Implementation(const Dataset& d, const LoaderOptions& o)
      : dataset(d), options(o), order(d, o.seed, o.windows), slots(static_cast<size_t>(o.prefetch) + 1) {}

  // The global index of the first sample of this rank's micro-batch number `index`: every options.ranks-th.
  int64_t first_sample(int64_t index) const {
    return options.first_sample + (index * options.ranks + options.rank) * options.micro_batch;
  }

  void fill(MicroBatch& batch, int64_t index, std::vector<int32_t>& window) const {
    const size_t context = static_cast<size_t>(dataset.context()),
                 rows = static_cast<size_t>(options.micro_batch);
    batch.tokens.resize(rows * context);
    batch.targets.resize(rows * context);
    batch.sources.resize(rows);
    batch.samples.resize(rows);
    window.resize(context + 1);
    for (size_t row = 0; row < rows; ++row) {
      const int64_t sample = first_sample(index) + static_cast<int64_t>(row);
      const SampleLocation location = order.locate(sample);
      dataset.read(location.source, location.window, window);
      std::copy_n(window.begin(), context, batch.tokens.begin() + static_cast<int64_t>(row * context));
      std::copy_n(window.begin() + 1, context, batch.targets.begin() + static_cast<int64_t>(row * context));
      batch.sources[row] = location.source;
      batch.samples[row] = sample;
    }
    batch.hash = hash64(batch.tokens.data(), batch.tokens.size() * sizeof(int32_t));
  }

  void run() {
    std::vector<int32_t> window;
    std::unique_lock lock(mutex);
    for (;;) {
      // One slot stays with the caller, so that what next() returned is valid until its next call.
      changed.wait(lock, [&] { return stopping || filled - taken + 1 < slots.size(); });
      if (stopping) return;
      const uint64_t index = filled;
      lock.unlock();
      try {
        fill(slots[index % slots.size()], static_cast<int64_t>(index), window);
      } catch (...) {
        lock.lock();
        failure = std::current_exception();
        changed.notify_all();
        return;
      }
      lock.lock();
      ++filled;
      changed.notify_all();
    }
  }
};

Loader::Loader(const Dataset& dataset, const LoaderOptions& o) {
  if (o.micro_batch < 1 || o.ranks < 1 || o.rank < 0 || o.rank >= o.ranks || o.prefetch < 1 ||
      o.first_sample < 0 || o.global_batch < 1 || o.global_batch % o.ranks != 0 ||
      o.global_batch / o.ranks % o.micro_batch != 0)
    throw Error(
        ExitCode::Usage,
        fmt::format(
            "loader of rank {} of {}: a global batch of {} samples in micro-batches of {}, first sample "
            "{}, prefetch {}",
            o.rank, o.ranks, o.global_batch, o.micro_batch, o.first_sample, o.prefetch),
        "the global batch is a multiple of ranks times micro-batch");
  implementation_ = std::make_unique<Implementation>(dataset, o);
  implementation_->thread = std::thread([self = implementation_.get()] { self->run(); });
}

Loader::~Loader() {
  Implementation& self = *implementation_;
  {
    const std::lock_guard lock(self.mutex);
    self.stopping = true;
  }
  self.changed.notify_all();
  self.thread.join();
}

const MicroBatch& Loader::next() {
  Implementation& self = *implementation_;
  std::unique_lock lock(self.mutex);
  if (self.filled == self.taken && !self.failure) {
    const double begin = monotonic_seconds();
    self.changed.wait(lock, [&] { return self.filled > self.taken || self.failure; });
    self.stalled += monotonic_seconds() - begin;
  }
  if (self.filled == self.taken) std::rethrow_exception(self.failure);  // what was read before it comes first
  const size_t slot = self.taken++ % self.slots.size();
  lock.unlock();
  self.changed.notify_all();
  return self.slots[slot];
}

double Loader::stalled_seconds() const {
  const std::lock_guard lock(implementation_->mutex);
  return implementation_->stalled;
}

}  // namespace octet
