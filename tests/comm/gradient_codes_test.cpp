// FP8 on the wire: what a reduction of codes promises.
#include <fmt/format.h>

#include <algorithm>

#include "base/hash.h"
#include "device/gpu/interpreted/interpreted_backend.h"
#include "numerics/block_codes.h"
#include "reductions.h"

using namespace octet;

namespace {

enum class Way { AllReduce, ReduceScatter, AddOnto };
const Way all_ways[] = {Way::AllReduce, Way::ReduceScatter, Way::AddOnto};

GradientReduction::Options planned_for(Way way, GradientReduction::Options options) {
  if (way == Way::AddOnto) options.use = GradientReduction::Options::Use::AddOnto;
  return options;
}

// The gradient, or this rank's piece of it, is the sum afterwards.
void reduce(const Room& room, Communicator& comm, Way way, const Tensor& gradient, uint64_t step,
            uint64_t tensor) {
  GradientReduction& reduction = *room.reduction;
  if (way == Way::AllReduce) return reduction.wait(reduction.all_reduce(gradient, step, tensor));
  if (way == Way::ReduceScatter) return reduction.wait(reduction.reduce_scatter(gradient, step, tensor));
  const int64_t piece = gradient.elements() / comm.ranks();
  const Gradient sum(DType::F32, Floats(static_cast<size_t>(piece)));
  reduction.wait(reduction.add_up_onto(sum.view, gradient, step, tensor));
  make_cpu_device({.threads = 1})->copy(gradient.slice(comm.rank() * piece, piece), sum.view);
}

// Elements that a rank may read afterwards.
struct Range {
  int64_t begin, end;
};
Range readable(Way way, const Communicator& comm, int64_t n) {
  const int64_t piece = n / comm.ranks();
  return way == Way::AllReduce ? Range{0, n} : Range{comm.rank() * piece, (comm.rank() + 1) * piece};
}

const int64_t ragged[] = {1, 2, 255, 256, 257, 1000, 3071};

// The bits of all-reduces of every size, in flight together.
std::string bits_of_reductions(Device& device, Communicator& comm, DType dtype, uint64_t seed,
                               uint64_t step) {
  const Room room(device, comm,
                  {.wire = GradientWire::FP8, .seed = seed, .gradient = dtype, .largest = 3071});
  GradientReduction::State saturating;
  saturating.scale.log2_mu = 2;
  room.reduction->restore(saturating);
  std::vector<Gradient> all;
  GradientReduction::Ticket last = 0;
  for (const int64_t n : ragged) all.emplace_back(dtype, values_of(comm.rank(), 1, n));
  for (size_t t = 0; t < all.size(); ++t) last = room.reduction->all_reduce(all[t].view, step, t);
  room.reduction->wait(last);
  device.synchronize();
  // The counter of a step is fetched behind its last encoding, and what the next step counts is not in it.
  room.reduction->end_step();
  const GradientReduction::State state = room.reduction->state();
  std::string bits = fmt::format("{} {} ", state.saturated, state.values);
  for (const Gradient& one : all) bits += one.content();
  return hex(hash64(bits.data(), bits.size()));
}

// What rounding x may change: less than an ulp of E4M3, a subnormal's where it is small in its block.
double rounding(double x, double block_amax) {
  return std::max(0x1p-3 * std::fabs(x), 0x1p-9 / 224 * block_amax);
}

// The sum of the ranks' values, and how far from it a reduction may be (docs/numerics.md).
struct Expected {
  std::vector<double> sum, bound;
};
Expected expected(Way way, DType dtype, int ranks, uint64_t tensor, int64_t n) {
  const auto size = static_cast<size_t>(n);
  const int64_t piece = (n + ranks - 1) / ranks;
  Expected e{std::vector<double>(size), std::vector<double>(size)};
  // Blocks lie in pieces. f(i, begin, end of the block)
  const auto for_each = [&](const auto& f) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t p = i / piece * piece, begin = p + (i - p) / code_block * code_block;
      f(static_cast<size_t>(i), begin, std::min({begin + code_block, p + piece, n}));
    }
  };
  const auto amax = [](const auto& values, int64_t begin, int64_t end) {
    double most = 0;
    for (int64_t i = begin; i < end; ++i)
      most = std::max(most, static_cast<double>(std::fabs(values[static_cast<size_t>(i)])));
    return most;
  };
  std::vector<double> magnitudes(size);
  for (int r = 0; r < ranks; ++r) {
    Floats x = values_of(r, tensor, n);
    for (float& v : x) v = dtype == DType::BF16 ? round_to_bfloat16(v) : v;
    for_each([&](size_t i, int64_t begin, int64_t end) {
      const double own = rounding(static_cast<double>(x[i]), amax(x, begin, end));
      e.sum[i] += static_cast<double>(x[i]);
      e.bound[i] += own;
      magnitudes[i] += std::fabs(static_cast<double>(x[i])) + own;
    });
  }
  for (size_t i = 0; i < size; ++i) e.bound[i] += (ranks - 1) * 0x1p-24 * magnitudes[i];
  std::vector<double> largest(size);
  for (size_t i = 0; i < size; ++i) largest[i] = std::fabs(e.sum[i]) + e.bound[i];
  if (way == Way::AllReduce)
    for_each([&](size_t i, int64_t begin, int64_t end) {
      e.bound[i] += rounding(largest[i], amax(largest, begin, end));
    });
  else if (dtype == DType::BF16)
    for (size_t i = 0; i < size; ++i) e.bound[i] += 0x1p-8 * largest[i];
  return e;
}

}  // namespace

