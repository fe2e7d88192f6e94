// octet bench step | matmul
#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <fstream>
#include <new>
#include <numeric>
#include <set>

#include "base/clock.h"
#include "base/log.h"
#include "base/median.h"
#include "base/random.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/synthetic_shards.h"
#include "config/run_config.h"
#include "data/loader.h"
#include "device/cpu/host_facts.h"
#include "device/measured_device.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"
#include "numerics/recipes.h"
#include "optimizer/schedule.h"
#include "training/open_device.h"
#include "training/precision_proof.h"
#include "training/run_memory.h"
#include "training/step_readback.h"

namespace octet {
namespace {

struct StepArguments {
  std::string config, device = "auto";
  std::vector<std::string> set, variants;
  int64_t steps = 10, warmup = 2;
  bool json = false, synthetic = false, statistics = false;
};

struct MatmulArguments {
  int64_t m = 2048, n = 2048, k = 2048;
  int repeat = 5, threads = 0;
  std::string device = "auto";
  bool json = false, deterministic = false;
};

// The kernel's high-water mark of this process, which can be set back to what is resident now.
void reset_peak() { std::ofstream("/proc/self/clear_refs") << 5; }
uint64_t status_bytes(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.rfind(field, 0) == 0) return std::stoull(line.substr(field.size() + 1)) * 1024;
  return 0;
}

struct Arena {
  Arena(Device& the_device, size_t bytes)
      : device(the_device), data(the_device.allocate(std::max<size_t>(bytes, 1))) {}
  ~Arena() { device.free(data); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  Device& device;
  void* data;
};

// Where the tokens come from. `synthetic`: null for the configuration's own shards.
struct TokenSource {
  const Dataset& data;
  const SyntheticShards* synthetic;
};

// Seconds the step loop waited for the loader, beside the seconds of the steps it did so in.
Json loader_wait(const std::vector<double>& waits, const std::vector<double>& seconds) {
  const double waited = std::accumulate(waits.begin(), waits.end(), 0.0),
               all = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  return {
      {"loader_wait_seconds", waited},
      {"loader_wait_share", all > 0 ? waited / all : 0},
      {"loader_wait_seconds_worst_step", waits.empty() ? 0 : *std::max_element(waits.begin(), waits.end())}};
}

// The step of the trainer without its log, evaluation and checkpoints; `statistics`: each with those of a
// health record.
enum class Statistics : uint8_t { Never, Always };
class StepLoop {
 public:
  StepLoop(Device& device, const RunConfig& config, RunMemory& memory, Loader& loader, Statistics statistics)
      : device_(device),
        config_(config),
        memory_(memory),
        loader_(loader),
        ahead_(device.info().asynchronous ? 1 : 0),
        readback_(device, {.sites = static_cast<int64_t>(memory.model.scales().sites.size()),
                           .observed = memory.model.observations().layout,
                           .parameters = static_cast<int64_t>(memory.model.parameters().size())}) {
    if (statistics == Statistics::Never) return;
    memory.model.scales().count = !memory.model.scales().sites.empty();
    memory.model.observations().on = memory.model.observations().planned();
    memory.optimizer.measure_update_rms(memory.model.observations().on);
  }

  // Of each step, from the end of the one before to its own.
  struct Measured {
    std::vector<double> seconds, waits;  // waits: of these, for the loader
    void drop(int64_t first) {
      seconds.erase(seconds.begin(), seconds.begin() + first);
      waits.erase(waits.begin(), waits.begin() + first);
    }
  };
  // Enqueues ahead like the trainer: the host waits for a step while the device has the next.
  Measured run(int64_t steps) {
    Measured measured;
    device_.synchronize();
    double before = monotonic_seconds(), stalled_before = loader_.stalled_seconds();
    const int64_t first = enqueued_;
    for (int64_t i = 0; i < steps + ahead_; ++i) {
      if (i < steps) enqueue();
      if (i < ahead_) continue;
      settled_ = first + i - ahead_;
      readback_.wait(settled_);
      const double now = monotonic_seconds(), stalled = loader_.stalled_seconds();
      measured.seconds.push_back(now - before);
      measured.waits.push_back(stalled - stalled_before);
      before = now;
      stalled_before = stalled;
    }
    return measured;
  }
  float last_loss() const { return readback_.control(settled_).loss; }

