// Lists what a stretch of code takes from the heap, in all threads: malloc and its relatives are replaced in
// this test program, so that operator new, the C library and every shared library are seen alike.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace octet::testing {

struct HeapAllocation {
  size_t bytes;
  std::string library;  // file name of the program or shared library whose code asked
};

class AllocationWatch {
 public:
  AllocationWatch();  // one at a time
  ~AllocationWatch();
  AllocationWatch(const AllocationWatch&) = delete;
  AllocationWatch& operator=(const AllocationWatch&) = delete;

  // False where the allocator is not ours to replace (sanitizers): it sees nothing then.
  static bool works();
  void stop();
  // Every allocation of at least `smallest` bytes.
  std::vector<HeapAllocation> of_at_least(size_t smallest) const;
};

}  // namespace octet::testing
