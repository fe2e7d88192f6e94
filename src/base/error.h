// Errors a user can act on: what happened (with file, key, step or rank; found versus expected) and what to
// do.
#pragma once
#include <exception>
#include <string>
#include <utility>

namespace octet {

// Scripts depend on these numbers (docs/operations.md, "Exit codes").
enum class ExitCode : int {
  Success = 0,
  Usage = 2,            // configuration or command line
  Data = 3,             // shards missing, malformed, changed
  Checkpoint = 4,       // none found although required, all corrupt, does not match
  Inconclusive = 10,    // compare: too few tokens for a verdict
  Degraded = 11,        // compare: the variant is worse beyond the threshold
  Diverging = 12,       // compare: the gap grows
  Numerics = 20,        // diverged or non-finite beyond the policy
  Hardware = 30,        // CUDA or NCCL failure on this rank
  PeerLost = 31,        // another rank died or hangs
  Internal = 70,        // a bug
  Output = 74,          // standard output could not be written: what the command made is not whole
  Stopped = 75,         // stopped on request after a successful save: requeue
  StoppedUnsaved = 76,  // stopped on request, the save failed
};

class Error : public std::exception {
 public:
  Error(ExitCode code, std::string what, std::string hint = {})
      : code_(code), what_(std::move(what)), hint_(std::move(hint)) {}
  ExitCode code() const noexcept { return code_; }
  const char* what() const noexcept override { return what_.c_str(); }  // one line: the cause
  const std::string& hint() const noexcept { return hint_; }            // one line: the remedy, may be empty

 private:
  ExitCode code_;
  std::string what_, hint_;
};

// What std::bad_alloc becomes where it ends a command: a mistake in what was asked of this machine.
inline Error out_of_memory() {
  return {ExitCode::Usage, "out of memory",
          "ask for less (batch.micro, model.context, the model), or free memory; octet plan CONFIG shows "
          "what a run "
          "takes"};
}

}  // namespace octet
