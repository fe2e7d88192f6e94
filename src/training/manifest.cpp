#include <algorithm>

#include "base/files.h"
#include "base/hash.h"
#include "base/log.h"
#include "training/checkpoint.h"

namespace octet {
namespace {

Json to_json(const GradientReduction::State& s) {
  return {{"log2_mu", s.scale.log2_mu},
          {"clean_steps", s.scale.clean_steps},
          {"saturated", s.saturated},
          {"values", s.values},
          {"counted_log2_mu", s.counted_log2_mu}};
}

GradientReduction::State gradient_reduction_from(const Json& j) {
  GradientReduction::State s;
  s.scale.log2_mu = j.at("log2_mu").get<int>();
  s.scale.clean_steps = j.at("clean_steps").get<int>();
  s.saturated = j.at("saturated").get<uint64_t>();
  s.values = j.at("values").get<uint64_t>();
  s.counted_log2_mu = j.at("counted_log2_mu").get<int>();
  return s;
}

Json to_json(const Fallback& f) {
  return {{"step", f.step},  {"block", f.block},   {"linear", static_cast<int>(f.linear)},
          {"name", f.name},  {"reason", f.reason}, {"value", json_number(f.value)},
          {"limit", f.limit}};
}

Fallback fallback_from(const Json& j) {
  const int linear = j.at("linear").get<int>();
  if (linear < 0 || linear >= block_linears)
    throw Error(ExitCode::Checkpoint, fmt::format("a fallback of linear {}, of {}", linear, block_linears));
  return {j.at("step").get<int64_t>(),       j.at("block").get<int>(),
          static_cast<BlockLinear>(linear),  j.at("name").get<std::string>(),
          j.at("reason").get<std::string>(), number_of(j.at("value")),
          j.at("limit").get<double>()};
}

Json to_json(const TrainingState& s) {
  Json history = Json::array();
  for (double x : s.spike_history) history.push_back(json_number(x));
  Json j = {{"step", s.step},
            {"tokens", s.tokens},
            {"next_sample", s.next_sample},
            {"skipped_steps", s.skipped_steps},
            {"consecutive_nonfinite", s.consecutive_nonfinite},
            {"rollbacks", s.rollbacks},
            {"validated_step", s.validated_step},
            {"loss", json_number(s.loss)},
            {"validation_loss", json_number(s.validation_loss)},
            {"init_hash", s.init_hash},
            {"spike_history", std::move(history)}};
  if (s.gradient_reduction != GradientReduction::State{})
    j["gradient_reduction"] = to_json(s.gradient_reduction);
  if (!s.health.is_null()) j["health"] = s.health;
  for (const Fallback& one : s.fallbacks) j["fallbacks"].push_back(to_json(one));
  if (s.fallbacks_used_up) j["fallbacks_used_up"] = true;
  return j;
}

TrainingState state_from(const Json& j) {
  TrainingState s;
  s.step = j.at("step").get<int64_t>();
  s.tokens = j.at("tokens").get<int64_t>();
  s.next_sample = j.at("next_sample").get<int64_t>();
  s.skipped_steps = j.at("skipped_steps").get<int64_t>();
  s.consecutive_nonfinite = j.at("consecutive_nonfinite").get<int64_t>();
  s.rollbacks = j.at("rollbacks").get<int64_t>();
  s.validated_step = j.at("validated_step").get<int64_t>();
  s.loss = number_of(j.at("loss"));
  s.validation_loss = number_of(j.at("validation_loss"));
  s.init_hash = j.at("init_hash").get<std::string>();
  for (const Json& x : j.at("spike_history")) s.spike_history.push_back(number_of(x));
  if (j.contains("gradient_reduction"))
    s.gradient_reduction = gradient_reduction_from(j.at("gradient_reduction"));
  if (j.contains("health")) s.health = j.at("health");
  if (j.contains("fallbacks"))
    for (const Json& one : j.at("fallbacks")) s.fallbacks.push_back(fallback_from(one));
  s.fallbacks_used_up = j.value("fallbacks_used_up", false);
  return s;
}

std::string sealed(Json body) {
  body["checksum"] = hex(hash64(body.dump(2).data(), body.dump(2).size()));
  return body.dump(2) + "\n";
}

[[noreturn]] void damaged(const std::string& source, const std::string& why) {
  throw Error(ExitCode::Checkpoint, fmt::format("{}: {}", source, why),
              "this checkpoint is damaged: resume from an earlier one with --resume PATH");
}

}  // namespace

std::string to_text(const Manifest& m) {
  Json files = Json::array();
  for (const CheckpointFile& f : m.files)
    files.push_back({{"name", f.name}, {"bytes", f.bytes}, {"xxh3", f.hash}});
  return sealed({{"format", checkpoint_format},
                 {"version", m.version},
                 {"step", m.state.step},
                 {"non_finite", false},
                 {"config_hash", m.config_hash},
                 {"data_fingerprint", m.data_fingerprint},
                 {"state", to_json(m.state)},
                 {"files", std::move(files)},
                 {"config", m.config}});
}

Manifest parse_manifest(const std::string& text, const std::string& source) {
  Json j = Json::parse(text, nullptr, false);
  if (!j.is_object() || !j.contains("checksum")) damaged(source, "is not a checkpoint manifest");
  // The text must be exactly what its own content seals to, so any changed byte shows, white space included.
  Json body = j;
  body.erase("checksum");
  if (sealed(body) != text) damaged(source, "checksum mismatch");
  try {
    const int format = j.at("format").get<int>();
    if (format > checkpoint_format)
      throw Error(ExitCode::Checkpoint,
                  fmt::format("{}: checkpoint format {}, written by octet {}; this binary reads up to {}",
                              source, format, j.value("version", "?"), checkpoint_format),
                  "resume with that version of octet or a newer one");
    if (j.at("non_finite").get<bool>()) damaged(source, "was marked as holding non-finite weights");
    Manifest m;
    m.config = j.at("config");
    m.config_hash = j.at("config_hash").get<std::string>();
    m.data_fingerprint = j.at("data_fingerprint").get<std::string>();
    m.version = j.at("version").get<std::string>();
    m.state = state_from(j.at("state"));
    for (const Json& f : j.at("files")) {
      CheckpointFile file{f.at("name").get<std::string>(), f.at("bytes").get<uint64_t>(),
                          f.at("xxh3").get<std::string>()};
      if (file.name.empty() || file.name[0] == '.' || file.name.find('/') != std::string::npos)
        damaged(source, fmt::format("lists a file outside its folder: {}", file.name));
      m.files.push_back(std::move(file));
    }
    return m;
  } catch (const Json::exception& error) {
    damaged(source, error.what());
  }
}

Manifest read_manifest(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / manifest_file;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored))
    throw Error(ExitCode::Checkpoint,
                std::filesystem::exists(folder, ignored)
                    ? fmt::format("{}: incomplete: no {}", folder.string(), manifest_file)
                    : fmt::format("{}: no such checkpoint", folder.string()),
                "give --resume the folder of a whole checkpoint (octet checkpoint list)");
  Manifest manifest = parse_manifest(read_text(path, ExitCode::Checkpoint), path.string());
  const std::string name = (folder / "").parent_path().filename().string();
  if (const std::optional<int64_t> step = step_of(name); step && *step != manifest.state.step)
    throw Error(ExitCode::Checkpoint,
                fmt::format("{}: the folder is called {}, its manifest is of step {}", folder.string(), name,
                            manifest.state.step),
                fmt::format("call the folder {} again", checkpoint_name(manifest.state.step)));
  return manifest;
}

Manifest verify_checkpoint(const std::filesystem::path& folder) {
  Manifest manifest = read_manifest(folder);
  std::vector<char> buffer(1u << 20);
  for (const CheckpointFile& f : manifest.files) {
    const std::filesystem::path path = folder / f.name;
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored))
      damaged(path.string(), "missing: the checkpoint is incomplete");
    const FileReader file(path, ExitCode::Checkpoint);
    if (file.size() != f.bytes)
      damaged(path.string(), fmt::format("{} bytes, the manifest says {}", file.size(), f.bytes));
    StreamHash hash;
    for (uint64_t at = 0; at < f.bytes; at += buffer.size()) {
      const size_t n = static_cast<size_t>(std::min<uint64_t>(buffer.size(), f.bytes - at));
      file.read(at, buffer.data(), n);
      hash.update(buffer.data(), n);
    }
    if (hex(hash.digest()) != f.hash)
      damaged(path.string(),
              fmt::format("checksum mismatch: XXH3 {}, the manifest says {}", hex(hash.digest()), f.hash));
  }
  return manifest;
}

}  // namespace octet