 private:
  void enqueue() {
    const int64_t step = enqueued_++;
    Transformer& model = memory_.model;
    device_.reset_matmul_counts();
    DataParallel& parallel = memory_.data_parallel;
    const double tokens = parallel.step_tokens();
    parallel.begin_step();
    const int64_t micros = accumulation(config_);
    for (int64_t micro = 0; micro < micros; ++micro) {
      const MicroBatch& batch = loader_.next();
      model.forward_backward(batch.tokens.data(), batch.targets.data(), static_cast<float>(1 / tokens),
                             {step, micro}, parallel.reduce_as_ready(step + 1, {micro, micro + 1 == micros}),
                             parallel.ready_work());
    }
    parallel.finish_gradients();
    parallel.decide(step + 1);
    take_statistics(step);
    model.update_scales(step, memory_.optimizer.control());
    parallel.update(learning_rate(config_.schedule, step, config_.run.steps), step + 1);
    readback_.take_outcome(step, model.loss_sum(), memory_.optimizer.control());
  }
  void take_statistics(int64_t step) {
    Transformer& model = memory_.model;
    if (model.scales().count) readback_.take_statistics(step, model.scales());
    if (!model.observations().on) return;
    model.observe_weights();
    readback_.take_observations(step, model.observations());
    readback_.take_update_rms(step, memory_.optimizer.update_rms());
    model.observations().clear(device_);
  }

