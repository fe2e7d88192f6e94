#pragma once
#include <utility>

#include "base/error.h"
#include "catch.h"

namespace octet {

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
