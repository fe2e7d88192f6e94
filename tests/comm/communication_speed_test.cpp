// How long the communication of a step takes when nothing else is done: build/tests/test_comm "[.speed]".
// Measures, checks nothing; docs/results/scaling.md.
#include <fmt/format.h>

#include <algorithm>

#include "base/clock.h"
#include "comm/reductions.h"

using namespace octet;

namespace {

// The matrices of the 32M-parameter model of scripts/measure_scaling.py, as backward hands them on.
std::vector<int64_t> gradients() {
  std::vector<int64_t> sizes = {8192 * 512};
  for (int block = 0; block < 8; ++block)
    for (const int64_t elements : {1408 * 512, 2 * 1408 * 512, 512 * 512, 1024 * 512})
      sizes.push_back(elements);
  sizes.push_back(8192 * 512);
  return sizes;
}

// One step's reductions; then its gather of weights in BF16. Seconds each.
std::pair<double, double> step(Device& device, Communicator& communicator, GradientReduction& reduction,
                               const std::vector<std::unique_ptr<Gradient>>& all,
                               std::vector<uint16_t>& weights, uint64_t number) {
  communicator.barrier();
  const double began = monotonic_seconds();
  GradientReduction::Ticket newest = 0;
  for (size_t i = 0; i < all.size(); ++i) newest = reduction.reduce_scatter(all[i]->view, number, i);
  reduction.wait(newest);
  reduction.end_step();
  device.synchronize();
  communicator.barrier();
  const double reduced = monotonic_seconds();
  Communicator::Ticket gathered = 0;
  for (const auto& gradient : all) {
    const int64_t elements = gradient->view.elements(), part = elements / communicator.ranks();
    const Tensor whole{.data = weights.data(), .dtype = DType::BF16, .shape = {elements}};
    gathered = communicator.all_gather(whole, whole.slice(communicator.rank() * part, part));
  }
  communicator.wait(gathered);
  communicator.barrier();
  return {reduced - began, monotonic_seconds() - reduced};
}

std::string measure(const Launch& launch, GradientWire wire) {
  const auto device = make_cpu_device({.threads = 1});
  ControlPlane control(launch, {}, quick_options(launch));
  std::vector<double> reduce, gather;
  {
    CpuCommunicator communicator(control, *device);
    const Room room(*device, communicator, {.wire = wire, .largest = 8192 * 512});
    std::vector<std::unique_ptr<Gradient>> all;
    for (const int64_t elements : gradients())
      all.push_back(std::make_unique<Gradient>(DType::F32, Floats(static_cast<size_t>(elements), 1e-3f)));
    std::vector<uint16_t> weights(8192 * 512);
    for (uint64_t number = 1; number <= 8; ++number) {
      const auto [reduced, gathered] = step(*device, communicator, *room.reduction, all, weights, number);
      if (number == 1) continue;
      reduce.push_back(reduced);
      gather.push_back(gathered);
    }
  }
  control.finish();
  std::sort(reduce.begin(), reduce.end());
  std::sort(gather.begin(), gather.end());
  const auto text = [](const std::vector<double>& v) {
    return fmt::format("{:.3f} ({:.3f} to {:.3f})", v[v.size() / 2], v.front(), v.back());
  };
  return fmt::format("reduce-scatter {} s, gather of BF16 {} s", text(reduce), text(gather));
}

}  // namespace

TEST_CASE("seconds of a step's communication by itself, 2 ranks of 1 thread", "[.speed]") {
  for (const auto& [wire, name] :
       {std::pair{GradientWire::FP32, "fp32"}, {GradientWire::BF16, "bf16"}, {GradientWire::FP8, "fp8"}}) {
    RankProcesses processes(2, [wire = wire](const Launch& launch) { return measure(launch, wire); });
    fmt::print("gradients in {}: {}\n", name, processes.result(0));
  }
}
