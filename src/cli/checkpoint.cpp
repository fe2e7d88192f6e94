// octet checkpoint list | verify | diff
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/text.h"
#include "cli/command.h"
#include "numerics/bfloat16.h"
#include "numerics/float16.h"
#include "numerics/float8.h"
#include "tensor/safetensors.h"
#include "training/checkpoint.h"
#include "training/run_files.h"
#include "training/run_status.h"

namespace octet {
namespace fs = std::filesystem;
namespace {

// Without the slash that a shell's completion leaves: the last component is the folder's name.
fs::path folder_named(const std::string& text) {
  const fs::path path(text);
  return path.has_filename() || !path.has_relative_path() ? path : path.parent_path();
}

std::string describe(const RunStatus& status) {
  if (status.state == "killed")
    return "killed: its process ended without a word; octet train goes on from the newest";
  return escape_control(status.state) + (status.reason.empty() ? "" : ": " + escape_control(status.reason));
}

// A run folder, its checkpoints folder, or one checkpoint.
std::vector<CheckpointEntry> entries_at(const fs::path& path) {
  if (fs::exists(path / manifest_file)) return {{read_manifest(path).state.step, path}};
  std::vector<CheckpointEntry> entries = list_checkpoints(path / checkpoint_folder);
  if (entries.empty()) entries = list_checkpoints(path);
  if (!entries.empty()) return entries;
  if (const std::optional<RunStatus> status = read_status(path)) {
    const bool killed = status->state == "killed";
    throw Error(ExitCode::Checkpoint,
                fmt::format("{}: a run without a checkpoint; state: {}", escape_control(path.string()),
                            killed ? "killed" : describe(*status)),
                status->state == "running" ? "wait for its first, checkpoint.every steps after the start"
                                           : "octet train starts it again");
  }
  throw Error(ExitCode::Checkpoint, fmt::format("{}: no checkpoints here", escape_control(path.string())),
              "give a run's folder, its checkpoints folder or one checkpoint");
}

// What the sizes on disk say, without reading a byte.
std::string damage_by_size(const CheckpointEntry& entry, const Manifest& manifest) {
  for (const CheckpointFile& file : manifest.files) {
    std::error_code missing;
    const uint64_t bytes = fs::file_size(entry.folder / file.name, missing);
    if (missing) return fmt::format("{} is missing", escape_control(file.name));
    if (bytes != file.bytes)
      return fmt::format("{} has {} bytes, expected {}", escape_control(file.name), bytes, file.bytes);
  }
  return {};
}

int list(const fs::path& path) {
  const std::vector<CheckpointEntry> entries = entries_at(path);  // nothing is printed when there are none
  fmt::print("{:<28} {:>9} {:>14} {:>9} {:>10} {:>16}\n", "checkpoint", "step", "tokens", "loss", "bytes",
             "config");
  for (const CheckpointEntry& entry : entries) {
    const std::string name = escape_control(entry.folder.filename().string());
    try {
      const Manifest m = read_manifest(entry.folder);
      const std::string damage = damage_by_size(entry, m);
      if (!damage.empty()) {
        fmt::print("{:<28} {:>9} DAMAGED: {}\n", name, m.state.step, damage);
        continue;
      }
      uint64_t bytes = 0;
      for (const CheckpointFile& f : m.files) bytes += f.bytes;
      fmt::print("{:<28} {:>9} {:>14} {:>9.4f} {:>10} {:>16}\n", name, m.state.step, m.state.tokens,
                 m.state.loss, human_bytes(bytes), m.config_hash);
    } catch (const Error& error) {
      fmt::print("{:<28} {}\n", name, escape_control(error.what()));
    }
  }
  const fs::path run = fs::exists(path / status_file) ? path : path.parent_path();
  if (const std::optional<RunStatus> status = read_status(run)) fmt::print("state: {}\n", describe(*status));
  return 0;
}

int verify(const fs::path& path) {
  int damaged = 0;
  for (const CheckpointEntry& entry : entries_at(path)) {
    const std::string error = [&]() -> std::string {
      try {
        verify_checkpoint(entry.folder);
        return {};
      } catch (const Error& e) {
        return e.what();
      }
    }();
    damaged += error.empty() ? 0 : 1;
    fmt::print("{}: {}\n", escape_control(entry.folder.filename().string()),
               error.empty() ? "whole" : "DAMAGED: " + escape_control(error));
  }
  return damaged == 0 ? 0 : static_cast<int>(ExitCode::Checkpoint);
}

// One element as a number, whatever its type.
double value_at(DType type, const char* data, int64_t i) {
  switch (type) {
    case DType::F32: {
      float x;
      std::memcpy(&x, data + 4 * i, 4);
      return static_cast<double>(x);
    }
    case DType::BF16: {
      BFloat16 x;
      std::memcpy(&x, data + 2 * i, 2);
      return static_cast<double>(to_float(x));
    }
    case DType::F16: {
      Float16 x;
      std::memcpy(&x, data + 2 * i, 2);
      return static_cast<double>(to_float(x));
    }
    case DType::U16: {
      uint16_t x;
      std::memcpy(&x, data + 2 * i, 2);
      return static_cast<double>(x);
    }
    case DType::E4M3:
      return static_cast<double>(decode_e4m3(static_cast<uint8_t>(data[i])));
    case DType::E5M2:
      return static_cast<double>(decode_e5m2(static_cast<uint8_t>(data[i])));
    default:
      return static_cast<double>(static_cast<uint8_t>(data[i]));
  }
}

// Prints where the two differ; true when a tensor does.
bool differ(const SafetensorsReader& a, const SafetensorsEntry& ea, const SafetensorsReader& b) {
  if (!b.contains(ea.name)) {
    fmt::print("{}: only in the first\n", ea.name);
    return true;
  }
  const SafetensorsEntry& eb = b.find(ea.name);
  if (ea.dtype != eb.dtype || !(ea.shape == eb.shape)) {
    fmt::print("{}: {} {} and {} {}\n", ea.name, name_of(ea.dtype), to_string(ea.shape), name_of(eb.dtype),
               to_string(eb.shape));
    return true;
  }
  std::vector<char> x(ea.bytes), y(eb.bytes);
  a.read(ea, x.data());
  b.read(eb, y.data());
  if (x == y) return false;
  const int64_t n = ea.shape.elements(), width = static_cast<int64_t>(size_of(ea.dtype));
  int64_t first = -1, count = 0;
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (std::memcmp(x.data() + i * width, y.data() + i * width, static_cast<size_t>(width)) == 0) continue;
    if (first < 0) first = i;
    ++count;
    largest = std::max(largest, std::abs(value_at(ea.dtype, x.data(), i) - value_at(eb.dtype, y.data(), i)));
  }
  fmt::print("{}: {} of {} elements differ, largest difference {:.3g}; first at [{}]: {} and {}\n", ea.name,
             count, n, largest, first, value_at(ea.dtype, x.data(), first),
             value_at(eb.dtype, y.data(), first));
  return true;
}

// A run's folder holds several; which one is meant is the caller's choice.
const fs::path& one_checkpoint(const fs::path& path) {
  if (fs::exists(path / manifest_file) || list_checkpoints(path / checkpoint_folder).empty()) return path;
  throw Error(ExitCode::Usage, fmt::format("{}: a run, not a checkpoint", escape_control(path.string())),
              fmt::format("choose one of its checkpoints, for example {}",
                          escape_control(list_checkpoints(path / checkpoint_folder).back().folder.string())));
}

// Every key with another value, objects entered, arrays and values as one; prints nothing about the files.
void print_differences(const Json& a, const Json& b, const std::string& at) {
  const auto shown = [](const Json& object, const std::string& key) {
    if (!object.contains(key)) return std::string("nothing");
    const std::string text = object.at(key).dump(-1, ' ', false, Json::error_handler_t::replace);
    return text.size() > 60 ? text.substr(0, 57) + "..." : text;
  };
  std::vector<std::string> keys;
  for (const Json* object : {&a, &b})
    for (const auto& [key, value] : object->items())
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
  for (const std::string& key : keys) {
    const bool both = a.contains(key) && b.contains(key);
    if ((both && a.at(key) == b.at(key)) || at + key == "/files" || at + key == "/checksum") continue;
    if (both && a.at(key).is_object() && b.at(key).is_object())
      print_differences(a.at(key), b.at(key), at + key + "/");
    else
      fmt::print("manifest {}: {} and {}\n", escape_control(at + key), escape_control(shown(a, key)),
                 escape_control(shown(b, key)));
  }
}

int diff(const fs::path& a, const fs::path& b) {
  const Manifest ma = verify_checkpoint(one_checkpoint(a)), mb = verify_checkpoint(one_checkpoint(b));
  if (to_text(ma) == to_text(mb)) {
    fmt::print("equal: step {}, every byte\n", ma.state.step);
    return 0;
  }
  print_differences(Json::parse(to_text(ma)), Json::parse(to_text(mb)), "/");
  bool tensors = false;
  for (const CheckpointFile& file : ma.files) {
    if (std::find(mb.files.begin(), mb.files.end(), file) != mb.files.end()) continue;
    if (!fs::exists(b / file.name)) {
      fmt::print("{}: only in the first\n", file.name);
      tensors = true;
      continue;
    }
    const SafetensorsReader ra(a / file.name, ExitCode::Checkpoint), rb(b / file.name, ExitCode::Checkpoint);
    for (const SafetensorsEntry& entry : ra.entries()) tensors = differ(ra, entry, rb) || tensors;
    for (const SafetensorsEntry& entry : rb.entries())
      if (!ra.contains(entry.name)) {
        fmt::print("{}: only in the second\n", entry.name);
        tensors = true;
      }
  }
  for (const CheckpointFile& file : mb.files)
    if (!fs::exists(a / file.name)) {
      fmt::print("{}: only in the second\n", file.name);
      tensors = true;
    }
  if (!tensors) fmt::print("all tensors are equal\n");
  return 1;
}

}  // namespace

