#include "model/transformer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "base/error.h"
#include "base/hash.h"
#include "model/block.h"
#include "model/blueprint.h"
#include "model/head.h"
#include "numerics/group_codes.h"

namespace octet {

namespace {

void require_buildable(const TransformerOptions& options) {
  const bool float8 = options.recipe.float8();
  std::string broken;
  for (const SpecProblem& problem : check(options.spec, float8))
    broken += fmt::format("{}model.{}: {}", broken.empty() ? "" : "; ", problem.key, problem.message);
  const int64_t tokens = options.micro_batch * options.spec.context;
  if (broken.empty() && float8 && tokens % 16 != 0)
    broken =
        fmt::format("FP8 needs micro-batches in multiples of 16 tokens, found {} windows x {} tokens = {}",
                    options.micro_batch, options.spec.context, tokens);
  if (broken.empty() && (options.micro_batch < 1 || options.head_chunk < 1))
    broken = fmt::format("micro-batch and head chunk must be at least 1, found {} and {}",
                         options.micro_batch, options.head_chunk);
  if (broken.empty()) broken = saved_activations_problem(options.recipe, options.spec, options.recompute);
  if (!broken.empty()) throw Error(ExitCode::Usage, broken, "change the model or batch section");
}

// What multiplies masters in every micro-batch: scales of inputs' channels that go into the weight. Or empty.
std::string folds_scales(const Recipe& recipe) {
  const auto folds = [](const LinearFormats& f) -> std::string {
    if (!f.fprop_float8()) return {};
    if (f.smooth_quant > 0) return "smooth_quant";
    return f.smooth == SmoothSwiGLU::Channel ? "smooth_swiglu \"channel\"" : "";
  };
  std::string found = folds(recipe.formats());
  for (const Override& other : recipe.overrides)
    if (found.empty()) found = folds(other.formats);
  return found;
}

}  // namespace

uint64_t position_of(MicroStep where) {
  constexpr uint64_t micro_batches_per_step = uint64_t{1} << 20;
  return static_cast<uint64_t>(where.step) * micro_batches_per_step + static_cast<uint64_t>(where.micro);
}

std::string master_problem(const Recipe& recipe) {
  if (recipe.master == MasterFormat::FP32) return {};
  if (recipe.storage == Format::FP32) return "with fp32 storage the GEMMs read FP32 masters";
  if (const std::string folds = folds_scales(recipe); !folds.empty())
    return folds + " multiplies FP32 masters in every micro-batch; allowed: precision.master \"fp32\"";
  return {};
}

std::string saved_activations_problem(const Recipe& recipe, const TransformerSpec& spec,
                                      Recompute recompute) {
  if (recipe.saved_activations == SavedActivations::Storage) return {};
  if (recompute != Recompute::None)
    return "backward would recompute from codes what forward computed from values; allowed with "
           "batch.recompute \"none\"";
  for (const int64_t width : {spec.width, spec.ffn_width})
    if (width % code_group != 0)
      return fmt::format("a row of {} values is no whole number of groups of {}", width, code_group);
  return {};
}

std::string offload_problem(const Recipe& recipe) {
  if (recipe.storage == Format::FP32) return "with fp32 storage the GEMMs read the masters themselves";
  if (const std::string folds = folds_scales(recipe); !folds.empty())
    return folds + " reads masters in every micro-batch";
  return {};
}

struct Transformer::Implementation {
  Implementation(Device* the_device, const TransformerOptions& the_options, MemoryPlan& plan,
                 MemoryPlan& masters);

  Pass pass(PassKind kind, uint64_t position);
  void upload(const int32_t* host_tokens, const int32_t* host_targets);
  void forward(const Pass& pass);
  void backward(const Pass& pass, const Transformer::GradientsReady& ready);
  void refresh(const MasterPiece& piece, int64_t step);
  void refresh_all(int64_t step);
  void reset_scales();
  void write_static_scales();
  uint64_t training_signature(uint64_t position, float gradient_scale) const;
  void plan_observations(MemoryPlan& plan);
  void observe_weights();

  // Buffers that no two phases need at once share memory: forward, head and backward, in this order, unless
  // backward recomputes forward.
  void plan_scratch(MemoryPlan& plan);
  void plan_gradients(MemoryPlan& plan);
  void plan_master_values(MemoryPlan& plan);
  size_t workspace_bytes() const;

