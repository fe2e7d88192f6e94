#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

#include "base/text.h"

namespace octet {
namespace {

spdlog::level::level_enum level_of(LogLevel level) {
  switch (level) {
    case LogLevel::Debug:
      return spdlog::level::debug;
    case LogLevel::Info:
      return spdlog::level::info;
    case LogLevel::Warning:
      return spdlog::level::warn;
    default:
      return spdlog::level::err;
  }
}

// Standard error belongs to the process, so its logger does too. It is never destroyed: threads may still
// log while the process ends.
spdlog::logger& standard_error() {
  static spdlog::logger* const logger = [] {
    auto* created = new spdlog::logger("octet", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    created->set_pattern("%H:%M:%S %^%l%$ %v");
    created->set_error_handler([](const std::string&) {});  // a broken terminal must not stop a run
    return created;
  }();
  return *logger;
}

}  // namespace

void log_message(LogLevel level, const std::string& text) {
  try {
    standard_error().log(level_of(level), spdlog::string_view_t(escape_control(text)));
  } catch (...) {
    // Logging is best effort: nothing that happens here may reach training.
  }
}

void set_log_level(LogLevel level) { standard_error().set_level(level_of(level)); }

}  // namespace octet
