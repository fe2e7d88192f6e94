// octet doctor: what this machine is, what is wrong with it, and what can train on it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <memory>
#if defined(OCTET_HAS_ONEDNN)
#include <oneapi/dnnl/dnnl.h>
#endif

#include "base/error.h"
#include "base/text.h"
#include "base/version.h"
#include "cli/command.h"
#include "cli/machine.h"
#include "comm/launch.h"
#include "config/document.h"
#include "device/nvidia/recipe_on_gpu.h"
#include "numerics/recipes.h"
#include "training/open_device.h"

namespace octet {
namespace {

// "3.1.0", or empty in a build without it.
std::string onednn_version() {
#if defined(OCTET_HAS_ONEDNN)
  const dnnl_version_t* v = dnnl_version();
  return fmt::format("{}.{}.{}", v->major, v->minor, v->patch);
#else
  return {};
#endif
}

// Which rank octet train would be here, and what is wrong with that. A process manager is not asked for the
// meeting place: it answers once, and that is for training.
struct LaunchFacts {
  std::string line, problem, hint;
};
LaunchFacts launch_facts() {
  Environment environment = process_environment();
  environment.meet = [](const MeetingRequest&) { return Meeting{}; };
  try {
    return {describe(detect_launch({}, environment)), "", ""};
  } catch (const Error& error) {
    return {"", error.what(), error.hint()};
  }
}

struct Verdict {
  std::string recipe, device, state, reason;  // state: "yes", "slow", "no"
};

bool has(const MachineFacts& facts, const char* feature) {
  return std::find(facts.features.begin(), facts.features.end(), feature) != facts.features.end();
}

// Why the CUDA device cannot be opened here; empty when it can.
std::string problem_of_cuda() {
  try {
    open_device("cuda", {});
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

std::vector<Verdict> verdicts(const MachineFacts& facts) {
  std::vector<Verdict> list;
  const std::string cuda_problem = problem_of_cuda();
  // One of each kind: what the others ask of a device is among these.
  for (const std::string recipe : {"fp32", "bf16", "fp8", "fog", "deepseek"}) {
    Verdict cpu{recipe, "cpu", "yes", ""};
    if (recipe == "fp32") {
      cpu.reason = "exact reference";
    } else {
      const std::string gemm = onednn_version().empty()
                                   ? "own blocked products, without oneDNN: correct, slower"
                               : has(facts, "amx_bf16")    ? "BF16 products on AMX"
                               : has(facts, "avx512_bf16") ? "BF16 products on AVX-512"
                                                           : "BF16 products by way of FP32: correct, slower";
      cpu.reason = make_recipe(recipe).float8() ? "real FP8 codes, exact rounding; " + gemm : gemm;
    }
    list.push_back(cpu);
    Verdict cuda{recipe, "cuda", cuda_problem.empty() ? "yes" : "no", cuda_problem};
    if (const auto& gpus = facts.nvidia.devices; !gpus.empty()) {  // the first is the one that is used
      const RecipeOnGpu on_gpu =
          recipe_on_gpu(make_recipe(recipe), {.capability = gpus.front().major * 10 + gpus.front().minor});
      if (!on_gpu.obstacle.empty()) {
        cuda.state = "no";
        cuda.reason = on_gpu.obstacle;
      } else if (cuda_problem.empty()) {
        cuda.reason = fmt::format("{} (not yet run on a GPU: check with 'octet selftest --device cuda')",
                                  fmt::join(on_gpu.notes, "; "));
      }
    }
    list.push_back(cuda);
  }
  return list;
}

std::vector<std::string> complaints(const MachineFacts& facts) {
  std::vector<std::string> list;
  if (!facts.write_problem.empty())
    list.push_back(fmt::format("cannot write to {}: {}", escape_control(facts.folder), facts.write_problem));
  if (facts.disk_free_bytes > 0 && facts.disk_free_bytes < (uint64_t{2} << 30))
    list.push_back(fmt::format("only {} free on the disk of {}", human_bytes(facts.disk_free_bytes),
                               escape_control(facts.folder)));
  if (facts.open_files > 0 && facts.open_files < 1024)
    list.push_back(
        fmt::format("only {} open files allowed; many shards need more (ulimit -n)", facts.open_files));
  if (facts.cgroup_memory_bytes > 0)
    list.push_back(fmt::format("a control group limits memory to {}; going beyond kills the process",
                               human_bytes(facts.cgroup_memory_bytes)));
  if (facts.cpu_quota > 0 && facts.cpu_quota < facts.cores)
    list.push_back(
        fmt::format("a control group limits the CPU to {:.1f} of {} cores; set run.threads accordingly",
                    facts.cpu_quota, facts.cores));
  if (!has(facts, "avx2")) list.push_back("no AVX2: the CPU device works, slowly");
  if (facts.nvidia.present && !facts.nvidia.problem.empty())
    list.push_back("NVIDIA driver: " + facts.nvidia.problem);
  return list;
}

Json to_json(const MachineFacts& facts) {
  Json root = Json::object();
  root["version"] = version();
  root["build"] = build_summary();
  root["onednn"] = onednn_version();
  root["cpu"] = {
      {"name", facts.cpu}, {"cores", facts.cores}, {"features", facts.features}, {"quota", facts.cpu_quota}};
  root["system"] = {{"kernel", facts.kernel}, {"container", facts.container}};
  root["memory"] = {{"bytes", facts.memory_bytes},
                    {"available_bytes", facts.available_bytes},
                    {"cgroup_bytes", facts.cgroup_memory_bytes},
                    {"shared_bytes", facts.shared_memory_bytes}};
  root["limits"] = {{"open_files", facts.open_files}, {"locked_memory", facts.locked_memory}};
  root["disk"] = {{"folder", facts.folder},
                  {"free_bytes", facts.disk_free_bytes},
                  {"writable", facts.write_problem.empty()},
                  {"problem", facts.write_problem}};
  Json devices = Json::array();
  for (const NvidiaDevice& d : facts.nvidia.devices) {
    devices.push_back({{"name", d.name},
                       {"compute_capability", fmt::format("{}.{}", d.major, d.minor)},
                       {"memory_bytes", d.memory_bytes}});
  }
  root["nvidia"] = {{"driver_present", facts.nvidia.present},
                    {"driver_version", facts.nvidia.driver_version},
                    {"cuda_version", facts.nvidia.cuda_version},
                    {"problem", facts.nvidia.problem},
                    {"devices", devices}};
  root["verdicts"] = Json::array();
  for (const Verdict& v : verdicts(facts))
    root["verdicts"].push_back(
        {{"recipe", v.recipe}, {"device", v.device}, {"trains", v.state}, {"reason", v.reason}});
  const LaunchFacts launch = launch_facts();
  root["launch"] = {{"line", launch.line}, {"problem", launch.problem}, {"hint", launch.hint}};
  root["problems"] = complaints(facts);
  return root;
}

void print(const MachineFacts& facts) {
  const auto or_unlimited = [](int64_t bytes) {
    return bytes < 0 ? std::string("unlimited") : human_bytes(static_cast<uint64_t>(bytes));
  };
  const std::string onednn = onednn_version();
  fmt::print("octet {}  ({}, {})\n\n", version(), build_summary(),
             onednn.empty() ? "no oneDNN" : "oneDNN " + onednn);
  fmt::print("CPU       {}, {} cores; {}\n", facts.cpu, facts.cores, fmt::join(facts.features, " "));
  fmt::print("Memory    {} ({} available){}\n", human_bytes(facts.memory_bytes),
             human_bytes(facts.available_bytes),
             facts.cgroup_memory_bytes ? ", control group: " + human_bytes(facts.cgroup_memory_bytes) : "");
  fmt::print("System    {}{}\n", facts.kernel,
             facts.container.empty() ? "" : ", in a container (" + facts.container + ")");
  fmt::print("Limits    {} open files, locked memory {}, /dev/shm {}\n", facts.open_files,
             or_unlimited(facts.locked_memory), human_bytes(facts.shared_memory_bytes));
  fmt::print("Disk      {}: {} free, {}\n", escape_control(facts.folder), human_bytes(facts.disk_free_bytes),
             facts.write_problem.empty() ? "write, sync and remove work" : "NOT writable");
  const LaunchFacts launch = launch_facts();
  fmt::print("Launch    {}\n", launch.problem.empty() ? launch.line : launch.problem + "; " + launch.hint);
  const NvidiaDriver& nvidia = facts.nvidia;
  if (!nvidia.present) {
    fmt::print("NVIDIA    no driver (libcuda.so.1 not found)\n");
  } else {
    fmt::print("NVIDIA    driver {}, CUDA {}.{}\n",
               nvidia.driver_version.empty() ? "?" : nvidia.driver_version, nvidia.cuda_version / 1000,
               nvidia.cuda_version % 1000 / 10);
    for (const NvidiaDevice& d : nvidia.devices)
      fmt::print("          {}, compute capability {}.{}, {}\n", escape_control(d.name), d.major, d.minor,
                 human_bytes(d.memory_bytes));
  }
  fmt::print("\nWhat can train here\n");
  for (const Verdict& v : verdicts(facts))
    fmt::print("  {:<6} on {:<5} {:<5} {}\n", v.recipe, v.device, v.state, v.reason);
  const std::vector<std::string> problems = complaints(facts);
  if (!problems.empty()) fmt::print("\n");
  for (const std::string& problem : problems) fmt::print("note: {}\n", problem);
}

}  // namespace

void add_doctor(CLI::App& app, Action& action) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command =
      app.add_subcommand("doctor", "Check this machine: devices, driver, libraries, disk, limits");
  command->add_flag("--json", *json, "print JSON");
  command->footer("Example:\n  octet doctor --json > machine.json");
  command->callback([json, &action] {
    action = [json] {
      const MachineFacts facts = inspect_machine(std::filesystem::current_path().string());
      if (*json)
        fmt::print("{}\n", to_json(facts).dump(2, ' ', false, Json::error_handler_t::replace));
      else
        print(facts);
      return 0;
    };
  });
}

}  // namespace octet
