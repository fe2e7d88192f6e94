// The ranks of a run find each other: rank 0 listens, the others connect to it, and nobody goes on before all
// are there and agree.
//
// Whoever connects gets a challenge and must answer with a hello that proves it knows job and secret; anybody
// else (port scanners, browsers, ranks of another job) is dropped after stranger_seconds or at its first
// wrong byte, and disturbs nothing. What a refused rank did wrong all ranks are told. Traffic is neither
// encrypted nor signed after that: the proof keeps other jobs and passers-by out, not somebody who can
// rewrite packets.
#pragma once
#include <string>
#include <vector>

#include "comm/agreement.h"
#include "comm/launch.h"
#include "comm/socket.h"
#include "comm/wire.h"

namespace octet {

struct RendezvousOptions {
  double seconds = 300;          // all ranks must be there
  double report_seconds = 10;    // a line about who is missing
  double stranger_seconds = 10;  // to say a proper hello
  // How long a refusal waits for ranks that have not come yet, so that they need not wait for the deadline.
  double linger_seconds = 3;
  std::string secret;    // shared by the ranks of the job, beside Launch::job; may be empty
  std::string host;      // this process's host in messages; "": the machine's name
  ControlTiming timing;  // rank 0's is everybody's
};

// A connection between two ranks.
struct PeerLink {
  int rank = 0;  // at the other end
  Socket socket;
  FrameParser parser;
};

struct Rendezvous {
  std::vector<Peer> peers;  // by rank
  ControlTiming timing;
  std::vector<PeerLink> links;  // of rank 0: to ranks 1, 2, ...; of any other: to rank 0
};

// Error(PeerLost) naming the missing ranks at the deadline; Error(Usage) on every rank when ranks disagree,
// one is there twice, or rank 0 cannot listen.
Rendezvous meet(const Launch& launch, const Agreement& agreement, const RendezvousOptions& options);

// The two halves.
Rendezvous host_rendezvous(const Launch& launch, const Agreement& agreement,
                           const RendezvousOptions& options);
Rendezvous join_rendezvous(const Launch& launch, const Agreement& agreement,
                           const RendezvousOptions& options);

// HMAC key of a job.
std::string job_key(const std::string& job, const std::string& secret);
// All bytes, waiting at most until `until` of monotonic_seconds(); false when the other end is gone or too
// slow.
bool send_all(const Socket& socket, const std::string& bytes, double until);

}  // namespace octet
