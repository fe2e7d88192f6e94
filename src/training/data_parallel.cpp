#include "training/data_parallel.h"

#include "model/parameters.h"

namespace octet {

DataParallel::DataParallel(Device* device, Communicator* communicator, int ranks, const RunConfig& config,
                           Transformer& model, Optimizer& optimizer, MemoryPlan& plan)
    : communicator_(communicator),
      ranks_(ranks),
      model_(model),
      optimizer_(optimizer),
      device_(device),
      exchange_(make_step_exchange({device, communicator, ranks, config, model, plan})),
      step_ranks_(exchange_->ranks_of_step()),
      step_tokens_(static_cast<double>(config.batch.tokens / ranks * step_ranks_)),
      weights_({device, communicator, step_ranks_, config, model, plan}) {}

void DataParallel::start(int64_t step) {
  exchange_->masters_set();
  refresh_working_weights(step);
}

void DataParallel::begin_step() {
  exchange_->begin_step();
  device_->zero(model_.loss_sum());
}

void DataParallel::decide(int64_t step) {
  // What every rank has whole is measured once.
  const bool whole = !weights_.sharded() || communicator_->rank() == 0;
  const Optimizer::Whole measures = whole ? Optimizer::Whole::Yes : Optimizer::Whole::No;
  const auto over_ranks = [&](const Tensor& partials) {
    if (weights_.sharded()) add_up(partials);
  };
  optimizer_.measure(model_.parameters(), measures);
  over_ranks(optimizer_.norm_partials());
  optimizer_.decide(model_.loss_sum(), step_tokens_);
  optimizer_.measure_updates(model_.parameters(), step, measures, over_ranks);
}

void DataParallel::add_up(const Tensor& sums) {
  if (ranks_ > 1) communicator_->wait(communicator_->all_reduce(sums, Reduction::Sum));
}

void DataParallel::merge_amaxes() {
  const ScaleTable& scales = model_.scales();
  if (step_ranks_ == 1 || scales.sites.empty()) return;
  communicator_->wait(communicator_->all_reduce(magnitude_bits(scales.amax), Reduction::Max));
}

void DataParallel::merge_counters() {
  const ScaleTable& scales = model_.scales();
  const bool followed = std::any_of(scales.sites.begin(), scales.sites.end(),
                                    [](const SiteInfo& site) { return is_counted(site.cast.scaling); });
  if (step_ranks_ == 1 || scales.sites.empty() || !(scales.count || followed)) return;
  communicator_->wait(communicator_->all_reduce(scales.counters, Reduction::Sum));
}

void DataParallel::merge_observations() {
  if (step_ranks_ == 1) return;
  const Observations& observations = model_.observations();
  communicator_->all_reduce(observations.sums, Reduction::Sum);
  communicator_->wait(communicator_->all_reduce(observations.extremes, Reduction::Max));
}

void DataParallel::update(double learning_rate, int64_t step) {
  const Optimizer::Updated to_weights = [&](const MasterPiece& piece) { weights_.take(piece, step); };
  optimizer_.update(model_.parameters(), learning_rate, step,
                    [&](const MasterPiece& piece) { exchange_->take(piece, step, to_weights); });
  exchange_->finish_update(step, to_weights);
  weights_.finish(step);
}

void DataParallel::refresh_working_weights(int64_t step) {
  for (const Parameter& p : model_.parameters()) weights_.take(p.piece(), step);
  weights_.finish(step);
}

GradientReduction::State DataParallel::reduction_state() {
  GradientReduction* const reduction = exchange_->reduction();
  return reduction ? reduction->state() : alone_;
}

void DataParallel::restore(const GradientReduction::State& state) {
  alone_ = state;
  if (GradientReduction* const reduction = exchange_->reduction()) reduction->restore(state);
}

}  // namespace octet
