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

namespace {

// Micro-batch j's gradient of a tensor: as of rank j, whoever computes it.
constexpr int micro_batches = 12;

// This rank's piece of the sum of all micro-batches, which the ranks share out. `of(a)`: the a-th one of this
// rank.
Floats added_up(Device& device, Communicator& comm, const GradientReduction::Options& options, int64_t n,
                const std::function<int(int a)>& of) {
  const Room room(device, comm, options);
  const int64_t padded = (n + comm.ranks() - 1) / comm.ranks() * comm.ranks(), piece = padded / comm.ranks();
  const Gradient sum(DType::F32, Floats(static_cast<size_t>(piece)));
  for (int a = 0; a < micro_batches / comm.ranks(); ++a) {
    Floats values = values_of(of(a), 1, n);
    values.resize(static_cast<size_t>(padded));
    const Gradient gradient(options.gradient, values);
    room.reduction->wait(room.reduction->add_up_onto(sum.view, gradient.view, static_cast<uint64_t>(a), 1));
  }
  room.reduction->end_step();
  Floats own;
  for (int64_t i = 0; i < piece && comm.rank() * piece + i < n; ++i) own.push_back(sum[i]);
  return own;
}
std::string text_of(const Floats& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

}  // namespace

TEST_CASE("micro-batches dealt out to ranks and added onto a sum are one process's sum, to the bit") {
  constexpr int64_t n = 1201;
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const GradientReduction::Options options{.wire = GradientWire::FP32,
                                             .gradient = dtype,
                                             .largest = 1204,
                                             .use = GradientReduction::Options::Use::AddOnto};
    Floats serial(n, 0.0f);
    for (int j = 0; j < micro_batches; ++j)
      for (int64_t i = 0; i < n; ++i)
        serial[static_cast<size_t>(i)] +=
            dtype == DType::BF16 ? round_to_bfloat16(value_of(j, 1, i)) : value_of(j, 1, i);
    for (const int ranks : {1, 2, 3, 4}) {
      INFO(name_of(dtype) << ", " << ranks << " ranks");
      const auto sum = [&](bool dealt_out) {
        std::string whole;
        for (const std::string& part : on_ranks(ranks, [&](Device&device, Communicator&comm) {
               return text_of(added_up(device, comm, options, n, [&](int a) {
                 return dealt_out ? a * ranks + comm.rank() : comm.rank() * (micro_batches / ranks) + a;
               }));
             }))
          whole += part;
        return whole;
      };
      CHECK(sum(true) == text_of(serial));
      if (ranks > 1) CHECK(sum(false) != text_of(serial));  // negative control: each rank a part of the batch
    }
  }
}

TEST_CASE("what is added onto a sum is rounded to the wire's type once, and the sum comes first") {
  const int64_t sizes[] = {0, 12, 1200, 600, 1200, 612};  // more than the ring holds, in flight together
  for (const int ranks : {1, 2, 3, 4})
    for (const GradientWire wire : {GradientWire::FP32, GradientWire::BF16})
      for (const DType dtype : {DType::F32, DType::BF16})
        for (const std::string& result : on_ranks(ranks, [&](Device&device, Communicator&comm) {
               const Room room(device, comm,
                               {.wire = wire,
                                .gradient = dtype,
                                .largest = 1200,
                                .use = GradientReduction::Options::Use::AddOnto,
                                .together = {1200, 600}});
               std::vector<Gradient> gradients, sums;
               for (uint64_t t = 0; t < std::size(sizes); ++t) {
                 gradients.emplace_back(dtype, values_of(comm.rank(), t, sizes[t]));
                 sums.emplace_back(DType::F32, values_of(9, t, sizes[t] / ranks));
               }
               GradientReduction::Ticket last = 0;
               for (uint64_t t = 0; t < std::size(sizes); ++t)
                 last = room.reduction->add_up_onto(sums[t].view, gradients[t].view, 0, t);
               room.reduction->wait(last);
               const bool rounds = dtype == DType::BF16 || (wire == GradientWire::BF16 && ranks > 1);
               int64_t sum_last = 0;
               for (uint64_t t = 0; t < std::size(sizes); ++t)
                 for (int64_t i = 0; i < sizes[t] / ranks; ++i) {
                   float sum = value_of(9, t, i), without = 0;
                   for (int r = 0; r < ranks; ++r) {
                     const float value = value_of(r, t, comm.rank() * (sizes[t] / ranks) + i);
                     sum += rounds ? round_to_bfloat16(value) : value;
                     without += rounds ? round_to_bfloat16(value) : value;
                   }
                   if (sums[t][i] != sum) return fmt::format("{} at {}", t, i);
                   sum_last += sums[t][i] != without + value_of(9, t, i);
                 }
               return std::string(ranks > 1 && sum_last == 0 ? "the order does not show" : "right");
             }))
          CHECK(result == "right");
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
    all += said([&] { room.reduction->add_up_onto(one.view, one.view, 0, 0); }) + "\n";
    Gradient half(DType::F32, Floats(4));
    all += said([&] { room.reduction->add_up_onto(half.view, one.view, 0, 0); }) + "\n";
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
          "gradient reduction: 8 elements onto 8 of F32, of 2 ranks\n"
          "gradient reduction: planned for sums of the other kind\n"
          "gradient reduction: wait for reduction 2 of 1\n"
          "gradient reduction: the step ends, but reduction 1 was not waited for\n"
          "nothing");
}
