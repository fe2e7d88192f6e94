#pragma once
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "catch.h"
#include "training/tiny_run.h"

namespace octet::testing {

// Trains in a child that the injected fault may end; the exit code, as a shell would see it. The runs here
// compute on one thread, so the child needs none of its parent's.
inline int train_in_child(TinyRun& run, const std::vector<std::string>& inject) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const int nowhere = ::open("/dev/null", O_WRONLY);
    dup2(nowhere, STDERR_FILENO);
    int code = 99;
    try {
      code = static_cast<int>(run.go(inject).code);
    } catch (const Error& error) {
      code = static_cast<int>(error.code());
    } catch (...) {
    }
    _exit(code);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace octet::testing
