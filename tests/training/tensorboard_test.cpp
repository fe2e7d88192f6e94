#include "training/tensorboard.h"

#include <cstring>

#include "standard_error.h"
#include "training/helpers.h"

using namespace octet;
using namespace octet::testing;

// Golden bytes: wall time 1700000000, made with TensorBoard's own protobuf and CRC code.
TEST_CASE("event records are TensorBoard's, byte for byte") {
  const double wall = 1700000000;
  CHECK(tensorboard_header(wall) ==
        from_hex("1800000000000000a37f4b220900000040fc54d9411a0d627261696e2e4576656e743a32eced8f9d"));
  CHECK(tensorboard_scalar(wall, 10, "loss/train", 2.5f) ==
        from_hex("200000000000000029eda9500900000040fc54d941100a2a130a110a0a6c6f73732f747261696e1500002040b5f"
                 "86fa4"));
  CHECK(tensorboard_session_start(wall, 10) ==
        from_hex("0f000000000000006d532b090900000040fc54d941100a3a020801db485574"));
  CHECK(tensorboard_scalar(wall, 11, "loss/train", 2.5f) != tensorboard_scalar(wall, 10, "loss/train", 2.5f));
}

TEST_CASE("CRC32C has its check value") {
  CHECK(crc32c("123456789", 9) == 0xE3069283u);
  CHECK(crc32c("", 0) == 0u);
  CHECK(crc32c("123456780", 9) != 0xE3069283u);
}

TEST_CASE("a resumed event file begins with a START record at the step resumed from") {
  const TemporaryFolder folder;
  const auto sessions = [](const std::string& bytes) {
    size_t count = 0;
    for (size_t at = 0; at + 12 <= bytes.size();) {
      uint64_t length;
      std::memcpy(&length, bytes.data() + at, 8);
      const std::string event = bytes.substr(at + 12, length);
      // field 2: step 100; field 7: SessionLog {status START}
      if (event.substr(9) == std::string("\x10\x64\x3a\x02\x08\x01", 6)) ++count;
      at += 16 + length;
    }
    return count;
  };
  for (const int64_t step : {0, 100}) {
    const auto sub = folder.path / std::to_string(step);
    std::filesystem::create_directory(sub);
    { TensorBoardLog(sub, step).scalar(step + 1, "train/loss", 3); }
    const auto file = std::filesystem::directory_iterator(sub)->path();
    CHECK(file.filename().string().find("tfevents") != std::string::npos);
    CHECK(sessions(bytes_of(file)) == (step == 0 ? 0u : 1u));
  }
}

TEST_CASE("an event log that cannot be written is silent after one warning") {
  const TemporaryFolder folder;
  const auto write_into = [](const std::filesystem::path& path) {
    return warnings_of([&] {
      TensorBoardLog log(path, 0);
      for (int step = 1; step < 4; ++step) {
        log.scalar(step, "train/loss", 1);
        log.flush();
      }
    });
  };
  const std::string missing = write_into(folder.path / "missing");  // no such folder
  CHECK(count_of(missing, "warning") == 1);
  CHECK(count_of(missing, "No such file or directory; this log ends here") == 1);
  CHECK(write_into(folder.path).empty());
}
