// The libraries, where this machine has them. They answer questions without a GPU; a test that needs one that
// is not installed says so and passes.
#pragma once
#include <optional>

#include "catch.h"
#include "device/cuda/library.h"
#include "error_of.h"

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

}  // namespace octet
