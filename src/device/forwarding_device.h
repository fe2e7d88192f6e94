// A device in front of another, which passes everything on. What wants to see operations derives from it and
// overrides those (measured_device.h, observed_device.h).
#pragma once
#include "device/device.h"

namespace octet {

class ForwardingDevice : public Device {
 public:
  explicit ForwardingDevice(Device& device) : device_(device) {}
  Device& behind() { return device_; }

  DeviceInfo info() const override { return device_.info(); }
  void* allocate(size_t bytes) override { return device_.allocate(bytes); }
  void free(void* pointer) override { device_.free(pointer); }
  void copy_to_host(void* host, const void* device, size_t bytes) override {
    device_.copy_to_host(host, device, bytes);
  }
  void copy_from_host(void* device, const void* host, size_t bytes) override {
    device_.copy_from_host(device, host, bytes);
  }
  void synchronize() override { device_.synchronize(); }
  void* queue() const override { return device_.queue(); }
  void* allocate_host(size_t bytes) override { return device_.allocate_host(bytes); }
  void free_host(void* pointer) override { device_.free_host(pointer); }
  void upload(void* device, const void* host, size_t bytes) override { device_.upload(device, host, bytes); }
  void download(void* host, const void* device, size_t bytes) override {
    device_.download(host, device, bytes);
  }
  uint64_t mark() override { return device_.mark(); }
  void wait(uint64_t place) override { device_.wait(place); }
  void copy_on_lane(Lane lane, void* to, const void* from, size_t bytes) override {
    device_.copy_on_lane(lane, to, from, bytes);
  }
  void order(Lane waiting, Lane awaited) override { device_.order(waiting, awaited); }
  void replay(Replay& replay, uint64_t signature, const std::function<void()>& work) override {
    device_.replay(replay, signature, work);
  }
  void zero(const Tensor& tensor) override { device_.zero(tensor); }
  void copy(const Tensor& to, const Tensor& from) override { device_.copy(to, from); }
  void fill_normal(const Tensor& tensor, float deviation, uint64_t key, uint64_t first) override {
    device_.fill_normal(tensor, deviation, key, first);
  }
  void fill(const Tensor& tensor, float value) override { device_.fill(tensor, value); }
  void accumulate_sum(const Tensor& out, const Tensor& x) override { device_.accumulate_sum(out, x); }
  size_t workspace_bytes(const DeviceWork& work) const override { return device_.workspace_bytes(work); }
  void set_workspace(const Tensor& workspace) override { device_.set_workspace(workspace); }
  const MatmulCounts& matmul_counts() const override { return device_.matmul_counts(); }
  void reset_matmul_counts() override { device_.reset_matmul_counts(); }

#define OCTET_FORWARD(name, Arguments) \
  void name(const Arguments& op) override { device_.name(op); }
  OCTET_DEVICE_OPERATIONS(OCTET_FORWARD)
#undef OCTET_FORWARD

 protected:
  Device& device_;
};

}  // namespace octet
