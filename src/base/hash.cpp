#include "base/hash.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <new>

namespace octet {

uint64_t hash64(const void* data, size_t bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(data, bytes, seed);
}

std::string hex(uint64_t value) { return fmt::format("{:016x}", value); }

struct StreamHash::State {
  XXH3_state_t* state = XXH3_createState();
  State() {
    if (!state) throw std::bad_alloc();
    XXH3_64bits_reset(state);
  }
  ~State() { XXH3_freeState(state); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

StreamHash::StreamHash() : state_(std::make_unique<State>()) {}
StreamHash::~StreamHash() = default;
void StreamHash::update(const void* data, size_t bytes) {
  if (bytes) XXH3_64bits_update(state_->state, data, bytes);
}
uint64_t StreamHash::digest() const { return XXH3_64bits_digest(state_->state); }

}  // namespace octet
