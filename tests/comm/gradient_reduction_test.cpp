#include "comm/gradient_reduction.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "base/random.h"
#include "comm/cpu_communicator.h"
#include "comm/single_communicator.h"
#include "numerics/bfloat16.h"
#include "ranks.h"

using namespace octet;

namespace {

using Floats = std::vector<float>;

float value_of(int rank, uint64_t tensor, int64_t i) {
  const uint64_t key = random_key(3, Purpose::Test, static_cast<uint64_t>(rank), tensor);
  const auto at = static_cast<uint64_t>(i);
  return static_cast<float>(random_normal(key, at) *
                            std::ldexp(1.0, static_cast<int>(random_bits(key, at) % 12) - 8));
}
Floats values_of(int rank, uint64_t tensor, int64_t n) {
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
    arena.reset(device.allocate(std::max<size_t>(measured.peak_bytes(), 1)),
                [&](void* p) { device.free(p); });
    MemoryPlan placed(arena.get(), measured.peak_bytes());
    reduction =
        std::make_unique<GradientReduction>(&device, &communicator, communicator.ranks(), options, placed);
  }
  std::shared_ptr<void> arena;
  std::unique_ptr<GradientReduction> reduction;
};

using Body = std::function<std::string(Device&, Communicator&)>;
std::vector<std::string> on_ranks(int ranks, const Body& body) {
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

// In rank order, of values rounded to the wire's type once; rounded again where wire or gradient are BF16.
float expected_sum(GradientWire wire, DType gradient, int ranks, uint64_t tensor, int64_t i) {
  const bool wire16 = wire == GradientWire::BF16, gradient16 = gradient == DType::BF16;
  float sum = 0;
  for (int r = 0; r < ranks; ++r) {
    float value = value_of(r, tensor, i);
    if ((wire16 && ranks > 1) || gradient16) value = round_to_bfloat16(value);
    sum = r == 0 ? value : sum + value;
  }
  return (wire16 && ranks > 1) || gradient16 ? round_to_bfloat16(sum) : sum;
}

}  // namespace

TEST_CASE("fp32 and bf16 on the wire give the sum in rank order, rounded once where a type is narrower") {
  for (const int ranks : {1, 2, 3, 4})
    for (const GradientWire wire : {GradientWire::FP32, GradientWire::BF16})
      for (const DType dtype : {DType::F32, DType::BF16}) {
        const auto results = on_ranks(ranks, [&](Device& device, Communicator& comm) {
          const Room room(device, comm, {.wire = wire, .gradient = dtype, .largest = 1200});
          // More than the ring holds, and in flight together.
          const int64_t sizes[] = {0, 1, 7, 1200, 1199, 600, 600, 1200};
          std::vector<Gradient> all;
          GradientReduction::Ticket last = 0;
          for (uint64_t t = 0; t < std::size(sizes); ++t)
            all.emplace_back(dtype, values_of(comm.rank(), t, sizes[t]));
          for (uint64_t t = 0; t < std::size(sizes); ++t)
            last = room.reduction->all_reduce(all[t].view, 0, t);
          room.reduction->wait(last);
          for (uint64_t t = 0; t < std::size(sizes); ++t)
            for (int64_t i = 0; i < sizes[t]; ++i)
              if (all[t][i] != expected_sum(wire, dtype, ranks, t, i))
                return fmt::format("all_reduce {} at {}", t, i);
          Gradient pieces(dtype, values_of(comm.rank(), 9, 1200));
          room.reduction->wait(room.reduction->reduce_scatter(pieces.view, 0, 9));
          for (int64_t i = 1200 / ranks * comm.rank(); i < 1200 / ranks * (comm.rank() + 1); ++i)
            if (pieces[i] != expected_sum(wire, dtype, ranks, 9, i)) return fmt::format("piece at {}", i);
          room.reduction->end_step();
          return std::string("right");
        });
        for (const std::string& result : results) CHECK(result == "right");
      }
}

TEST_CASE("a reduction that nobody waited for, or that was not planned, is an error") {
  const auto results = on_ranks(2, [&](Device& device, Communicator& comm) {
    const Room room(device, comm, {.wire = GradientWire::BF16, .largest = 8});
    const auto said = [](const std::function<void()>& work) {
      try {
        work();
      } catch (const Error& error) {
        return std::string(error.what());
      }
      return std::string("nothing");
    };
    Gradient one(DType::F32, Floats(8)), large(DType::F32, Floats(9)), narrow(DType::BF16, Floats(8));
    std::string all;
    all += said([&] { room.reduction->all_reduce(large.view, 0, 0); }) + "\n";
    all += said([&] { room.reduction->all_reduce(narrow.view, 0, 0); }) + "\n";
    all += said([&] { room.reduction->reduce_scatter(Tensor(one.view).slice(0, 7), 0, 0); }) + "\n";
    const auto ticket = room.reduction->all_reduce(one.view, 0, 0);
    all += said([&] { room.reduction->wait(ticket + 1); }) + "\n";
    all += said([&] { room.reduction->end_step(); }) + "\n";
    room.reduction->wait(ticket);
    all += said([&] { room.reduction->end_step(); });
    return all;
  });
  for (const std::string& result : results)
    CHECK(result ==
          "gradient reduction: 9 elements of F32, planned are at most 8 of F32\n"
          "gradient reduction: 8 elements of BF16, planned are at most 8 of F32\n"
          "gradient reduction: 7 elements are no multiple of 2 ranks\n"
          "gradient reduction: wait for reduction 2 of 1\n"
          "gradient reduction: the step ends, but reduction 1 was not waited for\n"
          "nothing");
}
