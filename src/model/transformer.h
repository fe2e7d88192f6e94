// The transformer: forward, loss and backward by hand against Device.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/device.h"
#include "model/observations.h"
#include "model/spec.h"
#include "numerics/recipe.h"
#include "tensor/memory_plan.h"
#include "tensor/parameter.h"

namespace octet {

struct SharedGradients;

enum class Recompute : uint8_t {
  None,
  NormsAndSwiGLU,
  Block
};  // which activations are recomputed; the bits never change

struct TransformerOptions {
  TransformerSpec spec;
  Recipe recipe;
  int64_t micro_batch = 8;  // context windows
  Recompute recompute = Recompute::None;
  int64_t head_chunk = 1024;  // tokens whose logits exist at once
  double z_loss = 0;
  uint64_t seed = 0;
  int64_t batch_tokens = 0;  // of a step, which gradients are means over; 0: of a micro-batch
  Sharding sharding;
  bool observe = false;  // plan observations()
  // Products that whoever updates the parameters runs on the device, as shapes without data: device.workspace
  // is planned for them too.
  std::function<std::vector<Matmul>(std::span<const Parameter>)> update_products = {};
};

// Why the masters of matrices and embeddings may not live outside the device: what reads them there. Empty:
// they may.
std::string offload_problem(const Recipe& recipe);

// Why the masters may not be stored as the recipe says. Empty: they may.
std::string master_problem(const Recipe& recipe);

// Why activations may not be kept as codes. Empty: they may, or the recipe does not ask for it.
std::string saved_activations_problem(const Recipe& recipe, const TransformerSpec& spec, Recompute recompute);

// Where in the run a micro-batch is: keys stochastic rounding.
struct MicroStep {
  int64_t step = 0, micro = 0;
};
// As one number; those of different steps never collide, with at most 2^20 micro-batches a step.
uint64_t position_of(MicroStep where);

class Transformer {
 public:
  // Takes every tensor from `plan`. While plan.measuring() the device is only asked for its workspace;
  // without one (null) the plan is that of a CPU device with default options. Error(Usage) with every broken
  // rule of check().
  // `offload`: where the masters of matrices and embeddings go instead, host memory of
  // Device::allocate_host(). Error(Usage) when there is an offload_problem().
  Transformer(Device* device, const TransformerOptions& options, MemoryPlan& plan,
              MemoryPlan* offload = nullptr);
  ~Transformer();
  Transformer(const Transformer&) = delete;
  Transformer& operator=(const Transformer&) = delete;

  const TransformerOptions& options() const;
  std::vector<Parameter>& parameters();  // fixed order, fixed names
  ScaleTable& scales();
  // What is seen of the training passes and weight refreshes while observations().on; not planned without
  // TransformerOptions::observe. Whoever turns it on clears it before.
  Observations& observations();
  void observe_weights();  // as products read them now: weights(), and the alignment of gates
  std::vector<size_t> observed_weights() const;  // which parameters: all matrices and tables

  void write_static_scales();  // of sites with constant scales, over what the table holds
  void initialize_masters();   // without the working weights
  void initialize();           // masters from the seed, then refresh_working_weights(); norms 1, biases 0
  // What initialize_masters() makes of a parameter before it is rounded to the masters' format.
  void initial_values(size_t parameter, int64_t first, std::span<float> values) const;
  // masters -> BF16 copies or codes; after load and every update. `step`: updates asked for so far, the key
  // of stochastic rounding; a run that resumes after that step makes the same codes.
  void refresh_working_weights(int64_t step);
  // The same of one parameter, or of some elements of one without codes (splits_refresh()).
  void refresh_working_weight(const MasterPiece& piece, int64_t step);
  bool splits_refresh(size_t parameter) const;
  // The parameter's codes, where those are gathered (ZeRO); null: its values are. Then, in place of a
  // refresh: values in, encode_shard() with the amax (F32 [1]) of the whole, codes gathered, finish_codes().
  const CodeShard* code_shard(size_t parameter) const;
  void encode_shard(size_t parameter, const Tensor& amax, int64_t step);
  void finish_codes(size_t parameter);
  void zero_gradients();
  const SharedGradients& shared_gradients() const;  // where gradients are sharded

  // tokens, targets: host I32 [micro_batch * context]. Adds this micro-batch's token losses to loss_sum() and
  // its gradients, scaled by gradient_scale = 1 / (tokens of the global batch), to the parameters' gradients.
  // `ready`, if any, is called while the work is enqueued: with (0, 0) ahead of the first gradient, then with
  // the parameters whose gradients are complete from there on, [first, first + count) of parameters(): head,
  // blocks from the last, embedding. Work that Varies is not replayed.
  using GradientsReady = std::function<void(size_t first, size_t count)>;
  enum class ReadyWork : uint8_t { Varies, Repeats };  // in every micro-batch the same, on the device alone
  void forward_backward(const int32_t* tokens, const int32_t* targets, float gradient_scale, MicroStep where,
                        const GradientsReady& ready = {}, ReadyWork ready_work = ReadyWork::Varies);
  // Adds the token losses to loss_sum(); no amax is recorded, no gradient touched. Per-token losses:
  // token_losses().
  void forward(const int32_t* tokens, const int32_t* targets);
  Tensor loss_sum() const;      // F64 [1] on the device; the caller zeroes it
  Tensor token_losses() const;  // F32 [micro_batch * context] of the last micro-batch

  // Once a step, after the optimizer and before refresh_working_weights(): a resumed run, which can only
  // refresh with the scales it finds, then makes the same codes.
  // Not when `control` (device memory) says that the step was not applied.
  void update_scales(int64_t step, const UpdateControl* control = nullptr);

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace octet
