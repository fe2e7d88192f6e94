// Facts about the machine a run would have, read without changing anything. Missing facts are empty or 0.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace octet {

struct NvidiaDevice {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  uint64_t memory_bytes = 0;
};

struct NvidiaDriver {
  bool present = false;        // libcuda.so.1 can be loaded
  std::string problem;         // why there is no device although the driver is there
  int cuda_version = 0;        // highest CUDA the driver speaks: 12080 = 12.8
  std::string driver_version;  // from NVML
  std::vector<NvidiaDevice> devices;
};

struct MachineFacts {
  std::string cpu, kernel, container;  // container: "docker", "podman", "" (none seen)
  std::vector<std::string> features;   // of those Octet's kernels and oneDNN use
  int cores = 0;                       // usable by this process
  double cpu_quota = 0;                // of the control group, in cores; 0: no limit
  uint64_t memory_bytes = 0, available_bytes = 0, cgroup_memory_bytes = 0;  // cgroup: 0 = no limit
  uint64_t open_files = 0;
  int64_t locked_memory = 0;         // bytes, -1: unlimited
  uint64_t shared_memory_bytes = 0;  // free in /dev/shm
  std::string folder;
  uint64_t disk_free_bytes = 0;
  std::string write_problem;  // empty: a file could be written, synced and removed in `folder`
  NvidiaDriver nvidia;
};

MachineFacts inspect_machine(const std::string& folder);
NvidiaDriver inspect_nvidia();

}  // namespace octet
