#include "comm/local_launcher.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <system_error>

#include "base/clock.h"
#include "base/error.h"
#include "base/text.h"
#include "comm/rank_output.h"
#include "comm/rank_process.h"

namespace octet {
namespace {

constexpr std::array forwarded = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};

bool asks_to_stop(int number) {
  return number == SIGINT || number == SIGTERM || number == SIGHUP || number == SIGUSR2;
}

// Signals as readable events, for as long as the launcher runs. Ranks are started with the mask of before, or
// with what is forwarded to them held back as well.
class SignalEvents {
 public:
  SignalEvents() {
    sigset_t events;
    sigemptyset(&events);
    pthread_sigmask(SIG_SETMASK, nullptr, &held_mask_);
    sigaddset(&events, SIGCHLD);
    sigaddset(&events, SIGTSTP);
    for (const int number : forwarded) {
      struct sigaction now = {};
      sigaction(number, nullptr, &now);
      // nohup means that a lost terminal stops nothing.
      if (number == SIGHUP && now.sa_handler == SIG_IGN) continue;
      sigaddset(&events, number);
      sigaddset(&held_mask_, number);
    }
    // Whoever ignores SIGCHLD has its children's exit codes thrown away; a closed pipe must not kill.
    struct sigaction plain = {};
    plain.sa_handler = SIG_DFL;
    sigaction(SIGCHLD, &plain, &former_child_);
    plain.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &plain, &former_pipe_);
    pthread_sigmask(SIG_BLOCK, &events, &former_mask_);
    fd_ = signalfd(-1, &events, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd_ < 0) {
      const int error = errno;
      restore();
      throw Error(ExitCode::Internal, "signalfd: " + std::generic_category().message(error),
                  "see the limit of open files (ulimit -n)");
    }
  }
  ~SignalEvents() {
    ::close(fd_);
    restore();
  }
  SignalEvents(const SignalEvents&) = delete;
  SignalEvents& operator=(const SignalEvents&) = delete;

  int fd() const { return fd_; }
  const sigset_t& rank_mask(bool hold) const { return hold ? held_mask_ : former_mask_; }
  int next() const {  // the number of a signal that has arrived; 0: none
    signalfd_siginfo info{};
    return ::read(fd_, &info, sizeof info) == sizeof info ? static_cast<int>(info.ssi_signo) : 0;
  }

 private:
  void restore() {
    pthread_sigmask(SIG_SETMASK, &former_mask_, nullptr);
    sigaction(SIGCHLD, &former_child_, nullptr);
    sigaction(SIGPIPE, &former_pipe_, nullptr);
  }
  int fd_ = -1;
  sigset_t former_mask_{}, held_mask_{};
  struct sigaction former_child_ {
  }, former_pipe_{};
};

std::string how(int code) {
  if (code > 128) {
    const char* name = sigabbrev_np(code - 128);
    return name ? fmt::format("was killed by SIG{}", name)
                : fmt::format("was killed by signal {}", code - 128);
  }
  return fmt::format("ended with exit code {}", code);
}

// One start of all ranks, to the end of the last.
class Watch {
 public:
  Watch(const LocalLaunch& launch, const SignalEvents& signals, SlowWriter& output, SlowWriter& errors)
      : launch_(launch), signals_(signals), output_(output), errors_(errors) {}

  void run(int restart) {
    start(restart);
    while (running() > 0 || output_.pending() || errors_.pending()) {
      escalate();
      wait();
    }
  }

  std::span<const RankEnd> ends() const { return ends_; }
  bool stop_requested() const { return stop_requested_; }

 private:
  void start(int restart) {
    // The listening socket is rank 0's alone from here on: connections to a rank that is gone are refused.
    const JobOfRanks job(launch_.ranks);
    RankStart start{launch_.program,
                    launch_.arguments(restart),
                    0,
                    launch_.ranks,
                    restart,
                    launch_.output,
                    launch_.errors,
                    &signals_.rank_mask(launch_.hold_signals)};
    for (; start.rank < launch_.ranks; ++start.rank)
      ranks_.push_back(std::make_unique<RankProcess>(start, job));
  }

  int64_t running() const {
    return std::count_if(ranks_.begin(), ranks_.end(), [](const auto& rank) { return rank->running(); });
  }

  void say(const std::string& text) { errors_.add("launcher: " + text + "\n"); }

