#include "training/allocation_watch.h"

#include <dlfcn.h>
#include <errno.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <new>

namespace octet::testing {
namespace {

struct Record {
  size_t bytes;
  void* caller;
};
std::array<Record, 1 << 14> records;
std::atomic<size_t> count{0};
std::atomic<bool> watching{false};

// Only stores: nothing here may allocate.
[[maybe_unused]] void note(size_t bytes, void* caller) {  // unused under sanitizers
  if (!watching.load(std::memory_order_relaxed)) return;
  const size_t at = count.fetch_add(1);
  if (at < records.size()) records[at] = {bytes, caller};
}

}  // namespace

AllocationWatch::AllocationWatch() {
  count = 0;
  watching = true;
}
AllocationWatch::~AllocationWatch() { stop(); }
void AllocationWatch::stop() { watching = false; }

bool AllocationWatch::works() {
#if defined(OCTET_SANITIZED) || !defined(__GLIBC__)
  return false;
#else
  return true;
#endif
}

std::vector<HeapAllocation> AllocationWatch::of_at_least(size_t smallest) const {
  std::vector<HeapAllocation> found;
  for (size_t i = 0; i < std::min(count.load(), records.size()); ++i) {
    if (records[i].bytes < smallest) continue;
    Dl_info info{};
    const bool known = dladdr(records[i].caller, &info) != 0 && info.dli_fname;
    found.push_back(
        {records[i].bytes, known ? std::filesystem::path(info.dli_fname).filename().string() : "unknown"});
  }
  return found;
}

}  // namespace octet::testing

#if !defined(OCTET_SANITIZED) && defined(__GLIBC__)

// The allocator behind the names we take.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) {
  octet::testing::note(bytes, __builtin_return_address(0));
  return __libc_malloc(bytes);
}
void* calloc(size_t n, size_t bytes) {
  octet::testing::note(n * bytes, __builtin_return_address(0));
  return __libc_calloc(n, bytes);
}
void* realloc(void* old, size_t bytes) {
  octet::testing::note(bytes, __builtin_return_address(0));
  return __libc_realloc(old, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  octet::testing::note(bytes, __builtin_return_address(0));
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  octet::testing::note(bytes, __builtin_return_address(0));
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** to, size_t alignment, size_t bytes) {
  octet::testing::note(bytes, __builtin_return_address(0));
  void* memory = __libc_memalign(alignment, bytes);
  if (!memory) return ENOMEM;
  *to = memory;
  return 0;
}
}

// libstdc++ would ask in everybody's name.
void* operator new(size_t bytes) {
  octet::testing::note(bytes, __builtin_return_address(0));
  if (void* memory = __libc_malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void* operator new(size_t bytes, std::align_val_t alignment) {
  octet::testing::note(bytes, __builtin_return_address(0));
  if (void* memory = __libc_memalign(static_cast<size_t>(alignment), bytes)) return memory;
  throw std::bad_alloc();
}

#endif