  Device* device;
  TransformerOptions options;
  ParameterList parameters;
  ScaleTable scales;
  Observations observations;
  std::vector<size_t> observed_weights;  // parameters
  TokenTable embedding;
  std::vector<Block> blocks;
  std::vector<size_t> first_parameter;  // of each block, then of the head
  std::vector<const Linear*>
      linear_of;             // by parameter; null: no linear reads it. A tied head reads the table
  std::optional<Head> head;  // declares its parameters after the blocks
  RopeTable rope;

  Tensor tokens, targets;  // I32 [T]
  Tensor losses;           // F32 [T]
  Tensor loss_sum;         // F64 [1]
  Tensor constants;        // F32 [2]: one, and where unrecorded amaxes go

  Replay training_work, evaluation_work;

  Tensor master_values;  // BF16, see Pass

  BlockActivations shared;
  BlockGradients gradients;
  Tensor branch;  // storage [T, D]
};

Transformer::Implementation::Implementation(Device* the_device, const TransformerOptions& the_options,
                                            MemoryPlan& plan, MemoryPlan& masters)
    : device(the_device),
      options(the_options),
      parameters(plan, masters, dtype_of(the_options.recipe.weight_gradient), the_options.sharding,
                 the_options.spec.vectors(), the_options.recipe.master) {
  require_buildable(options);
  rope = plan_rope(options.spec, plan);
  const Blueprint blueprint{options, plan, parameters, scales, rope};
  embedding = declare_token_table(blueprint, "embedding");
  blocks.reserve(static_cast<size_t>(options.spec.layers));
  for (int i = 0; i < static_cast<int>(options.spec.layers); ++i) {
    first_parameter.push_back(parameters.all().size());
    parameters.begin_slot(i % 2);
    blocks.emplace_back(blueprint, i);
  }
  parameters.begin_slot(ParameterList::table_slot);
  first_parameter.push_back(parameters.all().size());
  head.emplace(blueprint, embedding);
  linear_of.resize(parameters.all().size());
  for (const Block& block : blocks)
    for (const Linear* linear : block.linears()) linear_of[linear->parameter().index] = linear;
  linear_of[head->projection().parameter().index] = &head->projection();
  if (!scales.sites.empty()) scales.plan(plan, options.recipe.delayed.window);

  const int64_t rows = blueprint.tokens();
  tokens = plan.add("tokens", Category::Batch, DType::I32, {rows});
  targets = plan.add("targets", Category::Batch, DType::I32, {rows});
  losses = plan.add("token_losses", Category::Batch, DType::F32, {rows});
  loss_sum = plan.add("loss_sum", Category::Batch, DType::F64, {1});
  constants = plan.add("constants", Category::Other, DType::F32, {2});

  MemoryPlan measured;
  plan_scratch(measured);
  const auto scratch_bytes = static_cast<int64_t>(measured.peak_bytes());
  const Tensor scratch = plan.add("scratch", Category::Scratch, DType::U8, {scratch_bytes});
  if (!plan.measuring()) {
    MemoryPlan placed(scratch.data, measured.peak_bytes());
    plan_scratch(placed);
  }
  plan_master_values(plan);
  for (Block& block : blocks) block.plan_stored(plan, shared);
  head->plan_stored(plan);
  if (options.observe) plan_observations(plan);

  Tensor workspace;
  if (const auto bytes = static_cast<int64_t>(workspace_bytes()); bytes > 0)
    workspace = plan.add("device.workspace", Category::Scratch, DType::U8, Shape{bytes});

  if (plan.measuring()) return;
  fill_rope(options.spec, *device, rope);
  upload_casts(*device, scales);
  const std::array<float, 2> values{1.0f, 0.0f};
  device->copy_from_host(constants.data, values.data(), sizeof values);
  if (!workspace.empty()) device->set_workspace(workspace);
}

void Transformer::Implementation::plan_scratch(MemoryPlan& plan) {
  shared = {};
  gradients = {};
  branch = {};  // with a post_norm blocks keep their own
  if (options.spec.post_norm == PostNorm::None)
    branch = plan.add("branch", Category::Scratch, embedding.weight.values().dtype,
                      {tokens.rows(), options.spec.width});
  head->plan_output(plan);
  for (const Block& block : blocks) block.plan_residual_gradients(plan, gradients);
  for (const Block& block : blocks) block.plan_passing(plan, shared);
  {
    const MemoryPlan::Lifetime life(plan);
    head->plan_scratch(plan);
  }
  {
    const MemoryPlan::Lifetime life(plan);
    for (const Block& block : blocks) block.plan_shared(plan, shared);
    if (options.recompute != Recompute::None) plan_gradients(plan);
  }
  if (options.recompute == Recompute::None) plan_gradients(plan);
}

void Transformer::Implementation::plan_gradients(MemoryPlan& plan) {
  {
    const MemoryPlan::Lifetime life(plan);
    for (const Block& block : blocks) block.plan_ffn_gradients(plan, gradients);
  }
  const MemoryPlan::Lifetime life(plan);
  for (const Block& block : blocks) block.plan_attention_gradients(plan, gradients);
}

// Codes are made from a whole weight; masters that are not numbers the cast reads are put here first.
void Transformer::Implementation::plan_master_values(MemoryPlan& plan) {
  int64_t largest = 0;
  for (size_t i = 0; i < linear_of.size(); ++i)
    if (linear_of[i] && linear_of[i]->has_codes() && !linear_of[i]->code_shard() &&
        !parameters.all()[i].master_code.is_plain())
      largest = std::max(largest, parameters.all()[i].gradient.elements());
  if (largest > 0) master_values = plan.add("master_values", Category::Scratch, DType::BF16, {largest});
}

size_t Transformer::Implementation::workspace_bytes() const {
  std::vector<Matmul> matmuls = head->matmul_shapes();
  for (const Block& block : blocks)
    for (const Linear* linear : block.linears())
      for (const Matmul& matmul : linear->matmul_shapes(tokens.rows())) matmuls.push_back(matmul);
  if (options.update_products)
    for (const Matmul& matmul : options.update_products(parameters.all())) matmuls.push_back(matmul);
  // One of each precision: blocks differ in nothing else.
  std::vector<AttentionForward> attentions;
  for (const Block& block : blocks) {
    const AttentionForward shape = block.attention_core().shape(tokens.rows());
    const auto same = [&](const AttentionForward& other) { return other.qkv.dtype == shape.qkv.dtype; };
    if (std::none_of(attentions.begin(), attentions.end(), same)) attentions.push_back(shape);
  }
  const DeviceWork work{.matmuls = matmuls,
                        .attentions = attentions,
                        .tokens = tokens.rows(),
                        .width = options.spec.width,
                        .qk_norm = options.spec.qk_norm,
                        .activation = options.spec.activation};
  // A plan without a device is the plan of the one that is always there.
  return device ? device->workspace_bytes(work) : make_cpu_device({})->workspace_bytes(work);
}

Pass Transformer::Implementation::pass(PassKind kind, uint64_t position) {
  float* values = constants.as<float>();
  return Pass{*device,  scales, values,        values + 1,   options.seed,
              position, kind,   master_values, &observations};
}

void Transformer::Implementation::upload(const int32_t* host_tokens, const int32_t* host_targets) {
  device->upload(tokens.data, host_tokens, tokens.bytes());
  device->upload(targets.data, host_targets, targets.bytes());
}

void Transformer::Implementation::forward(const Pass& pass) {
  device->embedding_forward({.out = blocks.front().input(),
                             .tokens = tokens,
                             .table = embedding.weight.values(),
                             .multiplier = static_cast<float>(options.spec.input_multiplier)});
  ResidualStream stream{blocks.front().input(), {}, {}, {}};
  for (const Block& block : blocks) stream = block.forward(pass, stream, branch);
  head->normalise(pass, stream);
  // The stream after a block is there once the norm that follows has added the branch to it.
  pass.observe(static_cast<int>(blocks.size()) - 1, Observed::BlockOutput, head->stream());
}

void Transformer::Implementation::plan_observations(MemoryPlan& plan) {
  const TransformerSpec& spec = options.spec;
  int64_t rows = std::max(tokens.rows(), spec.vocabulary);
  for (const Linear* linear : linear_of)
    if (linear) rows = std::max(rows, linear->observed_rows());
  for (const Parameter& parameter : parameters.all())
    if (parameter.kind != ParameterKind::Vector) observed_weights.push_back(parameter.index);
  const ObservationLayout layout{.blocks = spec.layers,
                                 .ffn_width = spec.ffn_width,
                                 .sites = static_cast<int64_t>(scales.sites.size()),
                                 .weights = static_cast<int64_t>(observed_weights.size()),
                                 .gated = is_gated(spec.activation)};
  observations.plan(plan, layout, spec.context, rows);
}

void Transformer::Implementation::observe_weights() {
  const Pass pass = this->pass(PassKind::Training, 0);
  for (size_t i = 0; i < observed_weights.size(); ++i) {
    const Linear* linear = linear_of[observed_weights[i]];
    const Linear::WorkingWeight weight =
        linear ? linear->working_weight(pass) : Linear::WorkingWeight{embedding.weight.values(), {}};
    observations.observe_weight(*device, static_cast<int64_t>(i), weight.values, weight.inverse_scales);
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto gates = blocks[i].linears()[static_cast<size_t>(BlockLinear::Up)]->working_weight(pass);
    observations.observe_gates(*device, static_cast<int>(i), gates.values, gates.inverse_scales);
  }
}

void Transformer::Implementation::backward(const Pass& pass, const Transformer::GradientsReady& ready) {
  const auto tell = [&](size_t first, size_t end) {
    if (ready) ready(first, end - first);
  };
  head->backward(pass, blocks.back().output_gradient_target(pass, gradients));
  // A tied head's table is the embedding's, which comes last.
  tell(first_parameter.back(), parameters.all().size());
  for (size_t i = blocks.size(); i-- > 1;) {
    blocks[i].backward(pass, gradients, blocks[i - 1].output_gradient_target(pass, gradients), branch);
    tell(first_parameter[i], first_parameter[i + 1]);
  }
  CastTarget embedding_gradient;
  embedding_gradient.high = gradients.residual.high;
  blocks.front().backward(pass, gradients, embedding_gradient, branch);
  tell(first_parameter[0], first_parameter[1]);
  device->embedding_backward({.table_gradient = embedding.parameter.gradient,
                              .tokens = tokens,
                              .out_gradient = gradients.residual.high,
                              .multiplier = static_cast<float>(options.spec.input_multiplier)});
  tell(0, first_parameter[0]);
}

void Transformer::Implementation::refresh(const MasterPiece& piece, int64_t step) {
  if (piece.parameter == embedding.parameter.index) embedding.weight.refresh(*device, piece);
  if (const Linear* linear = linear_of[piece.parameter])
    linear->refresh(pass(PassKind::Training, static_cast<uint64_t>(step)), piece);
  // Vectors have no working copy.
}

void Transformer::Implementation::refresh_all(int64_t step) {
  for (const Parameter& parameter : parameters.all()) refresh(parameter.piece(), step);
}

// What two micro-batches with the same work have in common (Device::replay). Their place in the run counts
// only where random numbers do.
uint64_t Transformer::Implementation::training_signature(uint64_t position, float gradient_scale) const {
  const auto draws = [](const LinearFormats& f) {
    return f.input.rounding == Rounding::Stochastic || f.weight.rounding == Rounding::Stochastic ||
           f.grad.rounding == Rounding::Stochastic;
  };
  const std::vector<Override>& others = options.recipe.overrides;
  const bool stochastic =
      draws(options.recipe.formats()) ||
      std::any_of(others.begin(), others.end(), [&](const Override& other) { return draws(other.formats); });
  const struct {
    uint64_t position;
    float gradient_scale;
    uint32_t watched;
  } varying{stochastic ? position : 0, gradient_scale,
            (scales.count ? 1u : 0u) + (observations.on ? 2u : 0u)};
  return hash64(&varying, sizeof varying);
}

void Transformer::Implementation::reset_scales() {
  if (scales.sites.empty()) return;
  for (const Tensor& tensor :
       {scales.amax_history, scales.scale, scales.inverse_scale, scales.amax, scales.counters})
    device->zero(tensor);
  write_static_scales();
}

void Transformer::Implementation::write_static_scales() {
  for (size_t i = 0; i < scales.sites.size(); ++i) {
    if (scales.sites[i].cast.scaling != Scaling::Static) continue;
    const float scale = scales.sites[i].static_scale;
    const auto at = static_cast<int64_t>(i);
    device->fill(scales.scale.slice(at, 1), scale);
    device->fill(scales.inverse_scale.slice(at, 1), 1.0f / scale);
  }
}

// ---- the public face

Transformer::Transformer(Device* device, const TransformerOptions& options, MemoryPlan& plan,
                         MemoryPlan* offload)
    : implementation_(std::make_unique<Implementation>(device, options, plan, offload ? *offload : plan)) {
  if (const std::string problem = master_problem(options.recipe); !problem.empty())
    throw Error(ExitCode::Usage, "masters that are not FP32: " + problem,
                "precision.master \"fp32\", or another recipe");
  if (const std::string problem = offload ? offload_problem(options.recipe) : ""; !problem.empty())
    throw Error(ExitCode::Usage, "offloaded masters: " + problem, "another recipe, or no offload");
  if (const std::string folds = folds_scales(options.recipe); options.sharding.ranks > 1 && !folds.empty())
    throw Error(ExitCode::Usage, "sharded masters: " + folds + " reads whole masters in every micro-batch",
                "smooth_swiglu \"dual\" without smooth_quant, or parallel.zero 0");
}
Transformer::~Transformer() = default;

const TransformerOptions& Transformer::options() const { return implementation_->options; }
std::vector<Parameter>& Transformer::parameters() { return implementation_->parameters.all(); }
ScaleTable& Transformer::scales() { return implementation_->scales; }
Observations& Transformer::observations() { return implementation_->observations; }
void Transformer::observe_weights() { implementation_->observe_weights(); }
std::vector<size_t> Transformer::observed_weights() const { return implementation_->observed_weights; }
Tensor Transformer::loss_sum() const { return implementation_->loss_sum; }
Tensor Transformer::token_losses() const { return implementation_->losses; }

void Transformer::write_static_scales() { implementation_->write_static_scales(); }

void Transformer::initialize_masters() {
  Implementation& self = *implementation_;
  self.parameters.initialize(*self.device, self.options.seed);
  self.reset_scales();
}
void Transformer::initialize() {
  initialize_masters();
  implementation_->refresh_all(0);
}

void Transformer::initial_values(size_t parameter, int64_t first, std::span<float> values) const {
  implementation_->parameters.initial_values(parameter, implementation_->options.seed, first, values);
}

void Transformer::refresh_working_weights(int64_t step) { implementation_->refresh_all(step); }
void Transformer::refresh_working_weight(const MasterPiece& piece, int64_t step) {
  implementation_->refresh(piece, step);
}
bool Transformer::splits_refresh(size_t parameter) const {
  const Linear* linear = implementation_->linear_of[parameter];
  return !linear || !linear->has_codes() || linear->code_shard();
}
const CodeShard* Transformer::code_shard(size_t parameter) const {
  const Linear* linear = implementation_->linear_of[parameter];
  return linear ? linear->code_shard() : nullptr;
}
void Transformer::encode_shard(size_t parameter, const Tensor& amax, int64_t step) {
  const Pass pass = implementation_->pass(PassKind::Training, static_cast<uint64_t>(step));
  implementation_->linear_of[parameter]->encode_shard(pass, amax);
}
void Transformer::finish_codes(size_t parameter) {
  implementation_->linear_of[parameter]->finish_codes(implementation_->pass(PassKind::Training, 0));
}

void Transformer::zero_gradients() { implementation_->parameters.zero_gradients(*implementation_->device); }
const SharedGradients& Transformer::shared_gradients() const {
  return implementation_->parameters.shared_gradients();
}

void Transformer::forward_backward(const int32_t* tokens, const int32_t* targets, float gradient_scale,
                                   MicroStep where, const GradientsReady& ready, ReadyWork ready_work) {
  Implementation& self = *implementation_;
  const uint64_t position = position_of(where);
  self.upload(tokens, targets);
  const auto work = [&] {
    const Pass pass = self.pass(PassKind::Training, position);
    self.forward(pass);
    if (ready) ready(0, 0);
    self.head->loss(pass, {.targets = self.targets, .losses = self.losses, .gradient_scale = gradient_scale});
    self.device->accumulate_sum(self.loss_sum, self.losses);
    self.backward(pass, ready);
  };
  if (ready && ready_work == ReadyWork::Varies)
    work();
  else
    self.device->replay(self.training_work, self.training_signature(position, gradient_scale), work);
}

void Transformer::forward(const int32_t* tokens, const int32_t* targets) {
  Implementation& self = *implementation_;
  self.upload(tokens, targets);
  self.device->replay(self.evaluation_work, 0, [&] {
    const Pass pass = self.pass(PassKind::Evaluation, 0);
    self.forward(pass);
    self.head->loss(pass, {.targets = self.targets, .losses = self.losses});
    self.device->accumulate_sum(self.loss_sum, self.losses);
  });
}

void Transformer::update_scales(int64_t step, const UpdateControl* control) {
  Implementation& self = *implementation_;
  if (self.scales.sites.empty()) return;
  self.device->scale_table_update({.table = &self.scales,
                                   .options = self.options.recipe.delayed,
                                   .step = step,
                                   .control = control,
                                   .adaptive = self.options.recipe.adaptive});
}

}  // namespace octet