TEST_CASE("fp8 reductions have the same bits on every rank and in every run, and others for other numbers") {
  for (const int ranks : {2, 3, 4})
    for (const DType dtype : {DType::F32, DType::BF16}) {
      const auto run = [&](uint64_t seed, uint64_t step) {
        const auto results = on_ranks(ranks, [&](Device& device, Communicator& comm) {
          return bits_of_reductions(device, comm, dtype, seed, step);
        });
        for (const std::string& result : results) CHECK(result == results[0]);
        return results[0];
      };
      const std::string bits = run(1, 1);
      CHECK(bits.size() == 16);  // no error
      CHECK(run(1, 1) == bits);
      CHECK(run(2, 1) != bits);
      CHECK(run(1, 2) != bits);
    }
}

TEST_CASE("a device whose operations run late gives fp8 reductions the same bits") {
  const auto run = [](const std::function<std::unique_ptr<Device>()>& make) {
    RankProcesses processes(3, [&](const Launch& launch) {
      const auto device = make();
      ControlPlane control(launch, {}, quick_options(launch));
      std::string bits;
      {
        CpuCommunicator communicator(control, *device, {.staging = CpuCommunicatorOptions::Staging::Always});
        bits = bits_of_reductions(*device, communicator, DType::F32, 1, 1);
      }
      control.finish();
      return bits;
    });
    return std::vector<std::string>{processes.result(0), processes.result(1), processes.result(2)};
  };
  const auto on_cpu = run([] { return make_cpu_device({.threads = 1}); });
  CHECK(on_cpu[0].size() == 16);
  CHECK(run([] { return make_interpreted_device({.threads = 1}); }) == on_cpu);
}

TEST_CASE("the error of an fp8 reduction is within its bound, and beyond half of it") {
  for (const int ranks : {2, 3, 4})
    for (const DType dtype : {DType::F32, DType::BF16})
      for (const Way way : all_ways)
        for (const std::string& result : on_ranks(ranks, [&](Device&device, Communicator&comm) {
               const Room room(
                   device, comm,
                   planned_for(way, {.wire = GradientWire::FP8, .gradient = dtype, .largest = 12 * 601}));
               int64_t beyond_half = 0;
               for (const int64_t n : {int64_t{12}, int64_t{12 * 601}}) {
                 const auto tensor = static_cast<uint64_t>(n);
                 Gradient gradient(dtype, values_of(comm.rank(), tensor, n));
                 reduce(room, comm, way, gradient.view, 1, tensor);
                 const Expected e = expected(way, dtype, ranks, tensor, n);
                 const Range range = readable(way, comm, n);
                 for (int64_t i = range.begin; i < range.end; ++i) {
                   const auto at = static_cast<size_t>(i);
                   const double error = std::fabs(static_cast<double>(gradient[i]) - e.sum[at]);
                   if (!(error <= e.bound[at]))
                     return fmt::format("{} of {}: {} off by {}", i, n, e.sum[at], error);
                   beyond_half += error > e.bound[at] / 2;
                 }
               }
               return std::string(beyond_half > 0 ? "within" : "the bound says nothing");
             }))
          CHECK(result == "within");
}

