#include "analysis/sharpness.h"

#include <cmath>
#include <memory>
#include <span>

#include "analysis/fixed_windows.h"
#include "device/observed_device.h"
#include "numerics/sharpness.h"
#include "training/loaded_model.h"
#include "training/open_device.h"

namespace octet {
namespace {

class SharpnessMeter {
 public:
  SharpnessMeter(Device& device, const RunConfig& config, const FixedWindows& windows,
                 const std::vector<double>& epsilons)
      : observed_(device),
        config_(config),
        windows_(windows),
        epsilons_(epsilons),
        rows_(config.batch.micro * config.model.context),
        model_(observed_, config) {}
  ~SharpnessMeter() {
    if (exact_.data) observed_.free(exact_.data);
  }
  SharpnessMeter(const SharpnessMeter&) = delete;
  SharpnessMeter& operator=(const SharpnessMeter&) = delete;

  std::vector<SharpnessRecord> measure(const CheckpointEntry& checkpoint) {
    model_.load(checkpoint.folder);
    std::vector<std::vector<double>> last(epsilons_.size());
    std::vector<double> all(epsilons_.size(), 0);
    for (int64_t batch = 0; batch < windows_.batches; ++batch) {
      const int32_t* targets = windows_.targets.data() + batch * rows_;
      int64_t first = 0;
      // The head's product once more, whose sums are not rounded to storage this time.
      observed_.observe({.cast = {}, .swiglu = {}, .head = [&](const Matmul& matmul) {
                           const std::vector<float> logits = exact_logits(matmul);
                           const int64_t count = matmul.out.rows();
                           for (size_t e = 0; e < epsilons_.size(); ++e)
                             add(logits, targets + first, first, epsilons_[e], last[e], all[e]);
                           first += count;
                         }});
      model_.model().forward(windows_.tokens.data() + batch * rows_, targets);
      observed_.observe({});
    }
    std::vector<SharpnessRecord> records;
    for (size_t e = 0; e < epsilons_.size(); ++e)
      records.push_back(record(checkpoint.step, epsilons_[e], last[e], all[e]));
    return records;
  }

 private:
  std::vector<float> exact_logits(const Matmul& matmul) {
    if (exact_.elements() < matmul.out.elements() || !exact_.data) {
      if (exact_.data) observed_.free(exact_.data);
      exact_ = {nullptr, DType::F32, matmul.out.shape};
      exact_.data = observed_.allocate(exact_.bytes());
    }
    const Matmul exact = ObservedDevice::in_fp32(matmul, exact_.data);
    device().matmul(exact);
    device().synchronize();
    std::vector<float> logits(static_cast<size_t>(exact.out.elements()));
    device().copy_to_host(logits.data(), exact.out.data, exact.out.bytes());
    return logits;
  }
  Device& device() { return observed_.behind(); }

  // Of a chunk of tokens, whose first is token `first` of the micro-batch.
  void add(const std::vector<float>& logits, const int32_t* targets, int64_t first, double epsilon,
           std::vector<double>& last, double& all) const {
    const int64_t vocabulary = config_.model.vocabulary,
                  count = static_cast<int64_t>(logits.size()) / vocabulary;
    std::vector<double> values(static_cast<size_t>(count));
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < count; ++t)
      if (targets[t] >= 0)
        values[static_cast<size_t>(t)] =
            logit_sharpness(logits.data() + t * vocabulary, vocabulary, targets[t], epsilon);
    for (int64_t t = 0; t < count; ++t) {
      if (targets[t] < 0) continue;
      all += values[static_cast<size_t>(t)];
      if ((first + t + 1) % config_.model.context == 0) last.push_back(values[static_cast<size_t>(t)]);
    }
  }

  SharpnessRecord record(int64_t step, double epsilon, const std::vector<double>& last, double all) const {
    const auto n = static_cast<double>(last.size());
    double mean = 0, squares = 0;
    for (const double value : last) mean += value / n;
    for (const double value : last) squares += (value - mean) * (value - mean);
    const double error = last.size() > 1 ? std::sqrt(squares / (n * (n - 1))) : 0;
    return {step, epsilon, mean, error, all / (n * static_cast<double>(config_.model.context))};
  }

  ObservedDevice observed_;
  const RunConfig& config_;
  const FixedWindows& windows_;
  const std::vector<double>& epsilons_;
  int64_t rows_;
  Tensor exact_;  // F32, of the largest chunk so far
  LoadedModel model_;
};

}  // namespace

SharpnessResult measure_sharpness(const SharpnessRequest& request,
                                  const std::function<void(std::span<const SharpnessRecord>)>& measured) {
  const std::vector<CheckpointEntry> checkpoints = checkpoints_at(request.path);
  const std::filesystem::path& newest = checkpoints.back().folder;
  RunConfig config = config_of(read_manifest(newest), newest, request.overrides);
  const FixedWindows windows = fixed_windows(config, request.sequences, request.data);
  const std::unique_ptr<Device> device = open_device(request.device, device_options(config));
  auto meter = std::make_unique<SharpnessMeter>(*device, config, windows, request.epsilons);
  SharpnessResult result;
  result.sequences = windows.count;
  result.data = windows.files;
  for (const CheckpointEntry& checkpoint : checkpoints) {
    // A schedule or a fallback changes the precision along the run.
    const RunConfig own = config_of(read_manifest(checkpoint.folder), checkpoint.folder, request.overrides);
    if (own.precision != config.precision) {
      meter.reset();
      config.precision = own.precision;
      meter = std::make_unique<SharpnessMeter>(*device, config, windows, request.epsilons);
    }
    const std::vector<SharpnessRecord> records = meter->measure(checkpoint);
    if (measured) measured(records);
    result.points.insert(result.points.end(), records.begin(), records.end());
  }
  return result;
}

Json to_json(const SharpnessResult& result) {
  Json json = {{"sequences", result.sequences}, {"data", result.data}, {"points", Json::array()}};
  for (const SharpnessRecord& r : result.points)
    json["points"].push_back({{"step", r.step},
                              {"epsilon", r.epsilon},
                              {"last", json_number(r.last)},
                              {"last_error", json_number(r.last_error)},
                              {"all", json_number(r.all)}});
  return json;
}

}  // namespace octet
