// A folder that goes away, and small checkpoints of made-up tensors.
#pragma once
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "catch.h"
#include "training/checkpoint.h"

namespace octet::testing {

// Memory where there is some: a thousand saves sync ten thousand files, which a disk takes minutes for.
inline std::filesystem::path scratch() {
  const std::filesystem::path memory = "/dev/shm";
  return ::access(memory.c_str(), W_OK) == 0 ? memory : std::filesystem::temp_directory_path();
}

struct TemporaryFolder {
  std::filesystem::path path;
  TemporaryFolder() {
    std::string name = (scratch() / "octet-test-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()));
    path = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
};

inline std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void put_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

inline std::string from_hex(const std::string& text) {
  std::string bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2)
    bytes.push_back(static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16)));
  return bytes;
}

// What an Error says, or "" when nothing was thrown.
template <class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

struct SmallState {
  std::vector<float> weight, inverse;
  std::vector<uint8_t> codes;
  std::vector<Payload> payloads;

  explicit SmallState(float value = 1.0f) : weight(6, value), inverse(1, 0.5f), codes{1, 2, 3, 4, 5, 6} {
    payloads.push_back({"masters.safetensors", {{"head.weight", {weight.data(), DType::F32, {2, 3}}}}});
    payloads.push_back({"moments.safetensors",
                        {{"head.weight.first", {codes.data(), DType::E4M3, {2, 3}}},
                         {"head.weight.first.inverse_scale", {inverse.data(), DType::F32, {1}}}}});
  }
  SmallState(const SmallState&) = delete;
  SmallState& operator=(const SmallState&) = delete;
};

inline Manifest small_manifest(int64_t step) {
  Manifest m;
  m.config = {{"run", {{"name", "small"}, {"seed", 1}}}};
  m.config_hash = "0123456789abcdef";
  m.data_fingerprint = "f";
  m.version = "0.0.0";
  m.state.step = step;
  m.state.tokens = step * 10;
  m.state.next_sample = step * 2;
  m.state.loss = 2.5;
  m.state.spike_history = {2.7182818284590452, 3.25, 0.1};
  return m;
}

}  // namespace octet::testing
