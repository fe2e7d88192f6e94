// What the CPU device says about its machine, from /proc and cgroups.
#pragma once
#include <cstddef>
#include <string>

namespace octet {

struct ProcessorFacts {
  std::string name;      // "AMD EPYC 9354 32-Core Processor"
  double megahertz = 0;  // as /proc/cpuinfo states it; 0 = not stated
  bool avx512f = false, avx2 = false, avx512_bf16 = false, amx_bf16 = false;
};
ProcessorFacts read_processor_facts();

// A peak that can be stated without measuring: threads x stated clock x FLOP per cycle of the widest
// multiply-add the processor lists for BF16 (or FP32, where it has none for BF16).
struct StatedPeak {
  double flops = 0;    // 0 = unknown
  std::string source;  // one sentence
};
StatedPeak stated_peak(const ProcessorFacts& facts, int threads);

// Bytes that can still be allocated without swapping: the smaller of MemAvailable and what the cgroup leaves.
// 0 = unknown.
size_t available_memory();

}  // namespace octet