  std::string unended() const {
    std::string names;
    for (const auto& rank : ranks_)
      if (rank->running()) names += (names.empty() ? "" : ", ") + std::to_string(rank->rank());
    return (running() > 1 ? "ranks " : "rank ") + names;
  }

  // The deadlines after a failure; 0 while there is none. Ranks that are stopped end by nothing but SIGKILL,
  // and are not waited for once there are no others.
  void escalate() {
    if (running() == 0 || deadline_ == 0) return;
    if (std::all_of(ranks_.begin(), ranks_.end(),
                    [](const auto& rank) { return !rank->running() || rank->stopped(); })) {
      say(fmt::format("{} stopped and would never end: SIGKILL",
                      unended() + (running() > 1 ? " are" : " is")));
      for (const auto& rank : ranks_) rank->end_by(SIGKILL);
      return;
    }
    if (monotonic_seconds() < deadline_) return;
    const int number = terminated_ ? SIGKILL : SIGTERM;
    const double waited = terminated_ ? launch_.deadlines.terminate : launch_.deadlines.peers;
    say(fmt::format("{} did not end within {}{}: SIG{}", unended(), human_duration(waited),
                    terminated_ ? " of SIGTERM" : "", terminated_ ? "KILL" : "TERM"));
    for (const auto& rank : ranks_) rank->end_by(number);
    // Nothing outlives SIGKILL, but a process that hangs in the kernel may take its time to die.
    deadline_ = monotonic_seconds() + launch_.deadlines.terminate;
    terminated_ = true;
  }

  void wait() {
    std::vector<pollfd> fds = {{signals_.fd(), POLLIN, 0}};
    for (SlowWriter* writer : {&output_, &errors_})
      if (writer->pending()) fds.push_back({writer->fd(), POLLOUT, 0});
    for (const auto& rank : ranks_)
      for (const int stream : {1, 2})
        if (rank->stream(stream) >= 0 && !writer(stream).crowded())
          fds.push_back({rank->stream(stream), POLLIN, 0});
    const double left = deadline_ > 0 && running() > 0 ? deadline_ - monotonic_seconds() : 3600;
    const int milliseconds = static_cast<int>(std::clamp(left, 0.0, 3600.0) * 1000) + 1;
    if (::poll(fds.data(), fds.size(), milliseconds) <= 0) return;
    const auto ready = [&](int fd) {
      return std::any_of(fds.begin(), fds.end(),
                         [&](const pollfd& p) { return p.fd == fd && p.revents != 0; });
    };
    for (SlowWriter* writer : {&output_, &errors_})
      if (writer->pending() && ready(writer->fd())) writer->write_some();
    for (const auto& rank : ranks_)
      for (const int stream : {1, 2})
        if (ready(rank->stream(stream))) rank->read(stream, writer(stream));
    if (ready(signals_.fd()))
      while (const int number = signals_.next()) on_signal(number);
  }

  SlowWriter& writer(int stream) { return stream == 1 ? output_ : errors_; }

  void on_signal(int number) {
    if (number == SIGCHLD) return reap();
    if (number == SIGTSTP) return pause();
    stop_requested_ |= asks_to_stop(number);
    for (const auto& rank : ranks_) rank->send(number);
    // A reader that does not read keeps nobody here.
    if (running() == 0 && asks_to_stop(number)) {
      output_.discard();
      errors_.discard();
    }
  }

  // Ctrl-Z: the ranks stand still while the launcher does.
  void pause() {
    for (const auto& rank : ranks_) rank->send(SIGSTOP);
    const double began = monotonic_seconds();
    ::kill(::getpid(), SIGSTOP);
    if (deadline_ > 0) deadline_ += monotonic_seconds() - began;
    for (const auto& rank : ranks_) rank->send(SIGCONT);
  }

  void reap() {
    for (const auto& rank : ranks_) {
      if (!rank->reap()) continue;
      for (const int stream : {1, 2}) rank->drain(stream, writer(stream));
      ends_.push_back({rank->rank(), rank->code(), rank->ended_by_launcher()});
      const int code = rank->code();
      // A rank that is done, or stopped on request, has told its peers; they end in their own time.
      if (code == 0 || code == static_cast<int>(ExitCode::Stopped) || deadline_ > 0) continue;
      deadline_ = monotonic_seconds() + launch_.deadlines.peers;
      if (running() > 0 && !stop_requested_) say(fmt::format("rank {} {}", rank->rank(), how(code)));
    }
  }

