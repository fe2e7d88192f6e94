#include "tensor/memory_plan.h"

#include <cstdint>

#include "base/error.h"
#include "catch.h"

using namespace octet;

namespace {
// A small model's plan; returns the tensors so that the two passes can be compared.
std::vector<Tensor> plan_something(MemoryPlan& plan) {
  std::vector<Tensor> tensors;
  tensors.push_back(plan.add("w", Category::Masters, DType::F32, {3, 5}));
  {
    const MemoryPlan::Lifetime lifetime(plan);
    tensors.push_back(plan.add("a", Category::Activations, DType::BF16, {100, 7}));
    tensors.push_back(plan.add("b", Category::Activations, DType::U8, {1}));
  }
  {
    const MemoryPlan::Lifetime lifetime(plan);
    tensors.push_back(plan.add("c", Category::Scratch, DType::F64, {100}));
  }
  tensors.push_back(plan.add("d", Category::Batch, DType::I32, {10}));
  return tensors;
}
}  // namespace

TEST_CASE("measuring and placing agree on every offset, and placed tensors lie in the arena") {
  MemoryPlan measuring;
  CHECK(measuring.measuring());
  for (const Tensor& t : plan_something(measuring)) {
    CHECK(t.data == nullptr);
    CHECK_FALSE(t.empty());
  }
  CHECK(measuring.peak_bytes() == 256 + 1536 + 256);  // w, then a and b; c and d reuse their place
  std::vector<std::byte> memory(measuring.peak_bytes() + MemoryPlan::alignment);
  void* arena = memory.data();
  size_t space = memory.size();
  REQUIRE(std::align(MemoryPlan::alignment, measuring.peak_bytes(), arena, space));
  MemoryPlan placing(arena, measuring.peak_bytes());
  const std::vector<Tensor> tensors = plan_something(placing);
  REQUIRE(placing.items().size() == measuring.items().size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    CHECK(placing.items()[i].offset == measuring.items()[i].offset);
    CHECK(placing.items()[i].bytes == tensors[i].bytes());
    CHECK(static_cast<std::byte*>(tensors[i].data) - static_cast<std::byte*>(arena) ==
          static_cast<std::ptrdiff_t>(placing.items()[i].offset));
    CHECK(reinterpret_cast<uintptr_t>(tensors[i].data) % MemoryPlan::alignment == 0);
  }
  CHECK(placing.peak_bytes() == measuring.peak_bytes());
}

TEST_CASE("what a lifetime held is reused, what lives on is not") {
  MemoryPlan plan;
  plan_something(plan);
  const auto& items = plan.items();
  CHECK(items[1].offset == items[3].offset);  // a and c
  CHECK(items[3].offset == items[4].offset);  // c and d
  CHECK(items[0].offset != items[1].offset);  // w lives on
}

TEST_CASE("an arena that is too small or not aligned is refused") {
  alignas(256) std::byte arena[512];
  MemoryPlan small(arena, sizeof arena);
  small.add("a", Category::Other, DType::U8, {300});
  CHECK_THROWS_AS(small.add("b", Category::Other, DType::U8, {1}), Error);
  MemoryPlan crooked(arena + 1, 511);
  CHECK_THROWS_AS(crooked.add("a", Category::Other, DType::U8, {1}), Error);
}

TEST_CASE("impossible shapes are refused, empty ones take no room") {
  MemoryPlan plan;
  CHECK_THROWS_AS(plan.add("a", Category::Other, DType::F32, {-1}), Error);
  CHECK_THROWS_AS(plan.add("a", Category::Other, DType::F32, {int64_t{1} << 40, int64_t{1} << 40}), Error);
  CHECK_THROWS_AS(plan.add("a", Category::Other, DType::F32, {INT64_MAX}), Error);
  CHECK_THROWS_AS(plan.add("a", Category::Other, DType::F32, Shape{}), Error);
  plan.add("none", Category::Other, DType::F32, {0, 5});
  CHECK(plan.peak_bytes() == 0);
}

TEST_CASE("a slice is a view of rows and refuses rows that are not there") {
  float data[12] = {};
  const Tensor whole{data, DType::F32, {4, 3}};
  const Tensor part = whole.slice(1, 2);
  CHECK(part.as<float>() == data + 3);
  CHECK(part.shape == Shape{2, 3});
  CHECK(whole.slice(4, 0).elements() == 0);
  CHECK_THROWS_AS(whole.slice(3, 2), Error);
  CHECK_THROWS_AS(whole.slice(-1, 2), Error);
  CHECK_THROWS_AS(Tensor{}.slice(0, 0), Error);
  CHECK(to_string(whole.shape) == "[4, 3]");
}
