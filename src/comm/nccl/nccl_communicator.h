// Collectives between GPUs, by NCCL. Nothing of CUDA is needed to include this, and nothing of NCCL is loaded
// before a call.
//
// Operations run on a stream of their own, of high priority; events order it with the device's. The host
// waits for nothing: wait() makes the device's stream wait. So when a peer is lost the device's results are
// worthless, and who waits for the device must then call ControlPlane::check() (agreed() does). A watchdog
// thread polls NCCL and the control plane; a failure of either aborts NCCL's kernels, so that the wait for
// the device ends. Not for use inside Device::replay().
//
// NCCL chooses the order of its sums; BF16 is rounded at every hop. A maximum of F32 is not there: by bits,
// as U32. Traffic is what the smallest algorithm sends.
#pragma once
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/control_plane.h"
#include "device/device.h"

namespace octet {

// Collective over the ranks; one rank a GPU. Error(Hardware): NCCL is missing, too old, or does not connect;
// the device has no CUDA stream. Both outlive the communicator.
std::unique_ptr<Communicator> make_nccl_communicator(ControlPlane& control, Device& device);

// "2.28.9", for the ranks' agreement. Error(Hardware) when it is missing or too old.
std::string nccl_version();

}  // namespace octet
