// The files of a run folder, and what other floors may rely on in them (docs/formats.md).
//
//   config.json      resolved configuration + "octet" {version, config_hash}
//   status.json      {"state": "running|finished|stopped|failed", "exit_code", "reason", "step", "time"};
//     "running" without a process that holds the folder's lock was killed (run_status.h)
//   metrics.jsonl    one JSON object a line:
//     {"kind":"start", "step":k, "time":unix, "config_hash":"..", "init_hash":"..", "data_fingerprint":"..",
//     "device":"..",
//      "version":"..", "recipe":"..", "stage":n (from 1),
//      "gemm_table":[{"class","a","b","out","implementation","calls","flops"}], "parameters":n,
//      "memory_bytes":n, "environment":{..}}
//     {"kind":"step", "step":k (from 1: updates done), "tokens":n, "time":unix, "train/loss":x,
//     "train/grad_norm":x, "train/learning_rate":x,
//      "train/skipped":0|1, "data/batch_hash":"16 hex", "perf/tokens_per_second":x, "perf/step_seconds":x,
//      "perf/fp8_flop_share":x, "memory/bytes":n}; of several ranks also "comm/gradient_bytes":n,
//      "comm/weight_bytes":n, "comm/other_bytes":n (payload sent since the step before, the most of any
//      rank), "comm/waited_seconds":x (mean over the ranks of the time that the host, on a GPU its queue,
//      stood still for others)
//     {"kind":"validation", "step":k, "validation/loss":x, "validation/bits_per_token":x}
//     {"kind":"health", "step":k,
//      "sites":[{"name","block","amax","scale","saturated":share,"flushed":share,"utilisation","snr_db"}],
//      "activations":{"qkv":{"kurtosis":[by block],"sequence_kurtosis","mean","rms","max","amax"}, ..},
//      "blocks":{"log_sum_exp":[by block],"channel","channel_amax","channel_median","neuron","cosine",
//      "neuron_amax"}, "weights":[{"name","rms","growth","update_rms"}], "health/..": the worst of all}
//     {"kind":"event", "step":k, "event":"spike|skipped|rollback|checkpoint|resume|stop|epoch|warning|inject|
//     precision|fallback", "message":".."}; a warning also "rule", "subject", "block", "value"; a fallback
//     "linear", "reason", "value", "limit"; "precision" is of a stage's first step
//   events.out.tfevents.*    TensorBoard, the same names
//   checkpoints/step-00000100/
// Non-finite numbers are the strings "NaN", "Infinity", "-Infinity". After a resume from step k, readers drop
// earlier records with step > k.
#pragma once
#include <string>

namespace octet {
inline constexpr const char* config_file = "config.json";
inline constexpr const char* status_file = "status.json";
inline constexpr const char* metrics_file = "metrics.jsonl";
inline constexpr const char* checkpoint_folder = "checkpoints";
}  // namespace octet
