#include "comm/gradient_reduction.h"

#include <fmt/format.h>

#include "reductions.h"

using namespace octet;

namespace {

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
