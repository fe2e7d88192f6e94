// The built-in launcher of one machine: a process per rank, watched until all of them have ended.
//
// Every rank gets OCTET_RANK, OCTET_RANKS, OCTET_LOCAL_RANK, OCTET_LOCAL_RANKS, OCTET_RENDEZVOUS (127.0.0.1
// and a port that is listened on already), OCTET_JOB (random, for each start) and OCTET_RESTART; rank 0 also
// OCTET_RENDEZVOUS_FD, the listening socket. OMP_NUM_THREADS, where it is not set, shares the cores among the
// ranks. Standard input is empty. Ranks are process groups of their own, so that Ctrl-C reaches each of them
// once, by way of the launcher, and a second Ctrl-C is a second one. A launcher that is killed takes its
// ranks with it.
#pragma once
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace octet {

// Seconds. A rank that is stopped (SIGSTOP) is killed as soon as a failure leaves no others.
struct LauncherDeadlines {
  double peers = 45;      // after one rank has failed: for the others to notice, say so and end by themselves
  double terminate = 15;  // after SIGTERM to those that have not; then SIGKILL
  double before_restart = 1;
};

struct LocalLaunch {
  std::string program = "/proc/self/exe";
  // Of every rank in one start: argv, [0] included. `restart` counts from 0.
  std::function<std::vector<std::string>(int restart)> arguments;
  int ranks = 1;
  int max_restarts = 0;
  LauncherDeadlines deadlines = {};
  // The forwarded signals are blocked in a new rank until it unblocks them, as SignalGuard does: one that
  // comes before its handlers waits for them. False: for programs that never do.
  bool hold_signals = true;
  int output = 1, errors = 2;  // descriptors: rank 0 writes to them itself, lines of the others are prefixed
};

// Starts the ranks, forwards SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and job control to them, and returns
// when the last has ended (and restarts are used up, pointless or unwanted) with the exit code of judge().
// Error when a process cannot be started; then none is left either. One at a time in a process, from its only
// thread.
int launch_local(const LocalLaunch& launch);

// How one rank ended; `code` is 128 + n for signal n.
struct RankEnd {
  int rank = 0, code = 0;
  bool by_launcher = false;  // the launcher's SIGTERM or SIGKILL ended it: it did not fail by itself
};
struct LaunchVerdict {
  int code = 0;
  int rank = -1;  // whose end decided; -1: all agree
};
// One code for all: the one they agree on; otherwise that of the first rank that failed by itself and not for
// the loss of a peer (31); otherwise 31, if a rank lost a peer; otherwise the request to stop (75).
// `ends` in order of time.
LaunchVerdict judge(std::span<const RankEnd> ends);
// Whether the same start may fare better: a peer was lost, the hardware failed, or a signal that nobody sends
// to stop a program (neither of HUP, INT, QUIT, TERM) killed a rank.
bool worth_a_restart(int code);

}  // namespace octet
