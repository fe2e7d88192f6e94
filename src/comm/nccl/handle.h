// An NCCL communicator that never blocks: every call returns at once, and its state is polled beside the
// control plane, so that a lost peer ends the wait.  [NCCL user guide, "Error handling and communicator
// abort"]
#pragma once
#include <nccl.h>

#include <functional>
#include <mutex>
#include <optional>
#include <string>

#include "comm/control_plane.h"
#include "comm/nccl/library.h"

namespace octet {

class NcclHandle {
 public:
  // Collective over the ranks; the unique id travels over the control plane. Error(Hardware) with NCCL's own
  // words, or when the ranks are not connected after `seconds`; Error(PeerLost).
  NcclHandle(const Nccl& nccl, ControlPlane& control, double seconds = 300);
  // Finishes what was enqueued, unless the run has failed: then it is aborted.
  ~NcclHandle();
  NcclHandle(const NcclHandle&) = delete;
  NcclHandle& operator=(const NcclHandle&) = delete;

  // Calls NCCL and returns once its work is on its stream: only then may events follow it there.
  void issue(const std::string& what, const std::function<ncclResult_t(ncclComm_t)>& call);
  // An error of work that is under way; nullopt: none. For the watchdog.
  std::optional<ncclResult_t> asynchronous_error();
  // The run fails with this error; what it throws says whether a lost peer is the reason. For the watchdog
  // too.
  [[noreturn]] void fail(const std::string& what, ncclResult_t error);
  // Ends kernels that wait for a lost peer. May itself hang; the control plane then ends the process.
  void abort() noexcept;

 private:
  ncclResult_t state();  // ncclInProgress: not yet
  void settle(const std::string& what, double seconds);

  const Nccl& nccl_;
  ControlPlane& control_;
  std::mutex mutex_;
  ncclComm_t comm_ = nullptr;  // null once aborted
};

}  // namespace octet
