#include "device/measured_device.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/clock.h"
#include "device/products.h"

namespace octet {
namespace {

template <class Operation>
std::string label(std::string name, const Operation&) {
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}
// Products of different classes and formats have different floors.
std::string label(const std::string& name, const Matmul& op) {
  const MatmulKey key{op.gemm_class, op.a.values.dtype, op.b.values.dtype, op.out.dtype, op.simulate};
  return fmt::format("{} {} {} x {}", name, name_of(op.gemm_class), operand_name(key, key.a),
                     operand_name(key, key.b));
}
std::string label(const std::string& name, const AttentionForward& op) {
  return fmt::format("{} {}", name.substr(0, name.find('_')), in_float8(op) ? "forward F8" : "forward");
}
std::string label(const std::string& name, const AttentionBackward& op) {
  return fmt::format("{} {}", name.substr(0, name.find('_')), in_float8(op) ? "backward F8" : "backward");
}
template <class Operation>
uint64_t flops(const Operation&) {
  return 0;
}

}  // namespace

void MeasuredDevice::measured(const std::string& name, uint64_t bytes, uint64_t flops,
                              const std::function<void()>& work) {
  device_.synchronize();
  const double begin = monotonic_seconds();
  work();
  device_.synchronize();
  OperationCost& cost = costs_[name];
  cost.seconds += monotonic_seconds() - begin;
  cost.bytes += bytes;
  cost.flops += flops;
  ++cost.calls;
}

#define OCTET_MEASURE(name, Arguments)                                                 \
  void MeasuredDevice::name(const Arguments& op) {                                     \
    if (!measuring_) return device_.name(op);                                          \
    measured(label(#name, op), least_bytes(op), flops(op), [&] { device_.name(op); }); \
  }
OCTET_DEVICE_OPERATIONS(OCTET_MEASURE)
#undef OCTET_MEASURE

void MeasuredDevice::replay(Replay& replay, uint64_t signature, const std::function<void()>& work) {
  if (measuring_) return work();
  device_.replay(replay, signature, work);
}
void MeasuredDevice::zero(const Tensor& tensor) {
  if (!measuring_) return device_.zero(tensor);
  measured("zero", tensor.bytes(), 0, [&] { device_.zero(tensor); });
}
void MeasuredDevice::copy(const Tensor& to, const Tensor& from) {
  if (!measuring_) return device_.copy(to, from);
  measured("copy", to.bytes() + from.bytes(), 0, [&] { device_.copy(to, from); });
}
void MeasuredDevice::fill(const Tensor& tensor, float value) {
  if (!measuring_) return device_.fill(tensor, value);
  measured("fill", tensor.bytes(), 0, [&] { device_.fill(tensor, value); });
}
void MeasuredDevice::accumulate_sum(const Tensor& out, const Tensor& x) {
  if (!measuring_) return device_.accumulate_sum(out, x);
  measured("accumulate sum", x.bytes(), 0, [&] { device_.accumulate_sum(out, x); });
}

}  // namespace octet
