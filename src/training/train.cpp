// From a request to a running trainer: device, data, folder, memory.
#include "training/train.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <new>

#include "base/hash.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/text.h"
#include "base/version.h"
#include "training/open_device.h"
#include "training/ranks.h"
#include "training/trainer.h"

namespace octet {
namespace {

struct HostArena {
  explicit HostArena(size_t bytes)
      : data(bytes ? std::aligned_alloc(MemoryPlan::alignment, bytes) : nullptr) {
    if (bytes && !data)
      throw Error(ExitCode::Usage,
                  fmt::format("no {} of host memory for checkpoint snapshots", human_bytes(bytes)),
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

struct PageLockedArena {
  PageLockedArena(Device& owner, size_t bytes)
      : device(owner), data(bytes ? owner.allocate_host(bytes) : nullptr) {}
  ~PageLockedArena() { device.free_host(data); }
  PageLockedArena(const PageLockedArena&) = delete;
  PageLockedArena& operator=(const PageLockedArena&) = delete;
  Device& device;
  void* data;
};

// The memory of a segment.
struct Arenas {
  Arenas(Device& owner, const PlannedMemory& bytes)
      : on_device(owner, bytes.device_bytes),
        on_host(bytes.host_bytes),
        page_locked(owner, bytes.offload_bytes),
        device(on_device.data, bytes.device_bytes),
        host(on_host.data, bytes.host_bytes),
        offload(page_locked.data, bytes.offload_bytes) {}
  DeviceArena on_device;
  HostArena on_host;
  PageLockedArena page_locked;
  MemoryPlan device, host, offload;
};

PlannedMemory larger(const PlannedMemory& a, const PlannedMemory& b) {
  return {std::max(a.device_bytes, b.device_bytes), std::max(a.host_bytes, b.host_bytes),
          std::max(a.offload_bytes, b.offload_bytes), std::max(a.validation_bytes, b.validation_bytes)};
}

// The most that any stage needs, with all its linears in FP8 and with all of them fallen back: a stage that
// does not fit, or that the device cannot run, is refused before the first.
PlannedMemory measure_stages(Device* device, const RunConfig& config, const Sharding& place) {
  PlannedMemory most;
  for_each_stage(config, [&](RunConfig stage) {
    most = larger(most, measure_memory(device, stage, place));
    if (!stage.fallback.on()) return;
    fall_back(stage.precision, {.end = static_cast<int>(stage.model.layers)}, {true, true, true, true});
    most = larger(most, measure_memory(device, stage, place));
  });
  return most;
}

std::string fingerprint_of(const Dataset& train, const Dataset* validation) {
  return validation ? fmt::format("{}+{}", train.fingerprint(), validation->fingerprint())
                    : train.fingerprint();
}

// The configuration memory is planned for: no more validation windows than there are.
RunConfig with_real_validation(RunConfig config, const Dataset* validation) {
  if (!validation || config.evaluation.every <= 0) return config;
  int64_t windows = 0;
  for (size_t s = 0; s < validation->sources().size(); ++s)
    windows += validation->windows(static_cast<int>(s));
  const int64_t batches = (windows + config.batch.micro - 1) / config.batch.micro;
  if (batches < config.evaluation.batches) {
    log_info(
        "evaluation.batches {}: the validation shards hold {}, so an evaluation reads all of them once, in "
        "{}",
        config.evaluation.batches, plural(windows, "window"), plural(batches, "micro-batch"));
    config.evaluation.batches = batches;
  }
  return config;
}

// The same shard in validation and training, or in two sources, is hardly ever meant.
void warn_of_shared_shards(const Dataset& train, const Dataset* validation) {
  std::map<std::string, std::string> places;  // file -> where it was seen first
  std::string first;
  int64_t files = 0;
  const auto collect = [&](const Dataset& data, const char* role) {
    for (size_t s = 0; s < data.sources().size(); ++s) {
      const std::string here = fmt::format("{} source \"{}\"", role, data.sources()[s].name);
      for (const ShardInfo& shard : data.shards(static_cast<int>(s))) {
        std::error_code ignored;
        const auto [seen, is_new] =
            places.emplace(std::filesystem::weakly_canonical(shard.path, ignored).string(), here);
        if (!is_new && files++ == 0)
          first = fmt::format("{} is in {} and in {}", shard.path, seen->second, here);
      }
    }
  };
  collect(train, "training");
  if (validation) collect(*validation, "validation");
  if (files > 1) first += fmt::format(", and {} more", plural(files - 1, "shard"));
  if (files > 0) log_warning("{}: the same tokens are read in both", first);
}

// Ranks with whole masters make the same update each for itself. Muon's has products in it, and those are the
// same everywhere only where their sums have one order; local SGD makes the masters one again in each round.
void require_equal_updates(const RunConfig& config, int ranks) {
  if (config.optimizer.name != OptimizerName::Muon || ranks == 1 || trains_alone(config) ||
      config.run.deterministic)
    return;
  throw Error(
      ExitCode::Usage,
      fmt::format("optimizer.name \"muon\" on {} ranks with run.deterministic false: each rank makes the "
                  "whole update, and products whose sums have another order would let masters drift apart",
                  ranks),
      "set run.deterministic to true, or optimizer.name to adamw");
}

// What the ranks of one run have in common, and what each has for itself.
Agreement agreement_of(const TrainRequest& request, const std::string& fingerprint, const Device& device) {
  Agreement agreement;
  agreement.equal = {{"version", version()},
                     {"build", build_summary()},
                     {"configuration", config_hash(request.config)},
                     {"parallel.zero", std::to_string(request.config.parallel.zero)},
                     {"run folder", run_output(request.config).string()},
                     {"data", fingerprint},
                     {"kind of device", device.queue() ? "GPU" : "CPU"}};
  if (const std::string identity = device.info().identity; !identity.empty())
    agreement.unique = {{"GPU", identity}};
  return agreement;
}

// Rank 0 decides about the folder and where to go on; the others follow.
std::unique_ptr<RunFolder> open_folder(const TrainRequest& request, const std::string& fingerprint,
                                       Ranks& ranks) {
  if (ranks.leads()) {
    auto folder = std::make_unique<RunFolder>(request, fingerprint);
    ranks.from_leader("folder", folder->resume().folder.string());
    return folder;
  }
  const std::filesystem::path checkpoint = ranks.from_leader("folder", "");
  const std::filesystem::path path = run_output(request.config);
  std::error_code ignored;
  if (!std::filesystem::is_directory(path, ignored))
    throw Error(ExitCode::Usage,
                fmt::format("rank {}: {} is not there, although rank 0 has just made it", ranks.rank(),
                            path.string()),
                "run.output must be on a file system that all ranks share");
  if (checkpoint.empty())
    return std::make_unique<RunFolder>(std::filesystem::canonical(path), FoundCheckpoint{});
  return std::make_unique<RunFolder>(std::filesystem::canonical(path),
                                     FoundCheckpoint{checkpoint, read_manifest(checkpoint)});
}

}  // namespace

TrainResult train(const TrainRequest& request) {
  const RunConfig& config = request.config;
  SignalGuard signals;
  // What the command line says comes first, then the data, then this machine, and the run's folder last: what
  // is refused has touched nothing.
  Injector injector(request.inject, std::filesystem::weakly_canonical(run_output(config)),
                    request.launch.rank);
  require_possible(injector.of_state(), config);
  const std::unique_ptr<Device> opened =
      open_device(request.device, device_options(config, request.launch.local_rank));
  // Only what measures before it changes wants to see operations.
  ObservedDevice observed(*opened);
  Device* const device = injector.of_state().empty() ? opened.get() : &observed;
  if (request.resume.kind == ResumePolicy::Kind::Path) read_manifest(request.resume.path);
  const Dataset data(config.data.train, config.data.raw_width, config.model.context, config.model.vocabulary);
  std::unique_ptr<Dataset> validation;
  if (!config.data.validation.empty())
    validation = std::make_unique<Dataset>(config.data.validation, config.data.raw_width,
                                           config.model.context, config.model.vocabulary);
  if (request.launch.rank == 0) warn_of_shared_shards(data, validation.get());
  check_epochs(data, SampleOrder(data, config.run.seed, window_order(config)),
               config.run.steps * global_batch(config), config.data.epochs);
  const RunConfig planned = with_real_validation(config, validation.get());
  const Launch& launch = request.launch;
  const Sharding place{launch.rank, launch.ranks};
  accumulation(config, launch.ranks);  // refuses
  require_equal_updates(config, launch.ranks);
  const PlannedMemory bytes = measure_stages(device, planned, place);
  require_memory(bytes, device->info(), injector.available_memory());
  const std::string fingerprint = fingerprint_of(data, validation.get());
  Ranks ranks(launch, agreement_of(request, fingerprint, *device), config.parallel, *device);
  std::unique_ptr<RunFolder> folder;
  const auto failed = [&](const Error& error) {
    ranks.abort(error.what());
    if (folder) folder->write_status(RunFolder::State::Failed, error.code(), error.what());
    return error;
  };
  try {
    folder = open_folder(request, fingerprint, ranks);
    // A run goes on with the segment that its checkpoint is of: what that step left to do is done first.
    int64_t step = folder->resume().manifest.state.step;
    for (;;) {
      const Segment segment = segment_of_step(config, folder->resume().manifest.state.fallbacks, step);
      RunConfig own = planned;
      own.precision = segment.recipe;
      const PlannedMemory needed = larger(bytes, measure_memory(device, own, place));
      Arenas arenas(*device, needed);
      RunMemory memory(device, own, {arenas.device, arenas.host, arenas.offload}, place,
                       ranks.communicator());
      Trainer trainer({request, *device, data, validation.get(), fingerprint, *folder, memory,
                       needed.device_bytes + needed.host_bytes + needed.offload_bytes, signals, injector,
                       ranks, &observed, segment});
      if (const std::optional<TrainResult> result = trainer.run()) {
        ranks.finish();
        return *result;
      }
      device->set_workspace({});  // it goes with the segment's memory
      step = folder->resume().manifest.state.step + 1;
    }
  } catch (const Error& error) {
    throw failed(error);
  } catch (const std::bad_alloc&) {
    throw failed(out_of_memory());
  } catch (const std::exception& error) {
    throw failed(
        {ExitCode::Internal, error.what(), "this is a bug: please report it with the configuration"});
  }
}

}  // namespace octet
