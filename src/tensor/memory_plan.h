// All memory is planned before step 0. The same code runs twice: once measuring (tensors without data), once
// placing them in an arena of the measured size; so the printed table and the run cannot disagree.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace octet {

enum class Category : uint8_t {
  Masters,
  Gradients,
  FirstMoments,
  SecondMoments,
  OuterStates,  // of local SGD
  WorkingWeights,
  ScaleTable,
  Activations,
  Scratch,
  Head,
  Batch,
  Other
};
const char* name_of(Category c);

class MemoryPlan {
 public:
  static constexpr size_t alignment = 256;

  MemoryPlan() = default;                      // measuring
  MemoryPlan(void* arena, size_t arena_bytes)  // placing; throws Error(Internal) when the arena is too small
      : base_(static_cast<std::byte*>(arena)), capacity_(arena_bytes) {}

  // A buffer that lives until the end of the enclosing Lifetime (or of the run).
  Tensor add(const std::string& name, Category category, DType dtype, Shape shape);

  // Buffers added while a Lifetime exists give their bytes back when it ends: what is planned next may reuse
  // them.
  class Lifetime {
   public:
    explicit Lifetime(MemoryPlan& plan) : plan_(plan), mark_(plan.top_) {}
    ~Lifetime() { plan_.top_ = mark_; }
    Lifetime(const Lifetime&) = delete;
    Lifetime& operator=(const Lifetime&) = delete;

   private:
    MemoryPlan& plan_;
    size_t mark_;
  };

  struct Item {
    std::string name;
    Category category;
    DType dtype;
    Shape shape;
    size_t bytes, offset;
  };
  const std::vector<Item>& items() const { return items_; }
  size_t peak_bytes() const { return peak_; }  // what the arena must hold
  bool measuring() const { return base_ == nullptr; }

 private:
  std::byte* base_ = nullptr;
  size_t capacity_ = 0, top_ = 0, peak_ = 0;
  std::vector<Item> items_;
};

}  // namespace octet
