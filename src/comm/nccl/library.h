// NCCL, opened when the first communicator is made, as cuBLASLt and cuDNN are (device/cuda/library.h).
#pragma once
#include <nccl.h>

#include <string>

namespace octet {

#define OCTET_NCCL_FUNCTIONS(USE) \
  USE(ncclGetVersion)             \
  USE(ncclGetUniqueId)            \
  USE(ncclGetErrorString)         \
  USE(ncclGetLastError)           \
  USE(ncclCommInitRankConfig)     \
  USE(ncclCommGetAsyncError)      \
  USE(ncclCommFinalize)           \
  USE(ncclCommDestroy)            \
  USE(ncclCommAbort)              \
  USE(ncclAllReduce)              \
  USE(ncclReduceScatter)          \
  USE(ncclAllGather)              \
  USE(ncclBroadcast)              \
  USE(ncclSend)                   \
  USE(ncclRecv)                   \
  USE(ncclGroupStart)             \
  USE(ncclGroupEnd)

#define OCTET_MEMBER(name) decltype(&::name) name = nullptr;
struct Nccl {
  OCTET_NCCL_FUNCTIONS(OCTET_MEMBER)
  std::string file;
};
#undef OCTET_MEMBER

// Error(Hardware) when missing or too old.
Nccl open_nccl();
void check_nccl_version(int version, const std::string& file);

}  // namespace octet
