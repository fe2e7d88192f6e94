// A connection for data between each two ranks on CPUs.
//
// Every rank listens, tells the others where through the control plane, connects to each lower rank and takes
// a connection from each higher one. Ranks of one machine use Unix sockets of the abstract namespace (no
// file), others TCP. Whoever connects shows a proof made with a key that rank 0 gave to the ranks of this
// run; others are dropped.
#pragma once
#include <vector>

#include "comm/control_plane.h"
#include "comm/socket.h"

namespace octet {

// Auto: Unix sockets between ranks of one machine; docs/results/cpu-collectives.md says what that gains. Tcp:
// TCP always.
enum class DataTransport : uint8_t { Auto, Tcp };

// By rank; this rank's own is not open. Collective over the ranks. Error(PeerLost) when the run fails
// meanwhile.
std::vector<Socket> connect_ranks(ControlPlane& control, DataTransport transport);

}  // namespace octet
