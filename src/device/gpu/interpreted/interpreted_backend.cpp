#include "device/gpu/interpreted/interpreted_backend.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"
#include "device/gpu/gpu_device.h"
#include "kernels/interpreter/queue.h"

namespace octet {
namespace {

// Everything is enqueued and runs when somebody waits, as late as on a GPU: what reads too early, or hands
// over memory that is gone by then, fails here too.
class InterpretedBackend final : public GpuBackend {
 public:
  InterpretedBackend(const DeviceOptions& options, LibraryScratchBytes planned_as, Fetches fetches)
      : cpu_(make_cpu_device(options)), planned_as_(std::move(planned_as)), fetches_(fetches) {}

  DeviceInfo info() const override {
    DeviceInfo info = cpu_->info();
    info.name = "kernel interpreter on " + info.name;
    info.peak_flops = 0;
    info.peak_source = "an interpreter has no peak";
    info.asynchronous = true;
    return info;
  }
  void* stream() const override { return &compute_; }

  void* allocate(size_t bytes) override { return cpu_->allocate(bytes); }
  void free(void* pointer) override {
    if (pointer) compute_.run();
    cpu_->free(pointer);
  }
  void copy_to_host(void* host, const void* device, size_t bytes) override {
    compute_.run();
    std::memcpy(host, device, bytes);
  }
  void copy_from_host(void* device, const void* host, size_t bytes) override {
    compute_.run();
    std::memcpy(device, host, bytes);
  }
  void copy_on_device(void* to, const void* from, size_t bytes) override {
    compute_.add([=] { std::memcpy(to, from, bytes); });
  }
  void clear(void* pointer, size_t bytes) override {
    compute_.add([=] { std::memset(pointer, 0, bytes); });
  }
  void synchronize() override { compute_.run(); }

  void* allocate_host(size_t bytes) override { return cpu_->allocate_host(bytes); }
  void free_host(void* pointer) override {
    for (gpu::Queue* queue : {&compute_, &in_, &out_}) queue->run();
    cpu_->free_host(pointer);
  }
  void upload(void* device, const void* host, size_t bytes) override {
    const auto* first = static_cast<const std::byte*>(host);
    compute_.add([device, staged = std::vector<std::byte>(first, first + bytes)] {
      std::copy(staged.begin(), staged.end(), static_cast<std::byte*>(device));
    });
  }
  void download(void* host, const void* device, size_t bytes) override {
    compute_.add([=] { std::memcpy(host, device, bytes); });
  }
  uint64_t mark() override {
    ++marked_;
    marks_[marked_ % marks_.size()] = compute_.added();
    return marked_;
  }
  void wait(uint64_t place) override {
    if (place + marks_.size() <= marked_)
      throw Error(ExitCode::Internal, "a place in the interpreter's queue is waited for too late");
    compute_.run_until(marks_[place % marks_.size()]);
  }

  void copy_on_lane(Device::Lane where, void* to, const void* from, size_t bytes) override {
    lane(where).add([=] { std::memcpy(to, from, bytes); });
    if (where == Device::Lane::In && fetches_ == Fetches::Early) in_.run();
  }
  void order(Device::Lane waiting, Device::Lane awaited) override {
    gpu::Queue& first = lane(awaited);
    lane(waiting).add([&first, reached = first.added()] { first.run_until(reached); });
  }

  std::unique_ptr<Replay::Recording> record(const std::function<void()>& work) override {
    auto recording = std::make_unique<Recorded>();
    recording->work = compute_.record(work);
    return recording;
  }
  void play(Replay::Recording& recording) override {
    for (const auto& work : static_cast<Recorded&>(recording).work) compute_.add(work);
  }

  size_t workspace_bytes(const DeviceWork& work) const override {
    return planned_as_ ? planned_as_(work) : cpu_->workspace_bytes(work);
  }
  void set_workspace(const Tensor& workspace) override {
    compute_.run();
    cpu_->set_workspace(workspace);
  }

  std::string matmul(const Matmul& m) override {
    compute_.add([this, m] { cpu_->matmul(m); });
    return implementation;
  }
  std::string attention_forward(const AttentionForward& attention) override {
    AttentionForward values = attention;
    values.out.row = values.out.column = {};
    compute_.add([this, values] { cpu_->attention_forward(values); });
    return implementation;
  }
  std::string attention_backward(const AttentionBackward& attention) override {
    compute_.add([this, attention] { cpu_->attention_backward(attention); });
    return implementation;
  }

 private:
  gpu::Queue& lane(Device::Lane lane) const {
    return lane == Device::Lane::Compute ? compute_ : lane == Device::Lane::In ? in_ : out_;
  }

  struct Recorded final : Replay::Recording {
    gpu::Queue::Work work;
  };
  static constexpr const char* implementation = "cpu device";

  std::unique_ptr<Device> cpu_;
  LibraryScratchBytes planned_as_;
  Fetches fetches_;
  mutable gpu::Queue compute_, in_, out_;
  uint64_t marked_ = 0;
  std::array<uint64_t, Device::marks> marks_{};  // what had been added to compute_ by then
};

}  // namespace

std::unique_ptr<Device> make_interpreted_device(const DeviceOptions& options, LibraryScratchBytes planned_as,
                                                Fetches fetches) {
  return std::make_unique<GpuDevice>(
      std::make_unique<InterpretedBackend>(options, std::move(planned_as), fetches), options);
}

}  // namespace octet
