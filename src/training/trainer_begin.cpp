// Before the first step: initial weights or those of a checkpoint, and what refuses a run while that leaves
// no folder.
#include <algorithm>

#include "base/files.h"
#include "base/log.h"
#include "base/text.h"
#include "training/trainer.h"

namespace octet {

void Trainer::begin() {
  const FoundCheckpoint& found = folder_.resume();
  load_validation_windows();
  require_possible(injector_.of_state(), memory_.model.parameters());
  if (found.folder.empty()) {
    state_ = {};
    look_at(1);
    memory_.model.initialize_masters();
    memory_.data_parallel.start(0);
    memory_.snapshot.take(device_);
    if (ranks_.alone()) {
      state_.init_hash = memory_.snapshot.masters_hash();
    } else {
      RankGroup group = rank_group(*ranks_.control());
      state_.init_hash = memory_.snapshot.masters_hash(group);
    }
    log_info("starting fresh in {}: initial weights {}", folder_.path().string(), state_.init_hash);
  } else {
    restore(found);
    look_at(state_.step + 1);
    memory_.data_parallel.start(state_.step);
    detector_.restore(state_.spike_history);
    rules_.restore(state_.health);
    note_resume();
    // A process that died between its save and the removal of older ones left too many.
    if (saver_.newest() >= 0) saver_.retire();
  }
  if (trains_alone(config_)) {
    if (!found.folder.empty()) note_moments(found.folder);
    kept_ = state_;  // the snapshot is of it
  }
  if (const std::string gather = memory_.data_parallel.describe_gather(); !gather.empty())
    log_info("{}", gather);
  for (const std::string& note : folder_.notes()) log_.event(state_.step, "resume", note);
  ranks_.set_phase("startup", state_.step);
  injector_.enter(Phase::Startup, state_.step);
  if (!goes_on_in_new_segment() && state_.step < config_.run.steps) check_first_step();
  const uint64_t needed =
      static_cast<uint64_t>(config_.checkpoint.keep + 1) * checkpoint_bytes(memory_.snapshot.payloads());
  if (const uint64_t available = free_bytes(folder_.checkpoints()); available < needed)
    log_warning("{}: {} free, but {} checkpoints take {}", folder_.path().string(), human_bytes(available),
                config_.checkpoint.keep + 1, human_bytes(needed));
  folder_.settle();
  folder_.write_status(RunFolder::State::Running, ExitCode::Success, "");
  open_loader();
  ranks_.take_traffic();  // what it took to begin is no step's
}

// A process goes on with the segment that its checkpoint's step belongs to, so where one only begins, the one
// before has just ended.
bool Trainer::goes_on_in_new_segment() const { return segment_.begin > 0 && state_.step == segment_.begin; }

void Trainer::note_resume() {
  if (!goes_on_in_new_segment()) {
    const std::string text = fmt::format("from {}", folder_.resume().folder.filename().string());
    log_info("resuming {} in {}", text, folder_.path().string());
    log_.event(state_.step, "resume", text);
  } else if (segment_.stage > 0 && config_.precision_schedule[segment_.stage - 1].from == segment_.begin) {
    const std::string text = describe_stage(config_, segment_.stage);
    log_info("{}", text);
    log_.event(state_.step + 1, "precision", text);
  }
}

// With another number of ranks the same run is not continued: a checkpoint that says so is not silent.
void Trainer::note_moments(const std::filesystem::path& checkpoint) {
  const int held = Snapshot::ranks_with_moments(checkpoint);
  if (held == ranks_.count()) return;
  const std::string text = fmt::format(
      "the checkpoint holds the moments of {}, this run has {}: rank r goes on with those of rank r mod {}",
      plural(held, "rank"), ranks_.count(), held);
  if (ranks_.leads()) log_warning("{}", text);
  log_.event(state_.step, "resume", text);
}

// What would end the run in its first step or at its first save is found while refusing it leaves no folder.
void Trainer::check_first_step() {
  if (ranks_.leads()) require_disk(folder_.checkpoints(), memory_.snapshot.payloads(), ExitCode::Usage);
  std::vector<int32_t> window(static_cast<size_t>(config_.model.context) + 1);
  for (int64_t i = 0; i < global_batch(config_); ++i) {
    const SampleLocation at = order_.locate(state_.next_sample + i);
    data_.read(at.source, at.window, window);
  }
}

// Masters, moments and scales. After a change of the precision a site starts as in step 1.
void Trainer::restore(const FoundCheckpoint& found) {
  const Manifest& m = found.manifest;
  const std::vector<ConfigChange> changes = compare_configs(m.config.dump(), to_json(config_));
  const bool edited = std::any_of(changes.begin(), changes.end(), [](const ConfigChange& change) {
    return change.pointer.starts_with("/precision");  // or the schedule
  });
  const RunConfig before =
      edited ? parse_config(m.config.dump(), (found.folder / manifest_file).string()) : config_;
  const bool same = segment_of_step(before, m.state.fallbacks, m.state.step).recipe == segment_.recipe;
  memory_.snapshot.load(found.folder, same ? Snapshot::Scales::Restore : Snapshot::Scales::Forget);
  memory_.snapshot.put_back(device_);
  memory_.data_parallel.restore(found.manifest.state.gradient_reduction);
}

void Trainer::open_loader() {
  LoaderOptions o;
  o.seed = config_.run.seed;
  o.windows = window_order(config_);
  o.micro_batch = config_.batch.micro;
  o.global_batch = global_batch(config_);
  o.first_sample = state_.next_sample;
  o.rank = ranks_.rank();
  o.ranks = ranks_.count();
  loader_.reset();
  loader_ = std::make_unique<Loader>(data_, o);
}

// The first windows of the validation order, which has a seed of its own: the same for every run that names
// these shards. A set smaller than the windows asked for is read once; what is left of the last batch is
// ignored.
void Trainer::load_validation_windows() {
  if (!validation_ || config_.evaluation.every <= 0 || config_.evaluation.batches <= 0) return;
  int64_t windows = 0;
  for (size_t s = 0; s < validation_->sources().size(); ++s)
    windows += validation_->windows(static_cast<int>(s));
  const int64_t micro = config_.batch.micro, context = config_.model.context;
  validation_windows_ = std::min(windows, config_.evaluation.batches * micro);
  validation_batches_ = (validation_windows_ + micro - 1) / micro;
  const SampleOrder order(*validation_, 0, WindowOrder::Shuffled);
  std::vector<int32_t> window(static_cast<size_t>(context) + 1);
  int32_t* tokens = memory_.validation_tokens.as<int32_t>();
  int32_t* targets = memory_.validation_targets.as<int32_t>();
  for (int64_t i = 0; i < validation_batches_ * micro; ++i, tokens += context, targets += context) {
    const SampleLocation at = order.locate(std::min(i, validation_windows_ - 1));
    validation_->read(at.source, at.window, window);
    std::copy(window.begin(), window.end() - 1, tokens);
    if (i < validation_windows_)
      std::copy(window.begin() + 1, window.end(), targets);
    else
      std::fill(targets, targets + context, -1);
  }
}

}  // namespace octet
