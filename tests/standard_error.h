// What an action writes to standard error, where the log goes.
#pragma once
#include <unistd.h>

#include <cstdio>
#include <string>

#include "base/log.h"
#include "catch.h"

namespace octet::testing {

template <class Action>
std::string standard_error_of(Action action) {
  std::FILE* file = std::tmpfile();
  REQUIRE(file);
  const int kept = ::dup(2);
  ::dup2(::fileno(file), 2);
  action();
  std::fflush(stderr);
  ::dup2(kept, 2);
  ::close(kept);
  std::rewind(file);
  std::string text;
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) text += static_cast<char>(c);
  std::fclose(file);
  return text;
}

// The warnings of an action. Messages below stay away, whatever level the test before has left.
template <class Action>
std::string warnings_of(Action action) {
  set_log_level(LogLevel::Warning);
  return standard_error_of(action);
}

inline size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

}  // namespace octet::testing