TEST_CASE(
    "fp8 reductions are unbiased: over many draws the mean is the sum, which rounding to nearest misses") {
  constexpr int64_t n = 512;
  constexpr int draws = 400;
  struct Moments {
    double sum = 0, squares = 0;
    void add(double x) { sum += x, squares += x * x; }
    double mean() const { return sum / draws; }
    double variance_of_mean() const { return std::max(0.0, squares / draws - mean() * mean()) / (draws - 1); }
  };
  // Constant: 1.03 everywhere, which lies a quarter of the way from 1 to 1.125.
  for (const bool constant : {false, true})
    for (const Way way : all_ways)
      for (const std::string& result : on_ranks(2, [&](Device&device, Communicator&comm) {
             const Room room(device, comm, planned_for(way, {.wire = GradientWire::FP8, .largest = n}));
             const auto values = [&](int rank) {
               return constant ? Floats(n, 1.03f) : values_of(rank, 1, n);
             };
             std::vector<Moments> errors(n);
             const Floats mine = values(comm.rank()), first = values(0), second = values(1);
             const Range range = readable(way, comm, n);
             for (uint64_t step = 0; step < draws; ++step) {
               Gradient gradient(DType::F32, mine);
               reduce(room, comm, way, gradient.view, step, 7);
               for (int64_t i = range.begin; i < range.end; ++i) {
                 const auto at = static_cast<size_t>(i);
                 errors[at].add(static_cast<double>(gradient[i]) - static_cast<double>(first[at]) -
                                static_cast<double>(second[at]));
               }
             }
             double total = 0, variance = 0;
             int64_t far = 0;
             for (const Moments& error : errors) {
               total += error.mean();
               variance += error.variance_of_mean();
               far += std::fabs(error.mean()) > 4 * std::sqrt(error.variance_of_mean()) + 1e-12;
             }
             // Of 512 means 0.03 are expected beyond 4 standard errors.
             if (far > 1) return fmt::format("{} of {} elements are biased", far, n);
             const double deviations = total / std::sqrt(variance);
             if (std::fabs(deviations) > 4) return fmt::format("{} standard errors off", deviations);
             if (!constant) return std::string("unbiased");
             // What rounding to nearest would be off by, in the same standard errors.
             const float scale = power_of_two_scale(1.03f, e4m3_max);
             const double nearest =
                 2 * (static_cast<double>(decode_e4m3(encode_e4m3(1.03f * scale)) / scale) -
                      static_cast<double>(1.03f));
             const double bias = nearest * static_cast<double>(range.end - range.begin) / std::sqrt(variance);
             return std::string(std::fabs(bias) > 100 ? "unbiased" : "the control is unbiased too");
           }))
        CHECK(result == "unbiased");
}

TEST_CASE("a value that is not finite arrives as one on every rank, whatever the wire, and zeros as zeros") {
  constexpr int64_t n = 1536, at = 700;
  for (const GradientWire wire : {GradientWire::FP32, GradientWire::BF16, GradientWire::FP8})
    for (const DType dtype : {DType::F32, DType::BF16})
      for (const Way way : all_ways)
        for (const std::string& result : on_ranks(3, [&](Device&device, Communicator&comm) {
               const Room room(device, comm,
                               planned_for(way, {.wire = wire, .gradient = dtype, .largest = n}));
               const Range range = readable(way, comm, n);
               for (int source = 0; source < 3; ++source)
                 for (const float broken : {INFINITY, -INFINITY, NAN, 0.0f}) {
                   Floats values(n);
                   if (broken != 0) values = values_of(comm.rank(), 1, n);
                   if (comm.rank() == source) values[at] = broken;
                   Gradient gradient(dtype, values);
                   reduce(room, comm, way, gradient.view, 1, 1);
                   for (int64_t i = range.begin; i < range.end; ++i) {
                     // Pieces are of 512 values, two blocks: 700 is in the first of the second.
                     const bool in_block = i / code_block == at / code_block;
                     const bool may_break = wire == GradientWire::FP8 ? in_block : i == at;
                     if (broken == 0 ? gradient[i] != 0 : std::isfinite(gradient[i]) == may_break)
                       return fmt::format("{} of rank {}: {} at {}", broken, source, gradient[i], i);
                   }
                 }
               return std::string("right");
             }))
          CHECK(result == "right");
}

TEST_CASE("fp8 sends at most 0.26 of the bytes of fp32, bf16 half of them") {
  for (const int ranks : {2, 3, 4})
    for (const Way way : all_ways)
      for (const std::string& result : on_ranks(ranks, [&](Device&device, Communicator&comm) {
             constexpr int64_t n = 12 * 5000;
             const auto sent = [&](GradientWire wire) {
               const Room room(device, comm, planned_for(way, {.wire = wire, .largest = n}));
               Gradient gradient(DType::F32, values_of(comm.rank(), 1, n));
               const uint64_t before = comm.traffic().sent();
               reduce(room, comm, way, gradient.view, 1, 1);
               return static_cast<double>(comm.traffic().sent() - before);
             };
             const double wide = sent(GradientWire::FP32);
             const double full =
                 4.0 * n * (comm.ranks() - 1) / comm.ranks() * (way == Way::AllReduce ? 2 : 1);
             if (wide != full) return fmt::format("fp32 sends {} bytes, not {}", wide, full);
             if (sent(GradientWire::BF16) != full / 2) return std::string("bf16");
             const double share = sent(GradientWire::FP8) / wide;
             return share > 0.25 && share <= 0.26 ? std::string("right") : fmt::format("{} of fp32", share);
           }))
        CHECK(result == "right");
}

