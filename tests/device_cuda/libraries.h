// The libraries, where this machine has them. They answer questions without a GPU; a test that needs one that
// is not installed says so and passes.
#pragma once
#include <optional>

#include "base/error.h"
#include "catch.h"
#include "device/cuda/library.h"

namespace octet {

template <class Table>
std::optional<Table> installed(Table (*open)()) {
  try {
    return open();
  } catch (const Error& error) {
    WARN("skipped: " << error.what());
    return std::nullopt;
  }
}

// The error that `call` throws; none is a failure of the test.
template <class Call>
Error error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  FAIL("nothing was thrown");
  return Error(ExitCode::Internal, "");
}

}  // namespace octet
