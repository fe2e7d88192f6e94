// From a request to a running trainer: device, data, folder, memory.
#include "training/train.h"

#include <cstdlib>
#include <map>
#include <new>

#include "base/hash.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/text.h"
#include "training/open_device.h"
#include "training/trainer.h"

namespace octet {
namespace {

struct HostArena {
  explicit HostArena(size_t bytes)
      : data(bytes ? std::aligned_alloc(MemoryPlan::alignment, bytes) : nullptr) {
    if (bytes && !data)
      throw Error(ExitCode::Usage,
                  fmt::format("no {} of host memory for the checkpoint buffer", human_bytes(bytes)),
                  "choose a smaller model, or a machine with more memory (octet plan shows the table)");
  }
  ~HostArena() { std::free(data); }
  HostArena(const HostArena&) = delete;
  HostArena& operator=(const HostArena&) = delete;
  void* data;
};

struct DeviceArena {
  DeviceArena(Device& owner, size_t bytes) : device(owner), data(owner.allocate(bytes)) {}
  ~DeviceArena() { device.free(data); }
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;
  Device& device;
  void* data;
};

size_t aligned(size_t bytes) {
  return (bytes + MemoryPlan::alignment - 1) / MemoryPlan::alignment * MemoryPlan::alignment;
}

std::string fingerprint_of(const Dataset& train, const Dataset* validation) {
  return validation ? fmt::format("{}+{}", train.fingerprint(), validation->fingerprint())
                    : train.fingerprint();
}

}  // namespace

std::unique_ptr<Device> open_device(const std::string& name, const DeviceOptions& options) {
  if (name == "auto" || name == "cpu") return make_cpu_device(options);
  if (name == "cuda")
    throw Error(ExitCode::Hardware, "--device cuda: this build of octet has no CUDA device",
                "use --device cpu: the same training with the same FP8 rounding");
  throw Error(ExitCode::Usage, fmt::format("--device {}: unknown", escape_control(name)),
              "auto, cpu or cuda");
}

DeviceOptions device_options(const RunConfig& config) {
  return {.deterministic = config.run.deterministic, .threads = config.run.threads};
}

TrainResult train(const TrainRequest& request) {
  const RunConfig& config = request.config;
  SignalGuard signals;
  const std::unique_ptr<Device> device = open_device(request.device, device_options(config));
  const Dataset data(config.data.train, config.data.raw_width, config.model.context, config.model.vocabulary);
  std::unique_ptr<Dataset> validation;
  if (!config.data.validation.empty())
    validation = std::make_unique<Dataset>(config.data.validation, config.data.raw_width,
                                           config.model.context, config.model.vocabulary);
  check_epochs(data, SampleOrder(data, config.run.seed, config.data.shuffle),
               config.run.steps * global_batch(config), config.data.epochs);
  Injector injector(request.inject, std::filesystem::weakly_canonical(run_output(config)));
  const std::string fingerprint = fingerprint_of(data, validation.get());
  RunFolder folder(request, fingerprint);
  try {
    MemoryPlan device_measure, host_measure;
    { const RunMemory measured(device.get(), config, device_measure, host_measure); }
    const size_t device_bytes = aligned(device_measure.peak_bytes()),
                 host_bytes = aligned(host_measure.peak_bytes());
    const DeviceArena device_arena(*device, device_bytes);
    const HostArena host_arena(host_bytes);
    MemoryPlan device_plan(device_arena.data, device_bytes), host_plan(host_arena.data, host_bytes);
    RunMemory memory(device.get(), config, device_plan, host_plan);
    Trainer trainer({request, *device, data, validation.get(), fingerprint, folder, memory,
                     device_bytes + host_bytes, signals, injector});
    return trainer.run();
  } catch (const Error& error) {
    folder.write_status(RunFolder::State::Failed, error.code(), error.what());
    throw;
  } catch (const std::exception& error) {
    folder.write_status(RunFolder::State::Failed, ExitCode::Internal, error.what());
    throw Error(ExitCode::Internal, error.what(), "this is a bug: please report it with the configuration");
  }
}

}  // namespace octet
