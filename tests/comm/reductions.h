// Gradients of a test's ranks, and a reduction with the scratch it planned.
#pragma once
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "comm/cpu_communicator.h"
#include "comm/gradient_reduction.h"
#include "comm/single_communicator.h"
#include "numerics/bfloat16.h"
#include "ranks.h"

namespace octet {

using Floats = std::vector<float>;

inline float value_of(int rank, uint64_t tensor, int64_t i) {
  const uint64_t key = random_key(3, Purpose::Test, static_cast<uint64_t>(rank), tensor);
  const auto at = static_cast<uint64_t>(i);
  return static_cast<float>(random_normal(key, at) *
                            std::ldexp(1.0, static_cast<int>(random_bits(key, at) % 12) - 8));
}
inline Floats values_of(int rank, uint64_t tensor, int64_t n) {
  Floats values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i)] = value_of(rank, tensor, i);
  return values;
}

// A gradient in host memory, F32 or BF16.
class Gradient {
 public:
  Gradient(DType dtype, const Floats& values) : bytes_(values.size() * size_of(dtype) + 1) {
    view = {.data = bytes_.data(), .dtype = dtype, .shape = {static_cast<int64_t>(values.size())}};
    for (size_t i = 0; i < values.size(); ++i)
      if (dtype == DType::F32)
        view.as<float>()[i] = values[i];
      else
        view.as<BFloat16>()[i] = to_bfloat16(values[i]);
  }
  float operator[](int64_t i) const {
    return view.dtype == DType::F32 ? view.as<float>()[i] : to_float(view.as<BFloat16>()[i]);
  }
  std::string content() const { return {reinterpret_cast<const char*>(bytes_.data()), view.bytes()}; }

 private:
  std::vector<std::byte> bytes_;

 public:
  Tensor view;
};

// A reduction with the scratch it planned.
struct Room {
  Room(Device& device, Communicator& communicator, const GradientReduction::Options& options) {
    MemoryPlan measured;
    { const GradientReduction measuring(nullptr, nullptr, communicator.ranks(), options, measured); }
    planned_bytes = measured.peak_bytes();
    arena.reset(device.allocate(std::max<size_t>(measured.peak_bytes(), 1)),
                [owner = &device](void* p) { owner->free(p); });
    MemoryPlan placed(arena.get(), measured.peak_bytes());
    reduction =
        std::make_unique<GradientReduction>(&device, &communicator, communicator.ranks(), options, placed);
  }
  size_t planned_bytes = 0;
  std::shared_ptr<void> arena;
  std::unique_ptr<GradientReduction> reduction;
};

using Body = std::function<std::string(Device&, Communicator&)>;
inline std::vector<std::string> on_ranks(int ranks, const Body& body) {
  return run_as_threads(ranks, [&](const Launch& launch) {
    const auto device = make_cpu_device({.threads = 1});
    ControlPlane control(launch, {}, quick_options(launch));
    std::string result;
    {
      CpuCommunicator communicator(control, *device);
      result = body(*device, communicator);
    }
    control.finish();
    return result;
  });
}

}  // namespace octet
