#include "training/ranks.h"

#include <algorithm>
#include <cstdlib>

#include "base/log.h"
#include "comm/cpu_communicator.h"
#if defined(OCTET_HAS_NCCL)
#include "comm/nccl/nccl_communicator.h"
#endif

namespace octet {
namespace {

std::unique_ptr<Communicator> make_communicator(ControlPlane& control, Device& device) {
#if defined(OCTET_HAS_NCCL)
  if (device.queue() != nullptr) return make_nccl_communicator(control, device);
#endif
  if (device.queue() != nullptr && control.rank() == 0)
    log_warning(
        "this build of octet has no NCCL: the GPUs exchange gradients and weights through the host, which is "
        "slow; build it where nccl.h is (apt: libnccl-dev)");
  return std::make_unique<CpuCommunicator>(control, device);
}

// At least ten heartbeats within each of the times that are judged.
ControlTiming timing_of(const ParallelOptions& parallel) {
  ControlTiming timing;
  for (const double judged : {parallel.timeout_seconds, parallel.stall_seconds})
    if (judged > 0) timing.heartbeat_seconds = std::min(timing.heartbeat_seconds, judged / 10);
  timing.deadline_seconds = parallel.timeout_seconds;
  timing.stall_seconds = parallel.stall_seconds;
  return timing;
}

}  // namespace

Ranks::Ranks(const Launch& launch, const Agreement& agreement, const ParallelOptions& parallel,
             Device& device)
    : rank_(launch.rank), count_(launch.ranks) {
  if (alone()) return;
  ControlOptions options;
  options.rendezvous.timing = timing_of(parallel);
  if (const char* secret = std::getenv("OCTET_SECRET")) options.rendezvous.secret = secret;
  control_ = std::make_unique<ControlPlane>(launch, agreement, options);
  try {
    communicator_ = make_communicator(*control_, device);
  } catch (const std::exception& error) {
    abort(error.what());
    throw;
  }
}

Ranks::~Ranks() = default;

Traffic Ranks::take_traffic() {
  if (!communicator_) return {};
  const Traffic all = communicator_->traffic();
  Traffic since = all;
  for (size_t i = 0; i < traffic_kinds; ++i) since.sent_bytes[i] -= taken_.sent_bytes[i];
  since.waited_seconds -= taken_.waited_seconds;
  taken_ = all;
  return since;
}
void Ranks::set_phase(const char* phase, int64_t step) {
  if (control_) control_->set_phase(phase, step);
}
void Ranks::check() const {
  if (control_) control_->check();
}
std::string Ranks::from_leader(const std::string& name, const std::string& mine) {
  return control_ ? control_->broadcast(name, mine, 0) : mine;
}
std::vector<std::string> Ranks::all(const std::string& name, const std::string& mine) {
  if (!control_) return {mine};
  return control_->all_gather(name, mine);
}
void Ranks::finish() {
  if (control_) control_->finish();
}
void Ranks::abort(const std::string& reason) noexcept {
  if (control_) control_->abort(reason);
}

}  // namespace octet