void add_checkpoint(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("checkpoint", "What is there, is it whole, are two equal");
  command->require_subcommand(1);
  auto first = std::make_shared<std::string>(), second = std::make_shared<std::string>();

  CLI::App* l = command->add_subcommand("list", "Step, tokens, loss and size of every checkpoint");
  l->add_option("PATH", *first, "a run's folder")->required();
  l->footer("Example:\n  octet checkpoint list runs/quickstart/fp8");
  l->callback([first, &action] { action = [first] { return list(folder_named(*first)); }; });

  CLI::App* v = command->add_subcommand(
      "verify", "Read every byte and compare checksums; exit code 4 when one is damaged");
  v->add_option("PATH", *first, "a run's folder, or one checkpoint")->required();
  v->footer("Example:\n  octet checkpoint verify runs/quickstart/fp8");
  v->callback([first, &action] { action = [first] { return verify(folder_named(*first)); }; });

  CLI::App* d = command->add_subcommand(
      "diff", "Are two checkpoints equal, and where do they first differ; exit code 1 when they differ");
  d->add_option("FIRST", *first, "a checkpoint")->required();
  d->add_option("SECOND", *second, "another checkpoint")->required();
  d->footer(
      "Example:\n  octet checkpoint diff runs/a/checkpoints/step-00000100 runs/b/checkpoints/step-00000100");
  d->callback([first, second, &action] { action = [first, second] { return diff(*first, *second); }; });
  command->footer("Example:\n  octet checkpoint verify runs/quickstart/fp8");
}

}  // namespace octet
