#include "base/signals.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <iterator>

#include "base/error.h"

namespace octet {
namespace {

// Signal handlers reach nothing but objects of static storage; lock-free atomics are what they may touch.
std::atomic<int> stop_signal{0};     // the first that asked to stop
std::atomic<int> urgent_signals{0};  // SIGINT and SIGTERM so far
std::atomic<bool> save_request{false};
std::atomic<bool> guarded{false};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

constexpr int handled[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE};
std::array<struct sigaction, std::size(handled)> former;
sigset_t former_mask;

void on_signal(int number) {
  const int saved = errno;
  if (number == SIGUSR1) {
    save_request = true;
  } else {
    int none = 0;
    stop_signal.compare_exchange_strong(none, number);
    if ((number == SIGTERM || number == SIGINT) && urgent_signals.fetch_add(1) > 0)
      _exit(static_cast<int>(ExitCode::StoppedUnsaved));
  }
  errno = saved;
}

}  // namespace

SignalGuard::SignalGuard() {
  if (guarded.exchange(true))
    throw Error(ExitCode::Internal, "two SignalGuards at once: a process trains one run at a time");
  stop_signal = 0;
  urgent_signals = 0;
  save_request = false;
  for (size_t i = 0; i < std::size(handled); ++i) {
    struct sigaction action = {};
    action.sa_handler = handled[i] == SIGPIPE ? SIG_IGN : on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(handled[i], &action, &former[i]);
    // nohup means that a lost terminal stops nothing.
    if (handled[i] == SIGHUP && former[i].sa_handler == SIG_IGN) sigaction(SIGHUP, &former[i], nullptr);
  }
  // A launcher blocks them until here; those that have come meanwhile are delivered now.
  sigset_t taken;
  sigemptyset(&taken);
  for (const int number : handled) sigaddset(&taken, number);
  pthread_sigmask(SIG_UNBLOCK, &taken, &former_mask);
}

SignalGuard::~SignalGuard() {
  pthread_sigmask(SIG_SETMASK, &former_mask, nullptr);
  for (size_t i = 0; i < std::size(handled); ++i) sigaction(handled[i], &former[i], nullptr);
  guarded = false;
}

bool SignalGuard::stop_requested() const { return stop_signal != 0; }
bool SignalGuard::take_save_request() { return save_request.exchange(false); }
const char* SignalGuard::stop_reason() const {
  switch (stop_signal) {
    case 0:
      return "";
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    case SIGHUP:
      return "SIGHUP";
    default:
      return "SIGUSR2";
  }
}

}  // namespace octet
