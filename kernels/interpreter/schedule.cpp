#include "kernels/interpreter/schedule.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <numeric>
#include <string>
#include <string_view>

#include "kernels/launch_error.h"

namespace gpu {
inline namespace interpreted {
namespace {

template <class T>
T number_of(std::string_view text, const char* variable) {
  T number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw LaunchError(std::string(variable) + ": expected a number, found \"" + std::string(text) + "\"");
  }
  return number;
}

// SplitMix64 [Steele, Lea, Flood, OOPSLA 2014]
uint64_t next(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace

Schedule Schedule::from_environment() {
  Schedule schedule;
  if (const char* threads = std::getenv("OCTET_INTERPRETER_THREADS")) {
    schedule.os_threads_ = number_of<int>(threads, "OCTET_INTERPRETER_THREADS");
    if (schedule.os_threads_ < 1 || schedule.os_threads_ > 1024) {
      throw LaunchError("OCTET_INTERPRETER_THREADS: expected 1 to 1024, found " + std::string(threads));
    }
  }
  if (const char* variable = std::getenv("OCTET_INTERPRETER_SCHEDULE")) {
    std::string_view name = variable;
    if (const size_t colon = name.find(':'); name.substr(0, colon) == "shuffled") {
      schedule.kind_ = Kind::Shuffled;
      if (colon != name.npos) {
        schedule.random_ = number_of<uint64_t>(name.substr(colon + 1), "OCTET_INTERPRETER_SCHEDULE");
      }
    } else if (name == "descending") {
      schedule.kind_ = Kind::Descending;
    } else if (name != "ascending") {
      throw LaunchError(
          "OCTET_INTERPRETER_SCHEDULE: expected ascending, descending or shuffled[:SEED], found \"" +
          std::string(name) + "\"");
    }
  }
  return schedule;
}

Schedule Schedule::for_os_thread(int thread) const {
  Schedule own = *this;
  own.random_ += static_cast<uint64_t>(thread) << 32;
  return own;
}

void Schedule::arrange(std::vector<uint32_t>& order) {
  switch (kind_) {
    case Kind::Ascending:
      std::iota(order.begin(), order.end(), 0u);
      break;
    case Kind::Descending:
      std::iota(order.rbegin(), order.rend(), 0u);
      break;
    case Kind::Shuffled:
      std::iota(order.begin(), order.end(), 0u);
      for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next(random_) % i]);
      break;
  }
}

}  // namespace interpreted
}  // namespace gpu
