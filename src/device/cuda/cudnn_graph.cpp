#include "device/cuda/cudnn_graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace octet {

void check_cudnn(const Cudnn& library, cudnnStatus_t status, const std::string& what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  std::array<char, 512> lines{};
  library.cudnnGetLastErrorString(lines.data(), lines.size());
  std::string why = lines.data();
  std::replace(why.begin(), why.end(), '\n', ' ');
  throw Error(ExitCode::Hardware,
              fmt::format("{}: {}{}", what, library.cudnnGetErrorString(status),
                          why.empty() ? std::string() : fmt::format(" ({})", why)),
              "run octet doctor: it compares the driver, cuDNN and the GPU");
}

CudnnDescriptor::CudnnDescriptor(const Cudnn& library, cudnnBackendDescriptorType_t type)
    : library_(&library) {
  check_cudnn(library, library.cudnnBackendCreateDescriptor(type, &descriptor_), "a cuDNN descriptor");
}
CudnnDescriptor::~CudnnDescriptor() {
  if (descriptor_ != nullptr) library_->cudnnBackendDestroyDescriptor(descriptor_);
}
CudnnDescriptor::CudnnDescriptor(CudnnDescriptor&& other) noexcept
    : library_(other.library_), descriptor_(std::exchange(other.descriptor_, nullptr)) {}

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                          const void* values) {
  check_cudnn(*library_, library_->cudnnBackendSetAttribute(descriptor_, name, type, count, values),
              fmt::format("cuDNN attribute {}", static_cast<int>(name)));
}

void CudnnDescriptor::finalize(const std::string& what) {
  check_cudnn(*library_, library_->cudnnBackendFinalize(descriptor_), what);
}

int64_t CudnnDescriptor::get_integer(cudnnBackendAttributeName_t name) const {
  int64_t value = 0, count = 0;
  check_cudnn(*library_,
              library_->cudnnBackendGetAttribute(descriptor_, name, CUDNN_TYPE_INT64, 1, &count, &value),
              fmt::format("cuDNN attribute {}", static_cast<int>(name)));
  return value;
}

GraphShape packed(const Sizes& sizes) {
  return {sizes, {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1}};
}
GraphShape transposed(const GraphShape& shape) {
  GraphShape other = shape;
  std::swap(other.sizes[2], other.sizes[3]);
  std::swap(other.strides[2], other.strides[3]);
  return other;
}

// Alignment in bytes; an attention head begins at a multiple of eight BF16, or of sixteen codes.
CudnnGraph::TensorId CudnnGraph::add_tensor(CudnnDescriptor&& tensor, TensorId id, const GraphShape& shape,
                                            cudnnDataType_t type, int64_t alignment) {
  tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
  tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, type);
  tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, alignment);
  tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, shape.sizes.data());
  tensor.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, shape.strides.data());
  tensor.finalize("a tensor of cuDNN's");
  tensors_.emplace_back(id, std::move(tensor));
  return id;
}

CudnnGraph::TensorId CudnnGraph::memory(TensorId id, const GraphShape& shape, cudnnDataType_t type) {
  return add_tensor({library_, CUDNN_BACKEND_TENSOR_DESCRIPTOR}, id, shape, type);
}
CudnnGraph::TensorId CudnnGraph::number(TensorId id) {
  CudnnDescriptor tensor(library_, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.set_flag(CUDNN_ATTR_TENSOR_IS_BY_VALUE);
  return add_tensor(std::move(tensor), id, packed({1, 1, 1, 1}), CUDNN_DATA_FLOAT);
}
CudnnGraph::TensorId CudnnGraph::device_number(TensorId id) {
  constexpr int64_t alignment = sizeof(float);  // many lie side by side
  return add_tensor({library_, CUDNN_BACKEND_TENSOR_DESCRIPTOR}, id, packed({1, 1, 1, 1}), CUDNN_DATA_FLOAT,
                    alignment);
}
CudnnGraph::TensorId CudnnGraph::virtual_tensor(const GraphShape& shape, cudnnDataType_t type) {
  CudnnDescriptor tensor(library_, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.set_flag(CUDNN_ATTR_TENSOR_IS_VIRTUAL);
  return add_tensor(std::move(tensor), next_++, shape, type);
}

const CudnnDescriptor& CudnnGraph::at(TensorId id) const {
  for (const auto& [known, tensor] : tensors_)
    if (known == id) return tensor;
  throw Error(ExitCode::Internal, fmt::format("a cuDNN graph has no tensor {}", id));
}

void CudnnGraph::add(CudnnDescriptor&& operation, const char* what) {
  operation.finalize(fmt::format("a {} of cuDNN's", what));
  operations_.push_back(std::move(operation));
}

CudnnGraph::TensorId CudnnGraph::matmul(TensorId a, TensorId b, TensorId out) {
  CudnnDescriptor part(library_, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  part.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
  part.finalize("a product of cuDNN's");
  CudnnDescriptor operation(library_, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, part);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, at(a));
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, at(b));
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, at(out));
  parts_.push_back(std::move(part));
  add(std::move(operation), "product");
  return out;
}

CudnnGraph::TensorId CudnnGraph::reduce(cudnnReduceTensorOp_t kind, TensorId in, TensorId out) {
  CudnnDescriptor part(library_, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  part.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &kind);
  part.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  part.finalize("a reduction of cuDNN's");
  CudnnDescriptor operation(library_, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, part);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, at(in));
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, at(out));
  parts_.push_back(std::move(part));
  add(std::move(operation), "reduction");
  return out;
}

CudnnGraph::TensorId CudnnGraph::reshape(TensorId in, TensorId out) {
  CudnnDescriptor operation(library_, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, at(in));
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, at(out));
  add(std::move(operation), "reshape");
  return out;
}

CudnnGraph::TensorId CudnnGraph::pointwise(const Pointwise& op, TensorId out) {
  CudnnDescriptor part(library_, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  part.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &op.mode);
  part.set(CUDNN_ATTR_POINTWISE_MATH_PREC, op.precision);
  if (op.axis >= 0) part.set(CUDNN_ATTR_POINTWISE_AXIS, op.axis);
  part.finalize("an element-wise operation of cuDNN's");
  CudnnDescriptor operation(library_, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, part);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, at(op.x));
  if (op.b != 0) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, at(op.b));
  if (op.condition != 0) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, at(op.condition));
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, at(out));
  parts_.push_back(std::move(part));
  add(std::move(operation), "element-wise operation");
  return out;
}

CudnnDescriptor CudnnGraph::finish(cudnnHandle_t handle) const {
  std::vector<cudnnBackendDescriptor_t> list;
  for (const CudnnDescriptor& operation : operations_) list.push_back(operation.get());
  CudnnDescriptor graph(library_, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(list.size()),
            list.data());
  if (handle != nullptr) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
  graph.finalize("a graph of cuDNN's");
  return graph;
}

}  // namespace octet
