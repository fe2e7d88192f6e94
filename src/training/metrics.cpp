#include "training/metrics.h"

#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "training/append_file.h"
#include "training/run_files.h"

namespace octet {

Json json_number(double value) {
  if (std::isfinite(value)) return value;
  if (std::isnan(value)) return "NaN";
  return value > 0 ? "Infinity" : "-Infinity";
}

double number_of(const Json& value) {
  if (value.is_number()) return value.get<double>();
  const std::string text = value.is_string() ? value.get<std::string>() : "";
  if (text == "Infinity") return std::numeric_limits<double>::infinity();
  if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
  return std::numeric_limits<double>::quiet_NaN();
}

int64_t rewind_metrics(const std::filesystem::path& path, int64_t step) noexcept {
  try {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored)) return 0;
    std::ifstream in(path, std::ios::binary);
    const std::filesystem::path fresh = path.string() + ".tmp";
    std::ofstream out(fresh, std::ios::binary | std::ios::trunc);
    int64_t dropped = 0;
    for (std::string line; std::getline(in, line);) {
      const bool torn = in.eof();  // no newline after it
      const Json record = Json::parse(line, nullptr, false);
      const bool keep = !torn && record.is_object() && record.contains("step") &&
                        record["step"].is_number_integer() && record["step"].get<int64_t>() <= step;
      if (keep)
        out << line << '\n';
      else
        ++dropped;
    }
    out.close();
    if (in.bad() || !out) {
      std::filesystem::remove(fresh, ignored);
      log_warning("{}: could not be rewritten from step {}; readers drop later records themselves",
                  path.string(), step);
      return 0;
    }
    if (dropped > 0)
      std::filesystem::rename(fresh, path);
    else
      std::filesystem::remove(fresh, ignored);
    return dropped;
  } catch (const std::exception& error) {
    try {
      log_warning("{}: {}", path.string(), error.what());
    } catch (...) {
    }
    return 0;
  }
}

RunLog::RunLog(const RunLogOptions& options) : path_(options.folder / metrics_file) {
  if (options.folder.empty()) return;
  rewind_metrics(path_, options.resumed_from);
  descriptor_ = open_for_append(path_);
  if (options.tensorboard)
    tensorboard_ = std::make_unique<TensorBoardLog>(options.folder, options.resumed_from);
}

RunLog::~RunLog() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void RunLog::write(const char* kind, int64_t step, const Json& fields) noexcept {
  try {
    Json record = {{"kind", kind}, {"step", step}};
    record.update(fields);
    if (descriptor_ >= 0 &&
        !append_all(descriptor_, path_, record.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n")) {
      ::close(descriptor_);
      descriptor_ = -1;
    }
    if (!tensorboard_) return;
    for (const auto& [name, value] : fields.items())
      if (name.find('/') != std::string::npos && value.is_number())
        tensorboard_->scalar(step, name, value.get<double>());
    tensorboard_->flush();
  } catch (...) {  // out of memory while logging: lose the record, not the run
  }
}

void RunLog::event(int64_t step, const char* name, const std::string& message) noexcept {
  try {
    write("event", step, {{"event", name}, {"message", message}, {"time", wall_seconds()}});
  } catch (...) {
  }
}

void RunLog::rewind(int64_t step) noexcept {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
    rewind_metrics(path_, step);
    descriptor_ = open_for_append(path_);
  }
  if (tensorboard_) tensorboard_->restart(step);
}

}  // namespace octet