TEST_CASE("mu is halved above 0.001 % of saturated values and doubled after 1000 steps without") {
  AutomaticScale scale;
  scale.step(1, 100000);
  CHECK(scale.log2_mu == 0);  // exactly 0.001 %
  scale.step(2, 100000);
  CHECK(scale.log2_mu == -1);
  CHECK(scale.clean_steps == 0);
  for (int step = 0; step < 999; ++step) scale.step(0, 100000);
  CHECK(scale.log2_mu == -1);
  AutomaticScale interrupted = scale;
  scale.step(1, 100000);
  CHECK(scale.log2_mu == 0);
  interrupted.step(2, 100000);
  CHECK(interrupted.log2_mu == -2);  // and the count begins anew
  for (int step = 0; step < 999; ++step) interrupted.step(0, 100000);
  CHECK(interrupted.log2_mu == -2);
  for (int step = 0; step < 5000; ++step) scale.step(0, 100000);
  CHECK(scale.log2_mu == AutomaticScale::largest_log2);
  for (int step = 0; step < 5000; ++step) scale.step(100000, 100000);
  CHECK(scale.log2_mu == AutomaticScale::smallest_log2);
}

TEST_CASE(
    "a mu that saturates finds back to one that does not, the same on all ranks, and from a checkpoint") {
  for (const std::string& result : on_ranks(3, [](Device&device, Communicator&comm) {
         constexpr int64_t n = 3000;
         const GradientReduction::Options options{.wire = GradientWire::FP8, .largest = n};
         std::vector<int> mus;
         std::vector<std::string> bits;
         Room room(device, comm, options);
         GradientReduction::State state;
         state.scale.log2_mu = 3;
         room.reduction->restore(state);
         for (uint64_t step = 0; step < 9; ++step) {
           if (step == 4) {  // a new process goes on
             state = room.reduction->state();
             room = Room(device, comm, options);
             room.reduction->restore(state);
           }
           // One rank alone has values: what saturates there concerns all.
           Gradient gradient(DType::F32, comm.rank() == 1 ? values_of(1, 1, n) : Floats(n));
           room.reduction->wait(room.reduction->all_reduce(gradient.view, step, 1));
           mus.push_back(room.reduction->state().scale.log2_mu);
           bits.push_back(gradient.content());
           room.reduction->end_step();
         }
         // A count is judged a step later, and not when mu was halved in between.
         if (mus != std::vector<int>{3, 3, 2, 2, 1, 1, 0, 0, 0})
           return fmt::format("mu {}", fmt::join(mus, " "));
         state = room.reduction->state();
         if (state.saturated != 0 || state.values != n + n / 3) return std::string("counts");
         const auto refused = [&](int log2_mu, int clean_steps) {
           GradientReduction::State broken;
           broken.scale = {.log2_mu = log2_mu, .clean_steps = clean_steps};
           try {
             room.reduction->restore(broken);
             return false;
           } catch (const Error& error) {
             return error.code() == ExitCode::Checkpoint;
           }
         };
         if (!refused(65, 0) || !refused(0, 1000) || !refused(0, -1) || refused(-64, 999))
           return std::string("restores what is no state");
         return std::string("right");
       }))
    CHECK(result == "right");
}

TEST_CASE("with one rank a gradient stays what it is") {
  const auto device = make_cpu_device({.threads = 1});
  SingleCommunicator single(*device);
  for (const GradientWire wire : {GradientWire::FP32, GradientWire::BF16, GradientWire::FP8}) {
    const Room room(*device, single, {.wire = wire, .largest = 100});
    const Floats values = values_of(0, 1, 100);
    Gradient gradient(DType::F32, values);
    room.reduction->wait(room.reduction->all_reduce(gradient.view, 1, 1));
    room.reduction->wait(room.reduction->reduce_scatter(gradient.view, 1, 2));
    room.reduction->end_step();
    for (int64_t i = 0; i < 100; ++i) CHECK(gradient[i] == values[static_cast<size_t>(i)]);
    CHECK(room.planned_bytes == 0);
  }
}
