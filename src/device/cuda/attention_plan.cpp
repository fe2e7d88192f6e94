#include "device/cuda/attention_plan.h"

#include <fmt/format.h>

#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"

namespace octet {

namespace {

constexpr int most_engines = 8;

CudnnDescriptor finished_plan(const Cudnn& library, const CudnnDescriptor& configuration,
                              const PlanTarget& target) {
  CudnnDescriptor plan(library, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
  if (target.handle != nullptr)
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &target.handle);
  if (target.device != nullptr) plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, *target.device);
  plan.finalize("a plan of cuDNN's");
  return plan;
}

// Data-centre Blackwell has its deterministic backward pass in an engine that the heuristic does not offer.
// [cudnn-frontend 1.2x, CompositeSDPABackwardNode::override_heuristics_query; from which version on:
// sdpa_support_surface.h]
struct PinnedEngine {
  int64_t index;
  std::vector<std::pair<cudnnBackendKnobType_t, int64_t>> knobs;
};
std::optional<PinnedEngine> pinned_engine(const Cudnn& library, const AttentionKey& key, int capability) {
  if (!key.backward || !key.deterministic || capability / 10 != 10) return std::nullopt;
  constexpr size_t least = 91800;
  if (const size_t version = library.cudnnGetVersion(); version < least)
    throw Error(
        ExitCode::Hardware,
        fmt::format(
            "cuDNN {}: a deterministic backward pass of attention on compute capability {}.{} needs {}",
            version_text(version), capability / 10, capability % 10, version_text(least)),
        "install a newer cuDNN 9, or set run.deterministic to false");
  PinnedEngine engine{capability > 103 ? 17 : 5, {}};
  const bool wide_heads = key.head_width == 256;
  if (library.cudnnGetVersion() >= 92300) {
    engine.knobs = {{CUDNN_KNOB_TYPE_TILE_M, 3},
                    {CUDNN_KNOB_TYPE_TILE_N, 2},
                    {CUDNN_KNOB_TYPE_KERNEL_CFG, 2},
                    {CUDNN_KNOB_TYPE_STREAM_K, 0},
                    {CUDNN_KNOB_TYPE_TILE_CGA_M, 0}};
  } else {
    engine.knobs = {{CUDNN_KNOB_TYPE_KERNEL_CFG, 31}};
  }
  engine.knobs.emplace_back(CUDNN_KNOB_TYPE_STAGES, wide_heads ? 3 : 2);
  return engine;
}

CudnnDescriptor pinned_plan(const Cudnn& library, const CudnnDescriptor& graph, const PinnedEngine& pinned,
                            const PlanTarget& target) {
  CudnnDescriptor engine(library, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  engine.set(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph);
  engine.set(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, pinned.index);
  if (target.device != nullptr) engine.set(CUDNN_ATTR_ENGINE_DEVICEPROP, *target.device);
  engine.finalize("an engine of cuDNN's");
  std::vector<CudnnDescriptor> choices;
  std::vector<cudnnBackendDescriptor_t> list;
  for (const auto& [type, value] : pinned.knobs) {
    CudnnDescriptor& choice = choices.emplace_back(library, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    choice.set(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type);
    choice.set(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, value);
    choice.finalize("a setting of an engine");
    list.push_back(choice.get());
  }
  CudnnDescriptor configuration(library, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  configuration.set(CUDNN_ATTR_ENGINECFG_ENGINE, engine);
  configuration.set(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                    static_cast<int64_t>(list.size()), list.data());
  configuration.finalize("a configuration of an engine");
  return finished_plan(library, configuration, target);
}

// The heuristic's engines, best first.
std::vector<CudnnDescriptor> configurations(const Cudnn& library, const CudnnDescriptor& graph,
                                            const PlanTarget& target) {
  CudnnDescriptor heuristic(library, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  if (target.device != nullptr) heuristic.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, *target.device);
  heuristic.finalize("cuDNN's heuristic");
  std::vector<CudnnDescriptor> found;
  std::vector<cudnnBackendDescriptor_t> list;
  for (int i = 0; i < most_engines; ++i)
    list.push_back(found.emplace_back(library, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).get());
  int64_t count = 0;
  check_cudnn(
      library,
      library.cudnnBackendGetAttribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                       CUDNN_TYPE_BACKEND_DESCRIPTOR, most_engines, &count, list.data()),
      "the engines of cuDNN");
  while (static_cast<int64_t>(found.size()) > count) found.pop_back();
  return found;
}

}  // namespace

CudnnDescriptor attention_plan(const Cudnn& library, const AttentionKey& key, const PlanTarget& target) {
  require_float8_attention(key, target.capability);
  std::string why = "it has no engine for it";
  try {
    const std::unique_ptr<CudnnGraph> graph = attention_graph(library, key);
    const CudnnDescriptor operations = graph->finish(target.handle);
    if (const auto pinned = pinned_engine(library, key, target.capability))
      return pinned_plan(library, operations, *pinned, target);
    for (const CudnnDescriptor& configuration : configurations(library, operations, target)) {
      try {
        return finished_plan(library, configuration, target);
      } catch (const Error& error) {
        why = error.what();
      }
    }
  } catch (const Error& error) {
    if (error.code() != ExitCode::Hardware) throw;
    why = error.what();
  }
  throw Error(ExitCode::Hardware,
              fmt::format("cuDNN {} cannot run {} on compute capability {}.{}: {}",
                          version_text(library.cudnnGetVersion()), to_string(key), target.capability / 10,
                          target.capability % 10, why),
              "heads up to 128 wide run on every GPU from Ampere on; octet doctor shows the versions");
}

}  // namespace octet