  const LocalLaunch& launch_;
  const SignalEvents& signals_;
  SlowWriter &output_, &errors_;
  std::vector<std::unique_ptr<RankProcess>> ranks_;
  std::vector<RankEnd> ends_;
  double deadline_ = 0;
  bool terminated_ = false, stop_requested_ = false;
};

// False when a signal ends the pause: somebody wants the job to stop.
bool pause_before_restart(const SignalEvents& signals, double seconds) {
  for (const double until = monotonic_seconds() + seconds;;) {
    const double left = until - monotonic_seconds();
    if (left <= 0) return true;
    pollfd ready{signals.fd(), POLLIN, 0};
    ::poll(&ready, 1, static_cast<int>(left * 1000) + 1);
    while (const int number = signals.next())
      if (asks_to_stop(number)) return false;
  }
}

// Writes what is still to be said. False when somebody asks to stop meanwhile, with or without a reader.
bool flush(SlowWriter& writer, const SignalEvents& signals) {
  bool go_on = true;
  while (writer.pending()) {
    pollfd ready[] = {{writer.fd(), POLLOUT, 0}, {signals.fd(), POLLIN, 0}};
    if (::poll(ready, 2, -1) <= 0) continue;
    if (ready[0].revents != 0) writer.write_some();
    while (const int number = signals.next()) go_on &= !asks_to_stop(number);
    if (!go_on) writer.discard();
  }
  return go_on;
}

}  // namespace

LaunchVerdict judge(std::span<const RankEnd> ends) {
  if (ends.empty()) return {};
  if (std::all_of(ends.begin(), ends.end(), [&](const RankEnd& end) { return end.code == ends[0].code; }))
    return {ends[0].code, -1};
  constexpr int lost = static_cast<int>(ExitCode::PeerLost), stopped = static_cast<int>(ExitCode::Stopped);
  const auto first = [&](auto condition) -> std::optional<LaunchVerdict> {
    const auto found = std::find_if(ends.begin(), ends.end(), condition);
    if (found == ends.end()) return {};
    return LaunchVerdict{found->code, found->rank};
  };
  if (const auto cause = first([&](const RankEnd& end) {
        return !end.by_launcher && end.code != 0 && end.code != lost && end.code != stopped;
      }))
    return *cause;
  if (const auto peer = first([&](const RankEnd& end) { return end.code == lost; })) return *peer;
  if (const auto request = first([&](const RankEnd& end) { return end.code == stopped; })) return *request;
  return *first([](const RankEnd& end) { return end.code != 0; });
}

bool worth_a_restart(int code) {
  if (code == static_cast<int>(ExitCode::PeerLost) || code == static_cast<int>(ExitCode::Hardware))
    return true;
  const int number = code - 128;
  return number > 0 && number != SIGHUP && number != SIGINT && number != SIGQUIT && number != SIGTERM;
}

int launch_local(const LocalLaunch& launch) {
  const SignalEvents signals;
  SlowWriter output(launch.output), errors(launch.errors);
  for (int restart = 0;; ++restart) {
    Watch watch(launch, signals, output, errors);
    watch.run(restart);
    const LaunchVerdict verdict = judge(watch.ends());
    const int rank = launch.ranks == 1 ? 0 : verdict.rank;
    const std::string cause =
        fmt::format("{} {}", rank < 0 ? "every rank" : fmt::format("rank {}", rank), how(verdict.code));
    const bool again =
        restart < launch.max_restarts && worth_a_restart(verdict.code) && !watch.stop_requested();
    if (again)
      errors.add(fmt::format("launcher: {}; starting {} again (restart {} of {})\n", cause,
                             launch.ranks == 1 ? "it" : fmt::format("all {} ranks", launch.ranks),
                             restart + 1, launch.max_restarts));
    else if (verdict.code != 0 && verdict.code != static_cast<int>(ExitCode::Stopped) && launch.ranks > 1)
      errors.add(fmt::format("launcher: {}{}\n", cause,
                             restart > 0 ? fmt::format(" after {}", plural(restart, "restart")) : ""));
    const bool go_on = flush(errors, signals);
    if (!again || !go_on || !pause_before_restart(signals, launch.deadlines.before_restart))
      return verdict.code;
  }
}

}  // namespace octet
