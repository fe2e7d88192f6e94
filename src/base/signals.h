// SIGTERM and SIGINT ask to save and stop, SIGUSR1 to save and go on, SIGUSR2 and SIGHUP (a lost
// terminal, unless it was ignored: nohup) to save and stop; a second
// SIGINT or SIGTERM leaves at once. Handlers only set flags; SIGPIPE is ignored. Signals that were blocked
// are not while a guard lives, so that whoever starts a process can hold them back until it takes them. One
// SignalGuard lives while a run does.
#pragma once
namespace octet {

class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();  // former handlers again
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;
  bool stop_requested() const;
  bool take_save_request();         // true once per request
  const char* stop_reason() const;  // "SIGTERM", ... or ""
};

}  // namespace octet
