#include "training/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "training/append_file.h"

namespace octet {
namespace {

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c & 1u) ? (c >> 1) ^ 0x82f63b78u : c >> 1;
    table[i] = c;
  }
  return table;
}

uint32_t masked(uint32_t crc) { return std::rotr(crc, 15) + 0xa282ead8u; }

template <class T>
void put(std::string& out, T value) {  // little-endian, as every machine we run on is
  static_assert(std::endian::native == std::endian::little, "event files are little-endian");
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>((value & 0x7f) | 0x80));
  out.push_back(static_cast<char>(value));
}

// Protobuf tags: field number * 8 + wire type (0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes).
void put_message(std::string& out, char tag, std::string_view payload) {
  out.push_back(tag);
  put_varint(out, payload.size());
  out.append(payload);
}

std::string event(double wall_time, int64_t step) {
  std::string out(1, '\x09');
  put(out, wall_time);
  if (step != 0) {  // proto3 leaves zero out
    out.push_back('\x10');
    put_varint(out, static_cast<uint64_t>(step));
  }
  return out;
}

std::string framed(const std::string& data) {
  std::string out;
  put(out, static_cast<uint64_t>(data.size()));
  put(out, masked(crc32c(out.data(), 8)));
  out += data;
  put(out, masked(crc32c(data.data(), data.size())));
  return out;
}

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 && name[0] ? name : "localhost";
}

}  // namespace

uint32_t crc32c(const void* data, size_t bytes) {
  static constexpr auto table = make_table();
  const auto* p = static_cast<const unsigned char*>(data);
  uint32_t crc = 0xffffffffu;
  for (size_t i = 0; i < bytes; ++i) crc = table[(crc ^ p[i]) & 0xffu] ^ (crc >> 8);
  return ~crc;
}

std::string tensorboard_header(double wall_time) {
  std::string data = event(wall_time, 0);
  put_message(data, '\x1a', "brain.Event:2");
  return framed(data);
}

std::string tensorboard_session_start(double wall_time, int64_t step) {
  std::string data = event(wall_time, step);
  put_message(data, '\x3a', std::string_view("\x08\x01", 2));  // SessionLog.status = START
  return framed(data);
}

std::string tensorboard_scalar(double wall_time, int64_t step, std::string_view tag, float value) {
  std::string scalar, summary;
  put_message(scalar, '\x0a', tag);
  scalar.push_back('\x15');
  put(scalar, value);
  put_message(summary, '\x0a', scalar);
  std::string data = event(wall_time, step);
  put_message(data, '\x2a', summary);
  return framed(data);
}

TensorBoardLog::TensorBoardLog(const std::filesystem::path& folder, int64_t first_step) {
  static std::atomic<int> files{0};  // two runs in one second of one process need two names
  const double now = wall_seconds();
  path_ = folder / fmt::format("events.out.tfevents.{}.{}.{}.{}", static_cast<int64_t>(now), host_name(),
                               getpid(), files++);
  descriptor_ = open_for_append(path_);
  append(tensorboard_header(now));
  if (first_step > 0) restart(first_step);
  flush();
}

TensorBoardLog::~TensorBoardLog() {
  flush();
  if (descriptor_ >= 0) ::close(descriptor_);
}

void TensorBoardLog::append(const std::string& record) noexcept {
  if (descriptor_ < 0) return;
  try {
    pending_ += record;
  } catch (...) {  // out of memory: lose the record, not the run
  }
}

void TensorBoardLog::scalar(int64_t step, std::string_view tag, double value) noexcept {
  try {
    append(tensorboard_scalar(wall_seconds(), step, tag, static_cast<float>(value)));
  } catch (...) {
  }
}

void TensorBoardLog::restart(int64_t step) noexcept {
  try {
    append(tensorboard_session_start(wall_seconds(), step));
  } catch (...) {
  }
}

void TensorBoardLog::flush() noexcept {
  if (descriptor_ < 0 || pending_.empty()) return;
  if (!append_all(descriptor_, path_, pending_)) {
    ::close(descriptor_);
    descriptor_ = -1;
  }
  pending_.clear();
}

}  // namespace octet
