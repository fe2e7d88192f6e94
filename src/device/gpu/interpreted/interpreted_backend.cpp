#include "device/gpu/interpreted/interpreted_backend.h"

#include <cstring>
#include <utility>

#include "device/gpu/gpu_device.h"

namespace octet {
namespace {

class InterpretedBackend final : public GpuBackend {
 public:
  InterpretedBackend(const DeviceOptions& options, LibraryScratchBytes planned_as)
      : cpu_(make_cpu_device(options)), planned_as_(std::move(planned_as)) {}

  DeviceInfo info() const override {
    DeviceInfo info = cpu_->info();
    info.name = "kernel interpreter on " + info.name;
    info.peak_flops = 0;
    info.peak_source = "an interpreter has no peak";
    return info;
  }
  void* stream() const override { return nullptr; }

  void* allocate(size_t bytes) override { return cpu_->allocate(bytes); }
  void free(void* pointer) override { cpu_->free(pointer); }
  void copy_to_host(void* host, const void* device, size_t bytes) override {
    std::memcpy(host, device, bytes);
  }
  void copy_from_host(void* device, const void* host, size_t bytes) override {
    std::memcpy(device, host, bytes);
  }
  void copy_on_device(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void clear(void* pointer, size_t bytes) override { std::memset(pointer, 0, bytes); }
  void synchronize() override {}

  size_t workspace_bytes(const DeviceWork& work) const override {
    return planned_as_ ? planned_as_(work) : cpu_->workspace_bytes(work);
  }
  void set_workspace(const Tensor& workspace) override { cpu_->set_workspace(workspace); }

  std::string matmul(const Matmul& m) override {
    cpu_->matmul(m);
    return implementation({m.gemm_class, m.a.values.dtype, m.b.values.dtype, m.out.dtype});
  }
  std::string attention_forward(const AttentionForward& attention) override {
    AttentionForward values = attention;
    values.out.row = values.out.column = {};
    cpu_->attention_forward(values);
    return implementation({GemmClass::Attention, values.qkv.dtype, values.qkv.dtype, values.out.high.dtype});
  }
  std::string attention_backward(const AttentionBackward& attention) override {
    cpu_->attention_backward(attention);
    return implementation(
        {GemmClass::Attention, attention.qkv.dtype, attention.qkv.dtype, attention.qkv_gradient.dtype});
  }

 private:
  std::string implementation(const MatmulKey& key) const {
    return cpu_->matmul_counts().at(key).implementation;
  }

  std::unique_ptr<Device> cpu_;
  LibraryScratchBytes planned_as_;
};

}  // namespace

std::unique_ptr<Device> make_interpreted_device(const DeviceOptions& options,
                                                LibraryScratchBytes planned_as) {
  return std::make_unique<GpuDevice>(std::make_unique<InterpretedBackend>(options, std::move(planned_as)));
}

}  // namespace octet
