// Whatever the interpreter promises to find is planted in planted_bugs.cpp, found here, and not found in the
// corrected kernel beside it.
#include <array>
#include <cstdio>
#include <regex>
#include <string>
#include <vector>

#include "catch.h"

namespace {

struct ProgramRun {
  int status;
  std::string output;
};
ProgramRun run(const std::string& bug, const std::string& environment = "") {
  const std::string command = environment + " " OCTET_PLANTED_BUGS " " + bug + " 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe);
  std::string output;
  std::array<char, 4096> part;
  for (size_t n; (n = fread(part.data(), 1, part.size(), pipe)) > 0;) output.append(part.data(), n);
  return {pclose(pipe), output};
}

void check_found(const std::string& bug, const std::vector<std::string>& said) {
  for (const char* schedule : {"ascending", "descending", "shuffled:7"}) {
    const std::string environment = std::string("OCTET_INTERPRETER_SCHEDULE=") + schedule;
    const ProgramRun wrong = run(bug, environment), fixed = run(bug + " fixed", environment);
    INFO(bug << ", " << schedule << "\n" << wrong.output << "\nfixed:\n" << fixed.output);
    CHECK(wrong.status != 0);
    for (const std::string& pattern : said) {
      INFO(pattern);
      CHECK(std::regex_search(wrong.output, std::regex(pattern)));
    }
    CHECK(fixed.status == 0);
    CHECK(fixed.output.empty());
  }
}

const std::string sanitizers = OCTET_SANITIZERS;
bool built_with(const char* sanitizer) { return sanitizers.find(sanitizer) != std::string::npos; }

}  // namespace

TEST_CASE(
    "a barrier that some threads never reach is a deadlock, told with kernel, block, threads and places") {
  check_found(
      "unreached_barrier",
      {R"(kernel interpreter: kernel .*unreached_barrier<false>.*launched by .* block \(0,0,0\): )"
       R"(deadlock: threads 0-39 wait at __syncthreads \(.*planted_bugs.cpp:\d+\); threads 40-63 left the kernel)"});
}

TEST_CASE("threads at two different barriers are told apart") {
  check_found("divergent_barriers",
              {R"(different places: thread 0 at __syncthreads \(.*\), thread 32 at __syncthreads \()"});
}

TEST_CASE("a shuffle that some lanes of its mask never reach is a deadlock") {
  check_found("divergent_shuffle",
              {R"(deadlock: threads 0-15 wait at __shfl_xor_sync \(.*\) with mask 0xffffffff; )"
               R"(threads 16-31 left the kernel)"});
}

TEST_CASE("one warp in two different shuffles is told apart") {
  check_found("divergent_shuffles", {R"(different places: thread \d+ at __shfl_xor_sync \(.*\), thread)"});
}

TEST_CASE("a shuffle from a lane outside the mask, or by one, is told") {
  check_found("inactive_lane", {R"(lane \d+ reads the inactive lane 16, which is not in mask 0x0000ffff)"});
  check_found("outside_own_mask", {R"(lane \d+ is not in its own mask 0x0000ffff)"});
}

TEST_CASE("a misaligned vector access is told with its size and place") {
  check_found("misaligned_load",
              {R"(misaligned access at gpu::load \(.*planted_bugs.cpp:\d+\): 16 bytes at an address )"
               R"(that is 4 modulo 16)"});
  check_found("misaligned_store", {R"(8 bytes at an address that is 4 modulo 8)"});
}

TEST_CASE("more shared memory or threads than every GPU has are refused") {
  check_found("unasked_shared",
              {"too much shared memory without asking: with more the block has 3072 bytes"});
  check_found("too_much_static_shared", {"with second the block has 49156 bytes of static"});
  check_found("too_much_dynamic_shared", {"LaunchError: .*101377 bytes of dynamic shared memory"});
  check_found("missing_dynamic_shared", {"shared_bytes is 0"});
  check_found("too_many_threads", {"LaunchError: .*block 32x33x1: a block has at most 1024 threads"});
  check_found("empty_grid", {"LaunchError: .*grid 0x1x1.*: a size is 0"});
}

TEST_CASE("a read of shared memory that nobody wrote gives NaN") {
  check_found("uninitialised_shared", {"wrong result: 32 of 64 values, 32 of them NaN"});
}

TEST_CASE("a missing barrier gives a wrong result in every schedule, and is a race to the thread sanitizer") {
  if (built_with("thread")) {
    check_found("missing_barrier", {"ThreadSanitizer: data race"});
  } else {
    check_found("missing_barrier", {"wrong result: (32|[1-9][0-9]?) of 64 values, [1-9][0-9]* of them NaN"});
  }
}

TEST_CASE("the address sanitizer sees overruns of global and shared memory") {
  if (!built_with("address")) return;
  check_found("global_overrun", {"AddressSanitizer: heap-buffer-overflow", "global_overrun"});
  check_found("static_shared_overrun", {"AddressSanitizer: heap-buffer-overflow", "static_shared_overrun"});
  check_found("dynamic_shared_overrun", {"AddressSanitizer: heap-buffer-overflow", "dynamic_shared_overrun"});
}

TEST_CASE("the undefined-behaviour sanitizer sees overflow and indices") {
  if (!built_with("undefined")) return;
  check_found("integer_overflow", {"signed integer overflow"});
  check_found("static_shared_index", {"index 64 out of bounds"});
}

TEST_CASE("the thread sanitizer sees races within a block, in any phase, and between blocks") {
  if (!built_with("thread")) return;
  for (const char* bug : {"missing_second_barrier", "missing_syncwarp", "race_between_blocks",
                          "race_of_distant_blocks", "missing_fence"}) {
    check_found(bug, {"ThreadSanitizer: data race", bug});
  }
}
