// From a graph to something that runs: cuDNN's choice of an engine, compiled for one GPU.
#pragma once
#include <cudnn.h>

#include "device/cuda/attention_graph.h"

namespace octet {

// The GPU a plan is for: an open handle, or a description of a GPU that is not there.
struct PlanTarget {
  cudnnHandle_t handle = nullptr;
  const CudnnDescriptor* device = nullptr;  // CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR
  int capability = 90;                      // compute capability, 90: 9.0
};

// The first engine of cuDNN's heuristic that takes the graph: no measurement, so that every start of a run
// has the same. Error(Hardware) with the whole key and cuDNN's reason when none does.
CudnnDescriptor attention_plan(const Cudnn& library, const AttentionKey& key, const PlanTarget& target);

}  // namespace octet
