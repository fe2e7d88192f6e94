// A device in front of another that shows what an operation has just done: its arguments, before anything
// else overwrites what they point at. The observer waits with synchronize() before it reads. Nothing is
// replayed while somebody looks, so every operation is seen.
#pragma once
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#include "device/forwarding_device.h"

namespace octet {

// Where an operation leaves its result, if that is a cast's business; null otherwise. Every operation of
// OCTET_DEVICE_OPERATIONS with a CastTarget is found, whoever adds it.
template <class Operation>
const CastTarget* cast_target_of(const Operation& op) {
  if constexpr (requires { requires std::is_same_v<decltype(op.out), CastTarget>; })
    return &op.out;
  else if constexpr (requires { requires std::is_same_v<decltype(op.residual_gradient), CastTarget>; })
    return &op.residual_gradient;
  else
    return nullptr;
}

class ObservedDevice : public ForwardingDevice {
 public:
  // Each may be empty.
  struct Observer {
    // `source`: what was cast, the high copy or a CastOperation's own source. Casts of a product that exists
    // nowhere (CastOperation::column_factor) are passed over.
    std::function<void(const CastTarget& target, const Tensor& source)> cast = {};
    std::function<void(const SwiGluForward&)> swiglu = {};
    std::function<void(const Matmul&)> head = {};  // HeadFprop: what makes the logits
  };
  using ForwardingDevice::ForwardingDevice;

  void observe(Observer observer) {
    observer_ = std::move(observer);
    observing_ = observer_.cast || observer_.swiglu || observer_.head;
  }
  void replay(Replay& replay, uint64_t signature, const std::function<void()>& work) override {
    if (observing_) return work();
    device_.replay(replay, signature, work);
  }
  // An observer may make the logits once more, in FP32: devices plan every product that they will be given.
  size_t workspace_bytes(const DeviceWork& work) const override {
    std::vector<Matmul> matmuls(work.matmuls.begin(), work.matmuls.end());
    for (const Matmul& matmul : work.matmuls)
      if (matmul.gemm_class == GemmClass::HeadFprop) matmuls.push_back(in_fp32(matmul, nullptr));
    DeviceWork more = work;
    more.matmuls = matmuls;
    return device_.workspace_bytes(more);
  }
  static Matmul in_fp32(Matmul matmul, void* out) {
    matmul.out = {out, DType::F32, matmul.out.shape};
    return matmul;
  }

#define OCTET_OBSERVE(name, Arguments)      \
  void name(const Arguments& op) override { \
    device_.name(op);                       \
    if (observing_) show(op);               \
  }
  OCTET_DEVICE_OPERATIONS(OCTET_OBSERVE)
#undef OCTET_OBSERVE

 private:
  template <class Operation>
  void show(const Operation& op) {
    if constexpr (std::is_same_v<Operation, SwiGluForward>)
      if (observer_.swiglu) observer_.swiglu(op);
    if constexpr (std::is_same_v<Operation, Matmul>)
      if (observer_.head && op.gemm_class == GemmClass::HeadFprop) observer_.head(op);
    if (!observer_.cast) return;
    if (const CastTarget* target = cast_target_of(op)) {
      if constexpr (std::is_same_v<Operation, CastOperation>) {
        if (op.column_factor.empty()) observer_.cast(*target, op.source);
      } else {
        observer_.cast(*target, target->high);
      }
    }
  }

  Observer observer_;
  bool observing_ = false;
};

}  // namespace octet
