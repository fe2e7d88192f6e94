// NVIDIA's GPUs as their data sheets describe them: what can be said of a board that is not in this machine.
#pragma once
#include <cstddef>
#include <span>
#include <string>

namespace octet {

struct GpuModel {
  const char* key;               // "h200": how a command line names it
  const char* name;              // "H200": part of cudaDeviceProp::name, as whole words
  int capability;                // 90: compute capability 9.0
  double memory_gigabytes;       // 1e9 bytes, as printed on the data sheet; a driver reports no less
  double bfloat16_tera_flops;    // dense, FP32 accumulation
  double float8_tera_flops;      // the same; 0: it has no FP8
  double memory_tera_bandwidth;  // 1e12 bytes a second
  double peer_giga_bandwidth;  // 1e9 bytes a second to the others of its node, one direction: NVLink, or PCIe

  size_t memory_bytes() const { return static_cast<size_t>(memory_gigabytes * 1e9); }
};

// The more special names first.
std::span<const GpuModel> gpu_models();
// The board a driver's name means: "NVIDIA A100-SXM4-80GB" is an A100, and no A10. Null: not in the table.
const GpuModel* find_gpu_model(const std::string& device_name);
// By key. Error(Usage) with all keys and the nearest one.
const GpuModel& gpu_model(const std::string& key);

}  // namespace octet
