// Faults on demand, to rehearse what a cluster does to a run (`octet train --inject SPEC`, repeatable).
//
//   kill:file-operation=N       the process dies before its N-th change to a file of the run
//   kill:step=K[,phase=P]       ... at phase P of step K. P: step (its begin), update (gradients are reduced,
//                               weights still those of before), evaluation, save; startup, with the step that
//                               the run goes on from
//   hang:step=K[,phase=P]       it stops there (SIGSTOP) until somebody continues it
//   exit:step=K[,phase=P]       it leaves there with exit code 0
//   enospc:write=N[,count=M]    writes N .. N+M-1 inside checkpoints/ find the disk full
//   file-system:free=N,exchange=0   N bytes seem free (a save is refused); names cannot be exchanged
//   memory:available=N          N bytes of memory seem available
//   slow:milliseconds=T         every file of a checkpoint takes T longer
//   nan:step=K[,count=M]        a gradient of steps K .. K+M-1 is NaN
//   spike:step=K[,loss=X]       the loss of step K is X higher (default 10), once
//   align:..., row:...          weights change once, before a step: state_injection.h
//   signal:name=TERM,phase=P[,step=K]   the process gets SIGTERM, INT, USR1 or USR2
//
// Steps count from 1, as in the log. Every rule takes rank=R: only on that rank.
#pragma once
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "training/state_injection.h"

namespace octet {

enum class Phase : uint8_t { Startup, Step, Update, Evaluation, Save };

class Injector {
 public:
  Injector(const std::vector<std::string>& specs, std::filesystem::path folder,
           int rank = 0);  // Error(Usage) names the rule
  ~Injector();             // the file hook goes too
  Injector(const Injector&) = delete;
  Injector& operator=(const Injector&) = delete;

  void enter(Phase phase, int64_t step);  // may raise a signal or end the process
  bool nan(int64_t step) const;
  size_t available_memory() const;  // what is there, unless a rule says otherwise; 0: unknown
  double spike(int64_t step);       // added to the mean loss; 0: none
  const std::vector<StateInjection>& of_state() const { return of_state_; }

 private:
  struct Rule {
    std::string action;
    std::map<std::string, std::string> values;
    bool spent = false;
    int64_t number(const char* key, int64_t otherwise) const;
    const std::string& text(const char* key) const;
  };
  static Rule parse(const std::string& spec);
  void before_file_operation(int operation, const std::filesystem::path& path);

  std::filesystem::path folder_;
  std::vector<Rule> rules_;
  std::vector<StateInjection> of_state_;
  std::atomic<int64_t> operations_{0}, writes_{0};
  bool hooked_ = false;
};

}  // namespace octet
