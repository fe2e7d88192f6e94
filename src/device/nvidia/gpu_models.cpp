#include "device/nvidia/gpu_models.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <vector>

#include "base/error.h"
#include "base/text.h"

namespace octet {

namespace {

// NVIDIA's data sheets and architecture white papers, without sparsity. The numbers of B200 and GB200 are
// those of one GPU in an HGX B200 and a GB200 NVL72. Boards that are sold with different memories are listed
// with the smaller one, or twice. NVLink counts where it joins all GPUs of a board; bridges of two
// do not.
constexpr GpuModel models[] = {
    {"h100-pcie", "H100 PCIe", 90, 80, 756, 1513, 2.0, 64},
    {"h100-nvl", "H100 NVL", 90, 94, 835, 1671, 3.9, 64},
    {"h100", "H100", 90, 80, 989.4, 1978.9, 3.35, 450},
    {"h200-nvl", "H200 NVL", 90, 141, 835, 1671, 4.8, 64},
    {"h200", "H200", 90, 141, 989.4, 1978.9, 4.8, 450},
    {"gh200", "GH200", 90, 96, 989.4, 1978.9, 4.0, 450},
    {"h800", "H800", 90, 80, 989.4, 1978.9, 3.35, 200},
    {"h20", "H20", 90, 96, 148, 296, 4.0, 450},
    {"a100-40gb", "A100-SXM4-40GB", 80, 40, 312, 0, 1.555, 300},
    {"a100-40gb", "A100-PCIE-40GB", 80, 40, 312, 0, 1.555, 32},
    {"a100", "A100", 80, 80, 312, 0, 2.039, 300},
    {"a800", "A800", 80, 80, 312, 0, 2.039, 200},
    {"a30", "A30", 80, 24, 165, 0, 0.933, 32},
    {"a40", "A40", 86, 48, 149.7, 0, 0.696, 32},
    {"a10", "A10", 86, 24, 125, 0, 0.6, 32},
    {"l40s", "L40S", 89, 48, 362, 733, 0.864, 32},
    {"l4", "L4", 89, 24, 121, 242.5, 0.3, 32},
    {"rtx4090", "RTX 4090", 89, 24, 165.2, 330.3, 1.008, 32},
    {"rtx3090", "RTX 3090", 86, 24, 71, 0, 0.936, 32},
    {"gb200", "GB200", 100, 186, 2500, 5000, 8.0, 900},
    {"b200", "B200", 100, 180, 2250, 4500, 7.7, 900},
    {"rtx5090", "RTX 5090", 120, 32, 209.5, 419, 1.792, 64},
};

// The name holds `part` as whole words: an A100 is no A10, and an L40S no L4.
bool names(const std::string& name, const std::string& part) {
  const auto letter = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; };
  for (size_t at = name.find(part); at != std::string::npos; at = name.find(part, at + 1)) {
    const size_t end = at + part.size();
    if ((at == 0 || !letter(name[at - 1])) && (end == name.size() || !letter(name[end]))) return true;
  }
  return false;
}

}  // namespace

std::span<const GpuModel> gpu_models() { return models; }

const GpuModel* find_gpu_model(const std::string& device_name) {
  for (const GpuModel& model : models)
    if (names(device_name, model.name)) return &model;
  return nullptr;
}

const GpuModel& gpu_model(const std::string& key) {
  // "NVIDIA RTX 4090" is rtx4090.
  std::string plain;
  for (const char c : key)
    if (std::isalnum(static_cast<unsigned char>(c)) || c == '-')
      plain += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (plain.rfind("nvidia", 0) == 0) plain.erase(0, 6);
  std::vector<std::string> keys;
  for (const GpuModel& model : models) {
    if (plain == model.key) return model;
    if (std::find(keys.begin(), keys.end(), model.key) == keys.end()) keys.push_back(model.key);
  }
  std::string known;
  for (const std::string& one : keys) known += (known.empty() ? "" : ", ") + one;
  const std::string near = nearest(key, keys);
  throw Error(ExitCode::Usage, fmt::format("unknown GPU \"{}\"; known: {}", escape_control(key), known),
              near.empty() ? "name one of them" : fmt::format("did you mean {}?", near));
}

}  // namespace octet
