#include "tensor/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/files.h"

namespace octet {

const char* name_of(Category c) {
  switch (c) {
    case Category::Masters:
      return "master weights";
    case Category::Gradients:
      return "gradients";
    case Category::FirstMoments:
      return "first moments";
    case Category::SecondMoments:
      return "second moments";
    case Category::OuterStates:
      return "outer states";
    case Category::WorkingWeights:
      return "working weights";
    case Category::ScaleTable:
      return "scale table";
    case Category::Activations:
      return "activations";
    case Category::Scratch:
      return "scratch";
    case Category::Head:
      return "head and loss";
    case Category::Batch:
      return "batch";
    case Category::Other:
      return "other";
  }
  return "?";
}

Tensor MemoryPlan::add(const std::string& name, Category category, DType dtype, Shape shape) {
  uint64_t bytes = size_of(dtype), end = 0;
  bool fits = shape.rank() > 0;
  for (int i = 0; i < shape.rank(); ++i)
    fits = fits && shape[i] >= 0 && multiply(bytes, static_cast<uint64_t>(shape[i]), bytes);
  // Room for the padding too: everything starts and ends on a multiple of the alignment.
  fits = fits && octet::add(top_, bytes, end) && octet::add(end, alignment - 1, end);
  if (!fits)
    throw Error(ExitCode::Internal,
                fmt::format("memory plan: \"{}\" has the impossible shape {}", name, to_string(shape)));
  end = end / alignment * alignment;
  if (!measuring()) {
    if (reinterpret_cast<uintptr_t>(base_) % alignment != 0)
      throw Error(ExitCode::Internal,
                  fmt::format("memory plan: the arena is not {}-byte aligned", alignment));
    if (end > capacity_)
      throw Error(ExitCode::Internal,
                  fmt::format("memory plan: \"{}\" {} needs bytes [{}, {}) of an arena of {}", name,
                              to_string(shape), top_, end, capacity_),
                  "the measuring pass and the placing pass differ: please report this");
  }
  items_.push_back({name, category, dtype, shape, static_cast<size_t>(bytes), top_});
  Tensor tensor{measuring() ? nullptr : base_ + top_, dtype, shape};
  top_ = static_cast<size_t>(end);
  peak_ = std::max(peak_, top_);
  return tensor;
}

}  // namespace octet
