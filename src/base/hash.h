// XXH3 of bytes, files and streams, as numbers and as hex.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace octet {
uint64_t hash64(const void* data, size_t bytes, uint64_t seed = 0);
std::string hex(uint64_t value);  // 16 lower-case digits

class StreamHash {  // the same value as hash64 of the concatenation (seed 0)
 public:
  StreamHash();
  ~StreamHash();
  void update(const void* data, size_t bytes);
  uint64_t digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};
}  // namespace octet