  Device& device_;
  const RunConfig& config_;
  RunMemory& memory_;
  Loader& loader_;
  const int64_t ahead_;
  StepReadback readback_;
  int64_t enqueued_ = 0, settled_ = 0;
};

// The median of a few.
double seconds_of(Device& device, const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int i = 0; i < 4; ++i) {
    device.synchronize();
    const double begin = monotonic_seconds();
    work();
    device.synchronize();
    if (i > 0) seconds.push_back(monotonic_seconds() - begin);  // the first one prepares
  }
  return median(seconds);
}

// The floors of operations, measured in the same run: byte/s, read and written, of the device's own copy, and
// what launching an operation and waiting for it takes.
struct Floors {
  double copy_bandwidth = 0, wait_seconds = 0;
};
Floors measure_floors(Device& device) {
  const int64_t bytes = int64_t{256} << 20;  // beyond any cache
  const Arena to(device, static_cast<size_t>(bytes)), from(device, static_cast<size_t>(bytes));
  const Tensor target{to.data, DType::U8, {bytes}}, source{from.data, DType::U8, {bytes}};
  return {2 * static_cast<double>(bytes) / seconds_of(device, [&] { device.copy(target, source); }),
          seconds_of(device, [&] { device.zero(target.slice(0, 256)); })};
}

// A few: a device that works on its own is waited for after each operation, and replays nothing.
constexpr int64_t most_steps_by_operation = 5;

Json measure_steps(const RunConfig& config, const TokenSource& source, const StepArguments& arguments) {
  const std::unique_ptr<Device> opened = open_device(arguments.device, device_options(config));
  const auto device = std::make_unique<MeasuredDevice>(*opened);
  const Floors floors = measure_floors(*device);
  const PlannedMemory planned = measure_memory(device.get(), config);
  require_memory(planned, device->info(), available_memory());
  const uint64_t before = status_bytes("VmRSS:");
  reset_peak();
  const Arena arena(*device, planned.device_bytes);
  const std::unique_ptr<void, decltype(&std::free)> host(
      std::aligned_alloc(MemoryPlan::alignment, planned.host_bytes), &std::free);
  if (!host) throw std::bad_alloc();
  const auto release = [&](void* pointer) { device->free_host(pointer); };
  const std::unique_ptr<void, decltype(release)> offload(
      planned.offload_bytes ? device->allocate_host(planned.offload_bytes) : nullptr, release);
  MemoryPlan device_plan(arena.data, planned.device_bytes), host_plan(host.get(), planned.host_bytes),
      offload_plan(offload.get(), planned.offload_bytes);
  RunMemory memory(device.get(), config, {device_plan, host_plan, offload_plan});
  memory.model.initialize_masters();
  memory.data_parallel.start(0);
  LoaderOptions options;
  options.seed = config.run.seed;
  options.windows = window_order(config);
  options.micro_batch = config.batch.micro;
  options.global_batch = global_batch(config);
  if (source.synthetic) source.synthetic->leave_page_cache();
  const uint64_t read_before = storage_read_bytes();
  Loader loader(source.data, options);

  StepLoop loop(*device, config, memory, loader,
                arguments.statistics ? Statistics::Always : Statistics::Never);
  StepLoop::Measured measured = loop.run(arguments.warmup + arguments.steps);
  measured.drop(arguments.warmup);
  const float last_loss = loop.last_loss();
  const MatmulCounts products = device->matmul_counts();

  device->measure(true);
  const int64_t timed_steps = std::min(arguments.steps, most_steps_by_operation);
  const double timed_seconds = median(loop.run(timed_steps).seconds);
  Json operations = Json::object();
  double all = 0;
  for (const auto& [name, cost] : device->costs()) {
    const double seconds = cost.seconds / static_cast<double>(timed_steps);
    operations[name] = {{"seconds", seconds},
                        {"calls", cost.calls / static_cast<uint64_t>(timed_steps)},
                        {"least_bytes", cost.bytes / static_cast<uint64_t>(timed_steps)},
                        {"flops", cost.flops / static_cast<uint64_t>(timed_steps)}};
    all += seconds;
  }
  const double step_seconds = median(measured.seconds),
               rate = static_cast<double>(config.batch.tokens) / step_seconds;
  const DeviceInfo info = device->info();
  Json result = {{"recipe", config.precision.name},
                 {"device", info.name},
                 {"parameters", config.model.parameters()},
                 {"tokens_per_step", config.batch.tokens},
                 {"steps", arguments.steps},
                 {"tokens_per_second", rate},
                 {"step_seconds_median", step_seconds},
                 {"step_seconds_best", *std::min_element(measured.seconds.begin(), measured.seconds.end())},
                 {"model_flops_per_second", rate * config.model.flops_per_token()},
                 {"peak_flops", info.peak_flops},
                 {"fp8_flop_share", fp8_flop_share(products)},
                 {"planned_bytes", planned.device_bytes},
                 {"resident_before_bytes", before},
                 {"peak_resident_bytes", status_bytes("VmHWM:")},
                 {"last_loss", json_number(static_cast<double>(last_loss))},
                 {"steps_by_operation", timed_steps},
                 {"step_seconds_by_operation", timed_seconds},
                 {"operations", std::move(operations)},
                 {"copy_bytes_per_second", floors.copy_bandwidth},
                 {"wait_seconds", floors.wait_seconds},
                 {"seconds_outside_operations", timed_seconds - all},
                 {"gemm_table", gemm_table(products)},
                 {"storage_read_bytes", storage_read_bytes() - read_before}};
  result.update(loader_wait(measured.waits, measured.seconds));
  if (source.synthetic) result["shard_filesystem"] = source.synthetic->filesystem();
  return result;
}

// "of copy": least bytes an operation moves, by its time, against the device's own copy of memory. Operands
// that are still in a cache can exceed 100 %.
void print_operations(const Json& r) {
  const double timed = r["step_seconds_by_operation"], copy = r["copy_bytes_per_second"];
  fmt::print(
      "  operations, waited for one by one in {} more: step {:.4f} s; a copy moves {}/s; {:.1f} us of each "
      "call are the wait\n",
      plural(r["steps_by_operation"].get<int64_t>(), "step"), timed, human_bytes(static_cast<uint64_t>(copy)),
      1e6 * r["wait_seconds"].get<double>());
  std::vector<std::pair<double, std::string>> operations;
  for (const auto& [name, cost] : r["operations"].items()) operations.push_back({cost["seconds"], name});
  std::sort(operations.rbegin(), operations.rend());
  fmt::print("  {:<34} {:>6} {:>10} {:>7} {:>8} {:>9}\n", "", "calls", "seconds", "of step", "of copy",
             "FLOP/s");
  for (const auto& [seconds, name] : operations) {
    const Json& cost = r["operations"][name];
    const double flops = cost["flops"], bytes = cost["least_bytes"];
    fmt::print("  {:<34} {:>6} {:>10.6f} {:>6.1f}% {:>8} {:>9}\n", name, cost["calls"].get<uint64_t>(),
               seconds, 100 * seconds / timed,
               bytes > 0 ? fmt::format("{:.1f}%", 100 * bytes / seconds / copy) : "–",
               flops > 0 ? human_count(flops / seconds) : "");
  }
}

void print_step(const Json& r) {
  fmt::print("{}: {} tokens/s, step {:.4f} s (median of {}), FP8 share {:.1f}%\n",
             r["recipe"].get<std::string>(), human_count(r["tokens_per_second"]),
             r["step_seconds_median"].get<double>(), r["steps"].get<int64_t>(),
             100 * r["fp8_flop_share"].get<double>());
  const std::string filesystem = r.value("shard_filesystem", "");
  fmt::print(
      "  loader: waited {:.6f} s in all, {:.4f}% of the steps, at most {:.6f} s in one; {} read from "
      "storage{}\n",
      r["loader_wait_seconds"].get<double>(), 100 * r["loader_wait_share"].get<double>(),
      r["loader_wait_seconds_worst_step"].get<double>(), human_bytes(r["storage_read_bytes"]),
      filesystem.empty() ? "" : " (temporary shards on " + filesystem + ")");
  const uint64_t peak = r["peak_resident_bytes"], before = r["resident_before_bytes"];
  fmt::print("  memory: planned {}, measured {} above the {} of the program itself\n",
             human_bytes(r["planned_bytes"]), human_bytes(peak > before ? peak - before : 0),
             human_bytes(before));
  print_operations(r);
}

int bench_step(const StepArguments& arguments) {
  const RunConfig base = load_config(arguments.config, arguments.set);
  std::unique_ptr<SyntheticShards> synthetic;
  std::vector<DataSource> sources = base.data.train;
  if (arguments.synthetic) {
    synthetic = std::make_unique<SyntheticShards>(base.model.vocabulary, 64 * base.batch.tokens + 1);
    sources = {{"synthetic", {synthetic->pattern()}, 1}};
  }
  const Dataset data(sources, base.data.raw_width, base.model.context, base.model.vocabulary);
  Json results = Json::array();
  std::vector<std::string> variants = arguments.variants;
  if (variants.empty()) variants.push_back("");
  for (const std::string& name : variants) {
    RunConfig config = base;
    if (!name.empty()) config.precision = make_recipe(name);
    results.push_back(measure_steps(config, {data, synthetic.get()}, arguments));
    if (!arguments.json) print_step(results.back());
  }
  if (arguments.json) fmt::print("{}\n", results.dump(2));
  return 0;
}

// A matrix in the device's memory.
struct DeviceMatrix {
  Arena arena;
  Tensor tensor;
  DeviceMatrix(Device& device, DType type, int64_t rows, int64_t columns)
      : arena(device, static_cast<size_t>(rows * columns) * size_of(type)),
        tensor{arena.data, type, {rows, columns}} {}
  void randomize(uint64_t seed) {
    std::vector<char> bytes(tensor.bytes());
    const Tensor host{bytes.data(), tensor.dtype, tensor.shape};
    const DType type = tensor.dtype;
    const uint64_t key = random_key(seed, Purpose::Test);
    for (int64_t i = 0; i < tensor.elements(); ++i) {
      const float x = static_cast<float>(random_bits(key, static_cast<uint64_t>(i)) >> 8) * 0x1p-23f - 1;
      if (type == DType::F32)
        host.as<float>()[i] = x;
      else if (type == DType::BF16)
        host.as<BFloat16>()[i] = to_bfloat16(x);
      else
        host.as<uint8_t>()[i] = type == DType::E4M3 ? encode_e4m3(x) : encode_e5m2(x);
    }
    arena.device.copy_from_host(tensor.data, bytes.data(), bytes.size());
  }
};

int bench_matmul(const MatmulArguments& arguments) {
  const std::unique_ptr<Device> device =
      open_device(arguments.device, {arguments.deterministic, arguments.threads});
  Json results = Json::array();
  const Arena one(*device, sizeof(float));
  device->fill({one.data, DType::F32, {1}}, 1.0f);
  for (const auto& [a, b] : {std::pair{DType::F32, DType::F32}, std::pair{DType::BF16, DType::BF16},
                             std::pair{DType::E4M3, DType::E4M3}, std::pair{DType::E5M2, DType::E4M3}}) {
    DeviceMatrix left(*device, a, arguments.m, arguments.k), right(*device, b, arguments.n, arguments.k);
    const DeviceMatrix out(*device, a == DType::F32 ? DType::F32 : DType::BF16, arguments.m, arguments.n);
    left.randomize(1);
    right.randomize(2);
    Matmul matmul;
    const bool codes = a == DType::E4M3 || a == DType::E5M2;
    matmul.a.values = left.tensor;
    matmul.b.values = right.tensor;
    if (codes) matmul.a.inverse_scale = matmul.b.inverse_scale = static_cast<const float*>(one.data);
    matmul.fast_accumulation = codes && a == b;  // fprop of the recipe fp8; E5M2 is a gradient
    matmul.out = out.tensor;
    const size_t workspace_bytes = device->workspace_bytes({.matmuls = {&matmul, 1}});
    const Arena workspace(*device, workspace_bytes);
    device->set_workspace({workspace.data, DType::U8, {static_cast<int64_t>(workspace_bytes)}});
    device->reset_matmul_counts();
    std::vector<double> seconds;
    for (int i = 0; i <= arguments.repeat; ++i) {
      const double begin = monotonic_seconds();
      device->matmul(matmul);
      device->synchronize();
      if (i > 0) seconds.push_back(monotonic_seconds() - begin);  // the first one prepares
    }
    const double flops = 2.0 * static_cast<double>(arguments.m) * static_cast<double>(arguments.n) *
                         static_cast<double>(arguments.k);
    const double time = median(seconds);
    const std::string implementation = device->matmul_counts().begin()->second.implementation;
    device->set_workspace({});
    results.push_back({{"a", name_of(a)},
                       {"b", name_of(b)},
                       {"m", arguments.m},
                       {"n", arguments.n},
                       {"k", arguments.k},
                       {"implementation", implementation},
                       {"seconds_median", time},
                       {"flops_per_second", flops / time}});
    if (!arguments.json)
      fmt::print("{:<8} x {:<8} {:<24} {:.5f} s  {} FLOP/s\n", name_of(a), name_of(b), implementation, time,
                 human_count(flops / time));
  }
  if (arguments.json) fmt::print("{}\n", results.dump(2));
  return 0;
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("bench", "Measure steps and matrix products");
  command->require_subcommand(1);

  auto s = std::make_shared<StepArguments>();
  CLI::App* step = command->add_subcommand(
      "step", "Steady-state training steps: tokens/s, memory, each operation beside its floor");
  step->add_option("CONFIG", s->config, "configuration of a run")->required();
  step->add_option("--set", s->set, "override one key")->type_name("KEY=VALUE")->expected(1)->take_all();
  step->add_option("--variants", s->variants, "recipes to measure, one after the other, for example bf16,fp8")
      ->delimiter(',');
  step->add_option("--steps", s->steps, "steps measured")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  step->add_option("--warmup", s->warmup, "steps before that")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  step->add_option("--device", s->device, "auto, cpu or cuda")->capture_default_str();
  step->add_flag(
      "--synthetic", s->synthetic,
      "random ids in temporary shards (TMPDIR), read from the disk, instead of the configuration's");
  step->add_flag("--statistics", s->statistics,
                 "every step with the statistics of a health record, as health.every 1 would have it");
  step->add_flag("--json", s->json, "print JSON");
  step->footer(
      "Example:\n  octet bench step configs/quickstart-bf16.json --variants bf16,fp8 --synthetic --steps 20");
  step->callback([s, &action] { action = [s] { return bench_step(*s); }; });

  auto m = std::make_shared<MatmulArguments>();
  CLI::App* matmul =
      command->add_subcommand("matmul", "One matrix product [m, k] x [n, k], in every operand format");
  matmul->add_option("--m", m->m, "rows of the result")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  matmul->add_option("--n", m->n, "columns of the result")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  matmul->add_option("--k", m->k, "length of the sums")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  matmul->add_option("--repeat", m->repeat, "measured calls")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  matmul->add_option("--device", m->device, "auto, cpu or cuda")->capture_default_str();
  matmul->add_option("--threads", m->threads, "0: all")->check(CLI::Range(0, 4096))->capture_default_str();
  matmul->add_flag("--deterministic", m->deterministic, "only kernels with a fixed order of sums");
  matmul->add_flag("--json", m->json, "print JSON");
  matmul->footer("Example:\n  octet bench matmul --m 4096 --n 4096 --k 4096");
  matmul->callback([m, &action] { action = [m] { return bench_matmul(*m); }; });
  command->footer("Examples:\n  octet bench step my.json --variants bf16,fp8\n  octet bench matmul --m 4096");
}

}  // namespace octet
