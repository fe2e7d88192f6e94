// What embedding_backward needs of the workspace: its tokens sorted by id.
#pragma once
#include <cstddef>
#include <cstdint>

namespace octet {

inline size_t embedding_scratch_bytes(int64_t tokens) {
  return static_cast<size_t>(tokens) * sizeof(uint64_t);
}

}  // namespace octet
