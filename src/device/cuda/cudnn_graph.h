// A vocabulary for cuDNN graphs on its backend API: tensors, operations, the graph. Host code only; nothing
// here needs a GPU.
#pragma once
#include <cudnn.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "device/cuda/library.h"

namespace octet {

// Error(Hardware): "WHAT: CUDNN_STATUS_X (cuDNN's own explanation)".
void check_cudnn(const Cudnn& library, cudnnStatus_t status, const std::string& what);

// An owned backend descriptor.
class CudnnDescriptor {
 public:
  CudnnDescriptor(const Cudnn& library, cudnnBackendDescriptorType_t type);
  ~CudnnDescriptor();
  CudnnDescriptor(CudnnDescriptor&& other) noexcept;
  CudnnDescriptor& operator=(CudnnDescriptor&&) = delete;

  cudnnBackendDescriptor_t get() const { return descriptor_; }
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
           const void* values);
  void set(cudnnBackendAttributeName_t name, int64_t value) { set(name, CUDNN_TYPE_INT64, 1, &value); }
  void set(cudnnBackendAttributeName_t name, cudnnDataType_t value) {
    set(name, CUDNN_TYPE_DATA_TYPE, 1, &value);
  }
  void set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value.descriptor_);
  }
  void set(cudnnBackendAttributeName_t name, const std::vector<int64_t>& values) {
    set(name, CUDNN_TYPE_INT64, static_cast<int64_t>(values.size()), values.data());
  }
  void set_flag(cudnnBackendAttributeName_t name) {
    const bool yes = true;
    set(name, CUDNN_TYPE_BOOLEAN, 1, &yes);
  }
  void finalize(const std::string& what);
  int64_t get_integer(cudnnBackendAttributeName_t name) const;

 private:
  const Cudnn* library_;
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

using Sizes = std::array<int64_t, 4>;
struct GraphShape {
  Sizes sizes, strides;  // [batch, head, row, column], in elements
};
GraphShape packed(const Sizes& sizes);           // row-major
GraphShape transposed(const GraphShape& shape);  // rows and columns change places

// The operations of a graph under construction. A tensor is a number; what an operation makes is virtual, it
// never reaches memory, unless it is given a tensor to write.
class CudnnGraph {
 public:
  using TensorId = int64_t;  // cuDNN's unique id
  explicit CudnnGraph(const Cudnn& library) : library_(library) { tensors_.reserve(128); }
  CudnnGraph(const CudnnGraph&) = delete;
  CudnnGraph& operator=(const CudnnGraph&) = delete;

  // Memory whose address is given at execution under `id`, which is the caller's choice below first_virtual.
  TensorId memory(TensorId id, const GraphShape& shape, cudnnDataType_t type);
  // An FP32 number in host memory, given at execution.
  TensorId number(TensorId id);
  // The same in device memory.
  TensorId device_number(TensorId id);
  TensorId virtual_tensor(const GraphShape& shape, cudnnDataType_t type = CUDNN_DATA_FLOAT);

  // All of these return `out`.
  TensorId matmul(TensorId a, TensorId b, TensorId out);
  TensorId reduce(cudnnReduceTensorOp_t operation, TensorId in, TensorId out);
  TensorId reshape(TensorId in, TensorId out);
  struct Pointwise {
    cudnnPointwiseMode_t mode;
    TensorId x;
    TensorId b = 0;          // second operand, 0: none
    TensorId condition = 0;  // of a selection
    cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    int64_t axis = -1;  // of GEN_INDEX
  };
  TensorId pointwise(const Pointwise& operation, TensorId out);

  int64_t operations() const { return static_cast<int64_t>(operations_.size()); }
  // The finished graph; `handle` may be null where there is no device.
  CudnnDescriptor finish(cudnnHandle_t handle) const;

  static constexpr TensorId first_virtual = 100;

 private:
  TensorId add_tensor(CudnnDescriptor&& tensor, TensorId id, const GraphShape& shape, cudnnDataType_t type,
                      int64_t alignment = 16);
  const CudnnDescriptor& at(TensorId id) const;
  void add(CudnnDescriptor&& operation, const char* what);

  const Cudnn& library_;
  std::vector<std::pair<TensorId, CudnnDescriptor>> tensors_;
  std::vector<CudnnDescriptor> operations_, parts_;
  TensorId next_ = first_virtual;
};

}  // namespace octet
