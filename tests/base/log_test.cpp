#include "base/log.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/version.h"
#include "catch.h"
#include "standard_error.h"

using namespace octet;

using octet::testing::standard_error_of;

TEST_CASE("a message is one line and cannot steer the terminal") {
  const std::string text = standard_error_of([] { log_warning("shard {}", "a\x1b[2J\nb"); });
  CHECK(text.find("shard a\\x1b[2J\\x0ab\n") != std::string::npos);
  CHECK(text.find("warning") != std::string::npos);
  CHECK(std::count(text.begin(), text.end(), '\n') == 1);
}

TEST_CASE("messages below the level are not written") {
  CHECK(standard_error_of([] { log_debug("hidden"); }).empty());
  set_log_level(LogLevel::Debug);
  CHECK_FALSE(standard_error_of([] { log_debug("shown"); }).empty());
  set_log_level(LogLevel::Error);
  CHECK(standard_error_of([] { log_info("hidden"); }).empty());
  set_log_level(LogLevel::Info);
}

TEST_CASE("a closed standard error does not stop the program") {
  const int kept = ::dup(2);
  ::close(2);
  CHECK_NOTHROW(log_info("nobody reads this"));
  ::dup2(kept, 2);
  ::close(kept);
}

TEST_CASE("the build summary names the compiler and the libraries of the floor") {
  CHECK(build_summary().find("nlohmann-json") != std::string::npos);
  CHECK(build_summary().find("gcc") + build_summary().find("clang") != 2 * std::string::npos);
  CHECK(version() == "0.1.0");
}

TEST_CASE("monotonic time goes on and wall time is after this code was written") {
  const double before = monotonic_seconds();
  CHECK(monotonic_seconds() >= before);
  CHECK(wall_seconds() > 1.76e9);
}
