// A device in front of another: passes everything on and, while it measures, waits for each operation and
// adds up what it cost. Nothing is replayed then, so every operation is seen.
#pragma once
#include <functional>
#include <map>
#include <string>

#include "device/forwarding_device.h"
#include "device/operation_cost.h"

namespace octet {

class MeasuredDevice : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;

  void measure(bool on) { measuring_ = on; }
  // By name: "rmsnorm forward", "matmul fprop F8_E4M3 x F8_E4M3".
  const std::map<std::string, OperationCost>& costs() const { return costs_; }

  void replay(Replay& replay, uint64_t signature, const std::function<void()>& work) override;
  void zero(const Tensor& tensor) override;
  void copy(const Tensor& to, const Tensor& from) override;
  void fill(const Tensor& tensor, float value) override;
  void accumulate_sum(const Tensor& out, const Tensor& x) override;

#define OCTET_OVERRIDE(name, Arguments) void name(const Arguments&) override;
  OCTET_DEVICE_OPERATIONS(OCTET_OVERRIDE)
#undef OCTET_OVERRIDE

 private:
  void measured(const std::string& name, uint64_t bytes, uint64_t flops, const std::function<void()>& work);

  bool measuring_ = false;
  std::map<std::string, OperationCost> costs_;
};

}  // namespace octet
