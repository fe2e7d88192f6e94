// TensorBoard event files, written by hand: a record is length, masked CRC32C of the length, an Event
// protobuf and its masked CRC32C.  [tensorflow: core/lib/io/record_writer.h, core/util/event.proto]
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace octet {

uint32_t crc32c(const void* data, size_t bytes);  // Castagnoli; crc32c("123456789") = 0xE3069283

// One framed record each; the golden bytes are in tests/training/tensorboard_test.cpp.
std::string tensorboard_header(double wall_time);                       // "brain.Event:2", first in a file
std::string tensorboard_session_start(double wall_time, int64_t step);  // readers forget later steps
std::string tensorboard_scalar(double wall_time, int64_t step, std::string_view tag, float value);

// One event file of one process. A fault warns once and switches the log off; training never notices (F48).
class TensorBoardLog {
 public:
  // `first_step` > 0 (a resume): a START record makes readers drop what earlier files say beyond that step.
  TensorBoardLog(const std::filesystem::path& folder, int64_t first_step);
  ~TensorBoardLog();
  TensorBoardLog(const TensorBoardLog&) = delete;
  TensorBoardLog& operator=(const TensorBoardLog&) = delete;

  void scalar(int64_t step, std::string_view tag, double value) noexcept;
  void restart(int64_t step) noexcept;  // a rollback within the process
  void flush() noexcept;                // once a step: one write

 private:
  void append(const std::string& record) noexcept;

  std::filesystem::path path_;
  std::string pending_;
  int descriptor_ = -1;
};

}  // namespace octet
