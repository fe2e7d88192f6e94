// What the ranks tell each other of a step, beside the tensors they exchange in it.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>

#include "base/hash.h"
#include "training/trainer.h"

namespace octet {
namespace {

// Of a step, by each rank.
struct Settled {
  double loss = 0;
  UpdateControl control{};
  Traffic traffic;
};
static_assert(std::is_trivially_copyable_v<Settled>);

template <class Values>
std::string bytes_of(const Values& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0]));
}

}  // namespace

// The hash of the whole batch, as one process would have seen it, and the losses by source. Micro-batches
// were dealt out to the ranks in turn. Of ranks that train alone: the mean of their losses and of the norms
// that each clipped by; the step is applied when all applied it.
void Trainer::exchange(StepReport& report, UpdateControl& control) {
  if (!ranks_.alone()) {
    const Settled own{report.loss, control, report.traffic};
    const size_t each = report.batch_hashes.size(), hash_bytes = each * sizeof(uint64_t),
                 source_bytes = report.source_loss.size() * sizeof(double);
    const std::vector<std::string> all =
        ranks_.all(fmt::format("step/{}", report.step),
                   bytes_of(report.batch_hashes) + bytes_of(report.source_loss) +
                       bytes_of(report.source_tokens) + bytes_of(std::span(&own, 1)));
    report.traffic = {};
    report.batch_hashes.assign(each * all.size(), 0);
    std::fill(report.source_loss.begin(), report.source_loss.end(), 0.0);
    std::fill(report.source_tokens.begin(), report.source_tokens.end(), 0.0);
    double loss = 0, norm = 0;
    UpdateControl together = control;
    together.apply = 1;
    together.nonfinite_piece = 0;
    for (size_t rank = 0; rank < all.size(); ++rank) {
      const std::string& part = all[rank];
      const auto add = [&](std::vector<double>& sums, size_t at) {
        for (size_t i = 0; i < sums.size(); ++i) {
          double value = 0;
          std::memcpy(&value, part.data() + at + i * sizeof value, sizeof value);
          sums[i] += value;
        }
      };
      for (size_t micro = 0; micro < each; ++micro)
        std::memcpy(&report.batch_hashes[micro * all.size() + rank], part.data() + micro * sizeof(uint64_t),
                    sizeof(uint64_t));
      add(report.source_loss, hash_bytes);
      add(report.source_tokens, hash_bytes + source_bytes);
      Settled settled;
      std::memcpy(&settled, part.data() + hash_bytes + 2 * source_bytes, sizeof settled);
      for (size_t i = 0; i < traffic_kinds; ++i)
        report.traffic.sent_bytes[i] = std::max(report.traffic.sent_bytes[i], settled.traffic.sent_bytes[i]);
      report.traffic.waited_seconds += settled.traffic.waited_seconds / ranks_.count();
      loss += settled.loss / ranks_.count();
      norm += static_cast<double>(settled.control.gradient_norm) / ranks_.count();
      together.apply = std::min(together.apply, settled.control.apply);
      if (together.nonfinite_piece == 0) together.nonfinite_piece = settled.control.nonfinite_piece;
    }
    if (trains_alone(config_)) {
      report.loss = loss;
      control = together;
      control.loss = static_cast<float>(loss);
      control.gradient_norm = static_cast<float>(norm);
    }
  }
  report.batch_hash = hash64(report.batch_hashes.data(), report.batch_hashes.size() * sizeof(uint64_t));
}

}  // namespace octet
