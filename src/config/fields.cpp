#include "config/fields.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <limits>

#include "config/field_builders.h"
#include "config/precision_fields.h"
#include "config/presets.h"
#include "numerics/recipes.h"

namespace octet {
namespace {

using namespace field_builders;

template <class At>
Field sources(const char* pointer, At at, const About& about) {
  Field field = base(pointer, ValueKind::Sources, about);
  field.get = [at](const RunConfig& c) {
    Json list = Json::array();
    for (const DataSource& source : at(c)) {
      list.push_back({{"name", source.name}, {"files", source.files}, {"weight", source.weight}});
    }
    return list;
  };
  field.set = [at](RunConfig& c, const Json& v) {
    std::vector<DataSource> list;
    for (const Json& entry : v) {
      if (entry.is_string()) {
        if (list.empty()) list.emplace_back();
        list.back().files.push_back(entry.get<std::string>());
      } else {
        DataSource source;
        if (entry.contains("name")) source.name = entry["name"].get<std::string>();
        if (entry.contains("weight")) source.weight = entry["weight"].get<double>();
        source.files = entry["files"].get<std::vector<std::string>>();
        list.push_back(source);
      }
    }
    at(c) = list;
  };
  return field;
}

constexpr double largest_int64 = 9223372036854774784.0;  // the largest double below 2^63
constexpr Bounds counting{0, largest_int64};
constexpr Bounds positive{0, std::numeric_limits<double>::max(), true, false};
constexpr Bounds not_negative{0, std::numeric_limits<double>::max()};

using List = std::vector<Field>;

void add_run(List& list) {
  list.push_back(
      text("/run/name", AT(run.name), about("name of the run: letters, digits, '.', '_' and '-'", Free)));
  list.push_back(text("/run/output", AT(run.output), about("folder of the run; empty: runs/NAME", Free)));
  list.push_back(
      integer("/run/seed", AT(run.seed), counting,
              about("seeds the initial weights, the data order and stochastic rounding", Forbidden)));
  list.push_back(
      integer("/run/steps", AT(run.steps), {1, 1e12}, about("optimizer steps of the whole run", Recorded)));
  list.push_back(boolean("/run/deterministic", AT(run.deterministic),
                         about("only operations whose order of sums is fixed", Recorded)));
  list.push_back(
      boolean("/run/cuda_graphs", AT(run.cuda_graphs),
              about("replay forward and backward as a CUDA graph; off to look for a fault", Free)));
  list.push_back(
      integer("/run/threads", AT(run.threads), {0, 1024}, about("threads of the CPU device; 0: all", Free)));
}

void add_model(List& list) {
  Field preset = word("/model/preset", AT(model.preset), model_names(),
                      {"a shape by name; the keys beside it override", Free, false});
  preset.set = [](RunConfig& c, const Json& v) { c.model = make_model(v.get<std::string>()); };
  list.push_back(preset);
  list.push_back(
      integer("/model/layers", AT(model.layers), {1, 1024}, about("transformer blocks", Forbidden)));
  list.push_back(
      integer("/model/width", AT(model.width), {1, 65536}, about("size of the residual stream", Forbidden)));
  list.push_back(integer("/model/heads", AT(model.heads), {1, 1024}, about("query heads", Forbidden)));
  list.push_back(integer("/model/kv_heads", AT(model.kv_heads), {1, 1024},
                         about("key and value heads; divides heads", Forbidden)));
  list.push_back(integer("/model/head_width", AT(model.head_width), {0, 1024},
                         about("size of a head; 0: width / heads", Forbidden)));
  list.push_back(integer("/model/ffn_width", AT(model.ffn_width), {1, 262144},
                         about("inner size of the feed-forward layer", Forbidden)));
  list.push_back(integer("/model/context", AT(model.context), {1, 1 << 20},
                         about("tokens of a context window", Forbidden)));
  list.push_back(integer("/model/vocabulary", AT(model.vocabulary), {2, 1 << 24},
                         about("token ids are below this", Forbidden)));
  list.push_back(boolean("/model/tied_head", AT(model.tied_head),
                         about("the output head is the token table", Forbidden)));
  list.push_back(boolean("/model/qkv_bias", AT(model.qkv_bias),
                         about("biases on query, key and value (Qwen2.5)", Forbidden)));
  list.push_back(number("/model/norm_epsilon", AT(model.norm_epsilon), {0, 1, true, false},
                        about("epsilon of RMSNorm", Forbidden)));
  list.push_back(number("/model/rope_base", AT(model.rope_base), {1, 1e12, true, false},
                        about("base of the rotary frequencies", Forbidden)));
  list.push_back(number("/model/rope_scaling/factor", AT(model.rope_scaling.factor), {1, 1e6},
                        about("Llama-3 frequency scaling; 1: off", Forbidden)));
  list.push_back(number("/model/rope_scaling/low_frequency_factor",
                        AT(model.rope_scaling.low_frequency_factor), positive,
                        about("wavelengths above original_context / this are stretched", Forbidden)));
  list.push_back(number("/model/rope_scaling/high_frequency_factor",
                        AT(model.rope_scaling.high_frequency_factor), positive,
                        about("wavelengths below original_context / this stay", Forbidden)));
  list.push_back(integer("/model/rope_scaling/original_context", AT(model.rope_scaling.original_context),
                         {1, 1 << 24}, about("context before scaling", Forbidden)));
  list.push_back(number("/model/init_deviation", AT(model.init_deviation), {0, 10, true, false},
                        about("standard deviation of initial weights, parametrization \"standard\"; residual "
                              "projections without post_norm: divided by sqrt(2 layers)",
                              Recorded)));
  list.push_back(
      boolean("/model/pre_norm", AT(model.pre_norm), about("normalise what each layer reads", Forbidden)));
  list.push_back(
      boolean("/model/final_norm", AT(model.final_norm), about("normalise before the head", Forbidden)));
  list.push_back(choice(
      "/model/post_norm", AT(model.post_norm),
      Names<PostNorm>{
          {PostNorm::None, "none"}, {PostNorm::RMS, "rms"}, {PostNorm::LayerScale, "layer_scale"}},
      about("what each layer leaves, before it is added: as it is, normalised, or times a gain", Forbidden)));
  list.push_back(number("/model/post_norm_initial_gain", AT(model.post_norm_initial_gain), not_negative,
                        about("initial gain of post_norm; 0: 1 / sqrt(layers)", Recorded)));
  list.push_back(choice("/model/qk_norm", AT(model.qk_norm),
                        Names<QkNorm>{{QkNorm::None, "none"},
                                      {QkNorm::RMS, "rms"},
                                      {QkNorm::RMSFrozen, "rms_frozen"},
                                      {QkNorm::Tanh, "tanh"}},
                        about("queries and keys, per head, before RoPE: normalised, with trained gains or "
                              "without, or squashed",
                              Forbidden)));
  list.push_back(number("/model/softmax_scale", AT(model.softmax_scale), not_negative,
                        about("factor of the attention logits; 0: 1 / sqrt(head_width), with rms_frozen "
                              "sqrt(2) / sqrt(head_width)",
                              Forbidden)));
  list.push_back(choice(
      "/model/parametrization", AT(model.parametrization),
      Names<Parametrization>{{Parametrization::Standard, "standard"}, {Parametrization::Unit, "unit"}},
      about("what weights start from and how fast they learn: init_deviation and the learning rate, or what "
            "makes products of numbers of deviation one, with rates that are meant to hold for every width "
            "(mu-nit Scaling)",
            Forbidden)));
  list.push_back(
      integer("/model/base_width", AT(model.base_width), {1, 1 << 20},
              about("parametrization \"unit\": the width at which the learning rate was found", Recorded)));
  list.push_back(choice("/model/residual", AT(model.residual),
                        Names<Residual>{{Residual::Sum, "sum"}, {Residual::Weighted, "weighted"}},
                        about("x + f(x), or sqrt(1 - tau) x + sqrt(tau) f(x)", Forbidden)));
  list.push_back(number("/model/residual_tau", AT(model.residual_tau), {0, 1, false, true},
                        about("tau of a weighted residual stream; 0: 0.4 (4 / layers)^0.43", Forbidden)));
  list.push_back(number("/model/softmax_clip_low", AT(model.softmax_clip_low), {-1, 0, true, false},
                        about("clipped softmax, clip((high - low) P + low, 0, 1): low; 0: off", Forbidden)));
  list.push_back(number("/model/softmax_clip_high", AT(model.softmax_clip_high), {1, 100},
                        about("clipped softmax: high; 1: off", Forbidden)));
  list.push_back(number("/model/input_multiplier", AT(model.input_multiplier), positive,
                        about("factor of the embedding", Forbidden)));
  list.push_back(choice("/model/activation", AT(model.activation),
                        Names<Activation>{{Activation::SwiGLU, "swiglu"},
                                          {Activation::GELU, "gelu"},
                                          {Activation::ReLU2, "relu2"},
                                          {Activation::XIELU, "xielu"}},
                        about("activation of the feed-forward layer", Forbidden)));
}

void add_data(List& list) {
  list.push_back(sources("/data/train", AT(data.train),
                         {"training shards: paths or globs, or weighted sources", Recorded}));
  list.push_back(sources("/data/validation", AT(data.validation),
                         {"validation shards, in the same form", Recorded, false}));
  list.push_back(
      word("/data/raw_width", AT(data.raw_width), {"", "uint16", "uint32"},
           about("width of ids in files without a header; empty: such files are refused", Recorded)));
  list.push_back(integer("/data/epochs", AT(data.epochs), {0, 1e9},
                         {"passes over the data allowed; 0: any number", Free, false}));
  list.push_back(boolean("/data/shuffle", AT(data.shuffle),
                         about("shuffle the context windows of every epoch", Forbidden)));
}

void add_batch(List& list) {
  list.push_back(integer("/batch/tokens", AT(batch.tokens), {1, 1e12},
                         about("tokens of one step, over all ranks", Forbidden)));
  list.push_back(integer("/batch/micro", AT(batch.micro), {1, 1 << 20},
                         about("context windows of one micro-batch", Recorded)));
  list.push_back(choice("/batch/recompute", AT(batch.recompute),
                        Names<Recompute>{{Recompute::None, "none"},
                                         {Recompute::NormsAndSwiGLU, "norms_and_swiglu"},
                                         {Recompute::Block, "block"}},
                        about("activations recomputed in backward; the result never changes", Free)));
  list.push_back(integer("/batch/head_chunk", AT(batch.head_chunk), {1, 1 << 24},
                         about("tokens whose logits exist at once", Recorded)));
  list.push_back(choice("/memory/offload", AT(memory.offload),
                        Names<Offload>{{Offload::None, "none"}, {Offload::Optimizer, "optimizer"}},
                        about("states kept in host memory; the result never changes", Free)));
  list.push_back(integer(
      "/parallel/zero", AT(parallel.zero), {0, 2},
      about("what the ranks share out: 0 nothing, 1 masters and moments, 2 gradients too", Recorded)));
  // 0 and 1 have the same bits; 2 adds gradients up in another order.
  list.back().numbers = [](const Json& zero) { return Json(zero.get<int64_t>() > 1); };
  list.push_back(
      choice("/parallel/reduce", AT(parallel.reduce),
             Names<GradientWire>{
                 {GradientWire::FP32, "fp32"}, {GradientWire::BF16, "bf16"}, {GradientWire::FP8, "fp8"}},
             about("format of gradients between ranks", Recorded)));
  list.push_back(integer("/parallel/sync_every", AT(parallel.sync_every), {1, 1e6},
                         about("steps that each rank trains alone before the ranks' masters are made one "
                               "(local SGD); 1: gradients are added up in every step",
                               Recorded)));
  list.push_back(
      number("/parallel/outer_learning_rate", AT(parallel.outer_learning_rate), {0, 10, true, false},
             about("local SGD: how far the masters go along the ranks' mean difference", Recorded)));
  list.push_back(number("/parallel/outer_momentum", AT(parallel.outer_momentum), {0, 1, false, true},
                        about("local SGD: Nesterov's momentum of the outer step", Recorded)));
  list.push_back(number("/parallel/timeout_seconds", AT(parallel.timeout_seconds), {0.5, 86400},
                        about("a rank that is silent for so long is lost, and the others stop", Free)));
  list.push_back(number("/parallel/stall_seconds", AT(parallel.stall_seconds), {0, 86400},
                        about("a rank that others wait for and that makes no progress for so long is lost; "
                              "0: never",
                              Free)));
  list.push_back(number("/loss/z_loss", AT(loss.z_loss), {0, 1},
                        about("factor of the squared log of the softmax sum", Recorded)));
}

void add_optimizer(List& list) {
  list.push_back(
      choice("/optimizer/name", AT(optimizer.name),
             Names<OptimizerName>{{OptimizerName::AdamW, "adamw"}, {OptimizerName::Muon, "muon"}},
             about("the optimizer; muon: of the blocks' matrices, with adamw for the rest", Forbidden)));
  list.push_back(number("/optimizer/beta1", AT(optimizer.beta1), {0, 1, false, true},
                        about("decay of the first moment", Recorded)));
  list.push_back(number("/optimizer/beta2", AT(optimizer.beta2), {0, 1, false, true},
                        about("decay of the second moment", Recorded)));
  list.push_back(number("/optimizer/epsilon", AT(optimizer.epsilon), {0, 1, true, false},
                        about("added to the root of the second moment", Recorded)));
  list.push_back(number("/optimizer/weight_decay", AT(optimizer.weight_decay), {0, 100},
                        about("decoupled decay of matrices", Recorded)));
  list.push_back(number("/optimizer/clip_norm", AT(optimizer.clip_norm), not_negative,
                        about("largest global gradient norm; 0: no clipping", Recorded)));
  list.push_back(boolean("/optimizer/decay_embeddings", AT(optimizer.decay_embeddings),
                         about("decay the token table and the head too", Recorded)));
  list.push_back(boolean("/optimizer/update_clipping", AT(optimizer.update_clipping),
                         about("divide a tensor's learning rate by the root mean square of its update where "
                               "that exceeds 1 (StableAdamW)",
                               Recorded)));
  list.push_back(number("/optimizer/muon_momentum", AT(optimizer.muon_momentum), {0, 1, false, true},
                        about("muon: decay of the momentum", Recorded)));
  list.push_back(integer("/optimizer/muon_steps", AT(optimizer.muon_steps), {1, 20},
                         about("muon: Newton-Schulz iterations", Recorded)));
  list.push_back(choice("/schedule/name", AT(schedule.name),
                        Names<ScheduleName>{{ScheduleName::Constant, "constant"},
                                            {ScheduleName::Linear, "linear"},
                                            {ScheduleName::Cosine, "cosine"},
                                            {ScheduleName::WSD, "wsd"}},
                        about("shape of the learning rate after warmup", Recorded)));
  list.push_back(number("/schedule/learning_rate", AT(schedule.learning_rate), {0, 100, true, false},
                        about("peak learning rate", Recorded)));
  list.push_back(integer("/schedule/warmup_steps", AT(schedule.warmup_steps), {0, 1e12},
                         about("steps of linear warmup", Recorded)));
  list.push_back(number("/schedule/final_fraction", AT(schedule.final_fraction), {0, 1},
                        about("learning rate of the last step, as a share of the peak", Recorded)));
  list.push_back(number("/schedule/cooldown_fraction", AT(schedule.cooldown_fraction), {0, 1},
                        about("wsd: share of the run that cools down as 1 - sqrt", Recorded)));
  list.push_back(
      integer("/schedule/final_steps", AT(schedule.final_steps), {0, 1e12},
              about("last steps of the run that stay at the rate at which the schedule ends", Recorded)));
}

void add_rest(List& list) {
  list.push_back(integer("/checkpoint/every", AT(checkpoint.every), {0, 1e12},
                         about("steps between checkpoints; 0: only at the end and on request", Free)));
  list.push_back(
      integer("/checkpoint/keep", AT(checkpoint.keep), {1, 1e6}, about("newest checkpoints kept", Free)));
  list.push_back(integer("/checkpoint/keep_every", AT(checkpoint.keep_every), {0, 1e12},
                         about("steps between checkpoints that are kept for good; 0: none", Free)));
  list.push_back(boolean("/checkpoint/asynchronous", AT(checkpoint.asynchronous),
                         about("write while training goes on", Free)));
  list.push_back(word("/checkpoint/on_error", AT(checkpoint.on_error), {"continue", "exit"},
                      about("what a failed save does", Free)));
  list.push_back(integer("/evaluation/every", AT(evaluation.every), {0, 1e12},
                         about("steps between validations; 0: never", Free)));
  list.push_back(integer("/evaluation/batches", AT(evaluation.batches), {1, 1e9},
                         about("micro-batches of a validation", Free)));
  list.push_back(integer("/log/every", AT(log.every), {1, 1e9}, about("steps between metric records", Free)));
  list.push_back(
      boolean("/log/tensorboard", AT(log.tensorboard), about("write TensorBoard events too", Free)));
  list.push_back(integer("/health/every", AT(health.every), {0, 1e12},
                         about("steps between statistics and the warnings they give; 0: off", Free)));
  list.push_back(
      boolean("/health/activations", AT(health.activations),
              about("statistics of activations and weights too, beside those of FP8 casts", Free)));
  list.push_back(integer("/health/stop_after_nonfinite", AT(health.stop_after_nonfinite), {1, 1e9},
                         about("consecutive non-finite steps that stop the run", Free)));
  list.push_back(
      choice("/health/on_spike", AT(health.on_spike),
             Names<SpikePolicy>{
                 {SpikePolicy::Log, "log"}, {SpikePolicy::Skip, "skip"}, {SpikePolicy::Rollback, "rollback"}},
             about("what a loss spike does", Recorded)));
  list.push_back(number("/health/spike_deviations", AT(health.spike_deviations), {0, 1e6, true, false},
                        about("robust deviations above the median that make a spike", Recorded)));
  list.push_back(integer("/health/spike_window", AT(health.spike_window), {8, 65536},
                         about("steps the spike detector remembers", Recorded)));
  list.push_back(integer("/health/max_rollbacks", AT(health.max_rollbacks), {0, 1000},
                         about("rollbacks after which a spike stops the run", Recorded)));
}

std::vector<Field> make_fields() {
  List list;
  add_run(list);
  add_model(list);
  add_precision(list);
  add_data(list);
  add_batch(list);
  add_optimizer(list);
  add_rest(list);
  return list;
}

std::string limit(ValueKind kind, double value) {
  return kind == ValueKind::Integer && std::abs(value) < 1e15 ? fmt::format("{:.0f}", value)
                                                              : fmt::format("{:g}", value);
}

}  // namespace

const std::vector<Field>& fields() {
  static const std::vector<Field> table = make_fields();
  return table;
}

RunConfig default_config() {
  RunConfig config;
  config.precision = make_recipe("bf16");
  return config;
}

std::string allowed(const Field& field) {
  switch (field.kind) {
    case ValueKind::Boolean:
      return "true or false";
    case ValueKind::Text:
      return "a string";
    case ValueKind::Choice: {
      if (!field.choices_in_short.empty()) return field.choices_in_short;
      std::vector<std::string> quoted;
      for (const std::string& name : field.choices) quoted.push_back('"' + name + '"');
      return quoted.size() == 1 ? quoted[0] : fmt::format("one of {}", fmt::join(quoted, ", "));
    }
    case ValueKind::Sources:
      return "a list of paths or globs, or of {\"name\", \"files\", \"weight\"}";
    case ValueKind::Overrides:
      return "a list of {\"blocks\", \"linears\", \"recipe\", and fields of /precision}";
    case ValueKind::Stages:
      return "a list of {\"from\": STEP, \"precision\": {as the section of that name}}";
    default:
      break;
  }
  const Bounds& b = field.bounds;
  const double largest = field.kind == ValueKind::Integer ? 1e18 : 1e300;
  std::string text = field.kind == ValueKind::Integer ? "an integer" : "a number";
  if (b.open_low)
    text += " above " + limit(field.kind, b.low);
  else
    text += (b.high >= largest ? " of at least " : " from ") + limit(field.kind, b.low);
  if (b.high < largest) {
    text += b.open_high ? " and below " : b.open_low ? " up to " : " to ";
    text += limit(field.kind, b.high);
  }
  return text;
}

bool ignored_key(const std::string& key) { return key == "$schema" || key == "octet"; }

}  // namespace octet
