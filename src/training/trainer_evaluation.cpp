// The loss on the validation windows.
#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "base/clock.h"
#include "training/trainer.h"

namespace octet {

bool Trainer::evaluation_due(int64_t step) const {
  const int64_t every = config_.evaluation.every;
  return validation_batches_ > 0 && step > 0 && every > 0 &&
         (step % every == 0 || step == config_.run.steps) && state_.validated_step != step;
}

bool Trainer::evaluate_if_due() {
  const int64_t step = state_.step;
  if (!evaluation_due(step)) return true;
  ranks_.set_phase("evaluation", step);
  ScaleTable& scales = memory_.model.scales();
  const bool count = scales.count;
  scales.count = false;
  device_.zero(memory_.evaluation_sums);
  bool complete = true;
  for (int64_t b = 0; complete && b < validation_batches_; ++b) {
    injector_.enter(Phase::Evaluation, step);
    complete = !ranks_.alone() || !stop_requested();
    if (!complete) break;
    if (b % ranks_.count() != ranks_.rank()) continue;  // the ranks share them out
    memory_.model.forward(memory_.validation_tokens.slice(b, 1).as<int32_t>(),
                          memory_.validation_targets.slice(b, 1).as<int32_t>());
    device_.accumulate_sum(memory_.evaluation_sums.slice(b, 1), memory_.model.token_losses());
  }
  scales.count = count;
  if (!complete) return false;
  // One process's order of additions, whatever the number of ranks: those of other ranks' batches are zero.
  memory_.data_parallel.add_up(memory_.evaluation_sums);
  std::vector<double> sums(static_cast<size_t>(validation_batches_));
  device_.synchronize();
  device_.copy_to_host(sums.data(), memory_.evaluation_sums.data, sums.size() * sizeof(double));
  double sum = 0;
  for (const double batch : sums) sum += batch;
  const double loss = sum / static_cast<double>(validation_windows_ * config_.model.context);
  state_.validation_loss = loss;
  state_.validated_step = step;
  if (saver_.newest() == step) evaluated_late_ = step;
  log_.write("validation", step,
             {{"time", wall_seconds()},
              {"validation/loss", json_number(loss)},
              {"validation/bits_per_token", json_number(loss / std::log(2.0))}});
  if (!request_.quiet && ranks_.leads())
    progress_.note(
        fmt::format("validation  step {}  loss {:.4f}  {:.4f} bits/token", step, loss, loss / std::log(2.0)));
  return true;
}

}  // namespace octet
