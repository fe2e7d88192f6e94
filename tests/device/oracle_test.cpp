// Every operation of a block under the FP8 recipe, fed with exactly what the oracle fed its own
// (fixtures/oracle_operations): nearly every stored value must be the same, and codes wherever the values
// are.
#include "catch.h"
#include "device/device.h"
#include "oracle_fixture.h"

using namespace octet;
using namespace octet::oracle;

namespace {

constexpr int64_t T = 64, D = 64, F = 96, V = 80;
constexpr int S = 32, B = 2, H = 4, K = 2, Dh = 16;
constexpr int64_t Q = (H + 2 * K) * Dh;

// One operation's world: a device, and tensors in its memory that go with it.
class World {
 public:
  ~World() {
    for (void* pointer : pointers_) device->free(pointer);
  }
  std::unique_ptr<Device> device = make_cpu_device({true, 1});
  Fixture operations{"operations"}, inputs{"llama_inputs"}, model{"llama_fp8_dual"};

  Tensor make(DType dtype, Shape shape) {
    Tensor t{nullptr, dtype, shape};
    t.data = device->allocate(t.bytes());
    pointers_.push_back(t.data);
    return t;
  }
  Tensor upload(DType dtype, Shape shape, const void* host) {
    Tensor t = make(dtype, shape);
    device->copy_from_host(t.data, host, t.bytes());
    return t;
  }
  Tensor storage(const std::string& name) { return from(operations, name, DType::BF16); }
  Tensor gain(const std::string& name) {
    const std::vector<float> x = inputs.floats(name);
    return upload(DType::F32, {static_cast<int64_t>(x.size())}, x.data());
  }
  Tensor from(const Fixture& fixture, const std::string& name, DType dtype) {
    return upload(dtype, fixture.shape(name), fixture.bytes(name).data());
  }
  Tensor numbers(const std::string& name) { return from(operations, name, DType::F32); }
  Tensor codes(const std::string& name, DType dtype) { return from(operations, name + ".codes", dtype); }
  Tensor transposed_codes(const std::string& name, DType dtype) {
    const Shape shape = operations.shape(name + ".codes");
    const std::vector<uint8_t> raw = transpose(operations.bytes(name + ".codes"), shape[0], shape[1]);
    return upload(dtype, {shape[1], shape[0]}, raw.data());
  }
  float inverse_scale(const std::string& name) { return operations.floats(name + ".inverse_scale").at(0); }

  std::vector<uint8_t> raw(const Tensor& t) {
    device->synchronize();
    std::vector<uint8_t> out(t.bytes());
    device->copy_to_host(out.data(), t.data, out.size());
    return out;
  }
  Values values(const Tensor& t) { return decode_all(t.dtype, raw(t).data(), t.elements()); }

  static std::vector<uint8_t> transpose(const std::vector<uint8_t>& x, int64_t rows, int64_t columns) {
    std::vector<uint8_t> out(x.size());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        out[static_cast<size_t>(c * rows + r)] = x[static_cast<size_t>(r * columns + c)];
      }
    }
    return out;
  }

  // A result with codes, as the recipe's site would get it.
  CastTarget target(DType codes_type, int64_t rows, int64_t columns) {
    CastTarget out;
    out.high = make(DType::BF16, {rows, columns});
    out.row = make(codes_type, {rows, columns});
    out.column = make(codes_type, {columns, rows});
    out.cast.format = codes_type == DType::E4M3 ? Format::E4M3 : Format::E5M2;
    const Tensor state = make(DType::F32, {3});
    out.site.scale = state.as<float>();
    out.site.inverse_scale = state.as<float>() + 1;
    out.site.amax = state.as<float>() + 2;
    return out;
  }
  CastTarget plain_target(int64_t rows, int64_t columns) {
    CastTarget out;
    out.high = make(DType::BF16, {rows, columns});
    return out;
  }
  float host_float(const float* pointer) {
    float x;
    device->copy_to_host(&x, pointer, sizeof x);
    return x;
  }

  // The stored values, and the codes of one scale for the tensor.
  void check_storage(const Tensor& actual, const std::string& name, int roundings) {
    INFO(name);
    const StorageDifference difference = compare_storage(values(actual), operations.values(name), roundings);
    CAPTURE(difference.different, difference.elements, difference.worst);
    CHECK(difference.different <= allowed_differences(difference.elements, roundings));
    CHECK(difference.worst <= 1.0);
  }
  void check_codes(const CastTarget& actual, const std::string& name, const std::string& codes_name) {
    INFO(codes_name);
    CHECK(host_float(actual.site.inverse_scale) == inverse_scale(codes_name));
    const Values high = values(actual.high), expected_high = operations.values(name);
    const std::vector<uint8_t> row = raw(actual.row), expected = operations.bytes(codes_name + ".codes");
    int64_t wrong = 0;
    for (size_t i = 0; i < row.size(); ++i) wrong += high[i] == expected_high[i] && row[i] != expected[i];
    CHECK(wrong == 0);
    CHECK(raw(actual.column) == transpose(row, actual.high.rows(), actual.high.columns()));
  }

 private:
  std::vector<void*> pointers_;
};

const std::string block = "blocks.0.";

Tensor rope_table(World& world, bool sine) {
  std::vector<float> table;
  for (int t = 0; t < S; ++t) {
    for (int i = 0; i < Dh / 2; ++i) {
      const double angle = t * std::pow(10000.0, -2.0 * i / Dh);
      table.push_back(static_cast<float>(sine ? std::sin(angle) : std::cos(angle)));
    }
  }
  return world.upload(DType::F32, {S, Dh / 2}, table.data());
}

Operand operand(const Tensor& values, const Tensor& inverse, ScaleGranularity granularity) {
  return {values, false, inverse.as<float>(), granularity};
}
Operand operand(World& world, const std::string& name, DType dtype) {
  const float inverse = world.inverse_scale(name);
  return operand(world.codes(name, dtype), world.upload(DType::F32, {1}, &inverse), ScaleGranularity::Tensor);
}
Operand transposed_operand(World& world, const std::string& name, DType dtype) {
  const float inverse = world.inverse_scale(name);
  return operand(world.transposed_codes(name, dtype), world.upload(DType::F32, {1}, &inverse),
                 ScaleGranularity::Tensor);
}

}  // namespace

TEST_CASE("oracle: embedding rows are copied", "[oracle]") {
  World world;
  const Tensor out = world.make(DType::BF16, {T, D});
  const std::vector<int32_t> tokens = world.inputs.integers("tokens");
  world.device->embedding_forward({out, world.upload(DType::I32, {T}, tokens.data()),
                                   world.from(world.inputs, "embedding.weight", DType::BF16)});
  CHECK(world.values(out) == world.operations.values("embedding"));
}

TEST_CASE("oracle: RMSNorm and the codes of its output", "[oracle]") {
  World world;
  RmsNormForward norm;
  norm.residual = world.storage("embedding");
  norm.gain = world.gain(block + "attention_norm.gain");
  norm.rstd = world.make(DType::F32, {T});
  norm.out = world.target(DType::E4M3, T, D);
  world.device->rmsnorm_forward(norm);
  // The mean of D squares; its relative error is halved by the square root. Then three products.
  world.check_storage(norm.out.high, block + "attention_norm", D / 2 + 4);
  world.check_codes(norm.out, block + "attention_norm", block + "attention.qkv.input");

  SECTION("negative control: another gain is noticed") {
    const float one = 1.01f;
    world.device->copy_from_host(norm.gain.as<float>() + 5, &one, sizeof one);
    world.device->rmsnorm_forward(norm);
    const StorageDifference difference =
        compare_storage(world.values(norm.out.high), world.operations.values(block + "attention_norm"), 36);
    CHECK(difference.worst > 1.0);
  }
}

TEST_CASE("oracle: the residual sum is rounded before it is normalised", "[oracle]") {
  World world;
  RmsNormForward norm;
  norm.residual = world.storage("embedding");
  norm.branch = world.storage(block + "attention.out");
  norm.gain = world.gain(block + "ffn_norm.gain");
  norm.rstd = world.make(DType::F32, {T});
  norm.out = world.target(DType::E4M3, T, D);
  world.device->rmsnorm_forward(norm);
  // One FP32 addition of two BF16 values, then the rounding: double rounding moves no more than a few.
  world.check_storage(norm.residual, block + "residual_ffn", 1);
  world.check_storage(norm.out.high, block + "ffn_norm", D / 2 + 4);
  world.check_codes(norm.out, block + "ffn_norm", block + "ffn.gate_up.input");
}

TEST_CASE("oracle: the codes of the weights are the same, bit for bit", "[oracle]") {
  World world;
  for (const char* name :
       {"attention.qkv.weight", "attention.out.weight", "ffn.gate_up.weight", "ffn.down.weight"}) {
    INFO(name);
    const std::vector<float> master = world.inputs.floats(block + name);
    const Shape shape = world.inputs.shape(block + name);
    CastOperation cast{
        world.upload(DType::F32, shape, master.data()), {}, world.target(DType::E4M3, shape[0], shape[1])};
    world.device->cast(cast);
    const std::vector<uint8_t> expected = world.operations.bytes(block + name + ".codes");
    CHECK(world.raw(cast.out.row) == expected);
    CHECK(world.raw(cast.out.column) == World::transpose(expected, shape[0], shape[1]));
    CHECK(world.host_float(cast.out.site.inverse_scale) == world.inverse_scale(block + name));
    cast.out.cast.format = Format::E5M2;  // negative control
    world.device->cast(cast);
    CHECK(world.raw(cast.out.row) != expected);
  }
}

TEST_CASE("oracle: an FP8 product of input and weight", "[oracle]") {
  World world;
  Matmul product;
  product.a = operand(world, block + "attention.qkv.input", DType::E4M3);
  product.b = operand(world, block + "attention.qkv.weight", DType::E4M3);
  product.out = world.make(DType::BF16, {T, Q});
  world.device->matmul(product);
  world.check_storage(product.out, block + "attention.qkv", D);

  SECTION("negative control: a forgotten inverse scale is noticed") {
    const float one = 1;
    product.b.inverse_scale = world.upload(DType::F32, {1}, &one).as<float>();
    world.device->matmul(product);
    CHECK(compare_storage(world.values(product.out), world.operations.values(block + "attention.qkv"), D)
              .worst > 1.0);
  }
}

TEST_CASE("oracle: rotate-half RoPE, forward and backward", "[oracle]") {
  World world;
  RopeForward rope{world.storage(block + "attention.qkv"),
                   {},
                   rope_table(world, false),
                   rope_table(world, true),
                   H,
                   K,
                   Dh};
  world.device->rope_forward(rope);
  // Two products of two roundings each (table, product) and a sum.
  world.check_storage(rope.qkv, block + "attention.rotated", 5);

  RopeBackward backward;
  backward.qkv_gradient = world.storage(block + "attention.rotated.grad");
  backward.cosine = rope.cosine;
  backward.sine = rope.sine;
  backward.heads = H;
  backward.kv_heads = K;
  backward.head_width = Dh;
  backward.out = world.target(DType::E5M2, T, Q);
  world.device->rope_backward(backward);
  world.check_storage(backward.out.high, block + "attention.qkv.grad", 5);
  // The fixture has one name for the stored gradient and, with its suffix, for the codes.
  world.check_codes(backward.out, block + "attention.qkv.grad", block + "attention.qkv.grad");

  SECTION("negative control: turning the other way is noticed") {
    std::swap(rope.cosine, rope.sine);
    rope.qkv = world.storage(block + "attention.qkv");
    world.device->rope_forward(rope);
    CHECK(compare_storage(world.values(rope.qkv), world.operations.values(block + "attention.rotated"), 5)
              .worst > 1.0);
  }
}

TEST_CASE("oracle: grouped-query attention, forward and backward", "[oracle]") {
  World world;
  AttentionForward forward;
  forward.qkv = world.storage(block + "attention.rotated");
  forward.log_sum_exp = world.make(DType::F32, {B, H, S});
  forward.context = S;
  forward.heads = H;
  forward.kv_heads = K;
  forward.head_width = Dh;
  forward.softmax_scale = 0.25f;  // 1 / sqrt(16)
  forward.out = world.target(DType::E4M3, T, H * Dh);
  world.device->attention_forward(forward);
  // A score (Dh terms) in the exponent, the exponential, the sums over up to S keys of softmax and of V.
  const int roundings = Dh + 4 + 2 * S;
  world.check_storage(forward.out.high, block + "attention.core", roundings);
  world.check_codes(forward.out, block + "attention.core", block + "attention.out.input");
  const Values log_sum = world.values(forward.log_sum_exp),
               expected = world.operations.values(block + "attention.log_sum");
  for (size_t i = 0; i < log_sum.size(); ++i) {
    CHECK(std::abs(log_sum[i] - expected[i]) <= roundings * 0x1p-24 * std::max(1.0, std::abs(expected[i])));
  }

  AttentionBackward backward;
  backward.qkv = forward.qkv;
  backward.out = world.storage(block + "attention.core");
  backward.out_gradient = world.storage(block + "attention.core.grad");
  backward.log_sum_exp =
      world.upload(DType::F32, {B, H, S}, world.operations.bytes(block + "attention.log_sum").data());
  backward.qkv_gradient = world.make(DType::BF16, {T, Q});
  backward.context = S;
  backward.heads = H;
  backward.kv_heads = K;
  backward.head_width = Dh;
  backward.softmax_scale = 0.25f;
  world.device->attention_backward(backward);
  // dP and delta (Dh terms each), the score again, and a sum over S rows of H / K query heads.
  world.check_storage(backward.qkv_gradient, block + "attention.rotated.grad", 3 * Dh + 6 + S * H / K);

  SECTION("negative control: reading the other key head is noticed") {
    Tensor swapped = world.storage(block + "attention.rotated");
    std::vector<uint8_t> rows = world.raw(swapped);
    const size_t row = Q * 2, first = H * Dh * 2, width = Dh * 2;
    for (size_t t = 0; t < T; ++t) {
      std::swap_ranges(rows.begin() + static_cast<long>(t * row + first),
                       rows.begin() + static_cast<long>(t * row + first + width),
                       rows.begin() + static_cast<long>(t * row + first + width));
    }
    world.device->copy_from_host(swapped.data, rows.data(), rows.size());
    forward.qkv = swapped;
    world.device->attention_forward(forward);
    CHECK(compare_storage(world.values(forward.out.high), world.operations.values(block + "attention.core"),
                          roundings)
              .worst > 1.0);
  }
}

TEST_CASE("oracle: SwiGLU and both copies of Smooth-SwiGLU dual", "[oracle]") {
  World world;
  SwiGluForward forward;
  forward.gate_up = world.storage(block + "ffn.gate_up");
  forward.mode = SmoothSwiGLU::Dual;
  forward.out = world.target(DType::E4M3, T, F);
  forward.out.row_inverse_scale = world.make(DType::F32, {T});
  forward.out.column_inverse_scale = world.make(DType::F32, {F});
  world.device->swiglu_forward(forward);
  const int roundings = 8;  // exponential (a few ulp), 1 + e, division, product
  world.check_storage(forward.out.high, block + "ffn.hidden", roundings);
  const std::string row = block + "ffn.down.input.row", column = block + "ffn.down.input.column";
  CHECK(world.values(forward.out.row_inverse_scale) == world.operations.values(row + ".inverse_scale"));
  CHECK(world.values(forward.out.column_inverse_scale) == world.operations.values(column + ".inverse_scale"));
  const Values high = world.values(forward.out.high),
               expected = world.operations.values(block + "ffn.hidden");
  const std::vector<uint8_t> row_codes = world.raw(forward.out.row),
                             expected_row = world.operations.bytes(row + ".codes");
  const std::vector<uint8_t> column_codes = World::transpose(world.raw(forward.out.column), F, T),
                             expected_column = world.operations.bytes(column + ".codes");
  int64_t wrong = 0;
  for (size_t i = 0; i < high.size(); ++i) {
    if (high[i] == expected[i])
      wrong += (row_codes[i] != expected_row[i]) + (column_codes[i] != expected_column[i]);
  }
  CHECK(wrong == 0);
  CHECK(expected_row != expected_column);  // negative control: the two copies are not one

  SwiGluBackward backward{forward.gate_up, world.storage(block + "ffn.hidden.grad"),
                          world.target(DType::E5M2, T, 2 * F)};
  world.device->swiglu_backward(backward);
  world.check_storage(backward.out.high, block + "ffn.gate_up.grad", 12);
  world.check_codes(backward.out, block + "ffn.gate_up.grad", block + "ffn.gate_up.grad");
}

TEST_CASE("oracle: the three products of the down projection undo their scales", "[oracle]") {
  World world;
  const std::string hidden = block + "ffn.down.input", weight = block + "ffn.down.weight",
                    grad = block + "ffn.down.grad";
  SECTION("fprop, one scale per token") {
    Matmul product;
    product.a = operand(world.codes(hidden + ".row", DType::E4M3),
                        world.numbers(hidden + ".row.inverse_scale"), ScaleGranularity::Outer);
    product.b = operand(world, weight, DType::E4M3);
    product.out = world.make(DType::BF16, {T, D});
    world.device->matmul(product);
    world.check_storage(product.out, block + "ffn.down", F);
  }
  SECTION("dgrad") {
    Matmul product;
    product.a = operand(world, grad, DType::E5M2);
    product.b = transposed_operand(world, weight, DType::E4M3);
    product.out = world.make(DType::BF16, {T, F});
    product.gemm_class = GemmClass::Dgrad;
    world.device->matmul(product);
    world.check_storage(product.out, block + "ffn.hidden.grad", D);
  }
  SECTION("wgrad, one scale per channel") {
    Matmul product;
    product.a = transposed_operand(world, grad, DType::E5M2);
    product.b = operand(world.transposed_codes(hidden + ".column", DType::E4M3),
                        world.numbers(hidden + ".column.inverse_scale"), ScaleGranularity::Outer);
    product.out = world.make(DType::F32, {D, F});
    product.gemm_class = GemmClass::Wgrad;
    product.accumulate = true;
    world.device->matmul(product);
    // Products of codes are exact in FP32; T of them are added. Their sum is about sqrt(T) times smaller than
    // the sum of their magnitudes.
    const double bound = T * 8 * 0x1p-24;
    const Values expected = world.model.values("gradient." + weight);
    CHECK(relative_error(world.values(product.out), expected) <= bound);
    // Negative control: scales of the other copy.
    const std::vector<float> ones(F, 0.25f);
    product.b.inverse_scale = world.upload(DType::F32, {F}, ones.data()).as<float>();
    world.device->zero(product.out);
    world.device->matmul(product);
    CHECK(relative_error(world.values(product.out), expected) > 100 * bound);
  }
}

TEST_CASE("oracle: cross-entropy and its gradient", "[oracle]") {
  World world;
  CrossEntropy loss;
  loss.logits = world.storage("logits");
  const std::vector<int32_t> targets = world.inputs.integers("targets");
  loss.targets = world.upload(DType::I32, {T}, targets.data());
  loss.loss = world.make(DType::F32, {T});
  loss.gradient_scale = 1.0f / T;
  world.device->cross_entropy(loss);
  const Values losses = world.values(loss.loss), expected = world.model.values("token_losses");
  for (size_t t = 0; t < losses.size(); ++t) {
    // The log of a sum of V terms, and the subtraction.
    CHECK(std::abs(losses[t] - expected[t]) <= (V + 8) * 0x1p-24 * std::max(1.0, std::abs(expected[t])));
  }
  world.check_storage(loss.logits, "logits.grad", V + 8);
}

TEST_CASE("oracle: RMSNorm backward adds to the residual gradient", "[oracle]") {
  World world;
  RmsNormForward forward;  // for 1 / rms
  forward.residual = world.storage(block + "residual_ffn");
  forward.gain = world.gain(block + "ffn_norm.gain");
  forward.rstd = world.make(DType::F32, {T});
  forward.out = world.plain_target(T, D);
  world.device->rmsnorm_forward(forward);

  RmsNormBackward backward;
  backward.out_gradient = world.storage(block + "ffn_norm.grad");
  backward.residual = forward.residual;
  backward.gain = forward.gain;
  backward.rstd = forward.rstd;
  backward.gain_gradient = world.make(DType::F32, {D});
  backward.residual_gradient_in = world.storage("blocks.1.residual_attention.grad");
  backward.residual_gradient = world.target(DType::E5M2, T, D);
  world.device->rmsnorm_backward(backward);
  world.check_storage(backward.residual_gradient.high, block + "residual_ffn.grad", 2 * D + 8);
  world.check_codes(backward.residual_gradient, block + "residual_ffn.grad", block + "attention.out.grad");
  const Values expected = world.model.values("gradient." + block + "ffn_norm.gain");
  CHECK(relative_error(world.values(backward.gain_gradient), expected) <= T * 8 * 0x1p-24);

  SECTION("negative control: without the incoming gradient it is another one") {
    backward.residual_gradient_in = {};
    world.device->rmsnorm_backward(backward);
    CHECK(compare_storage(world.values(backward.residual_gradient.high),
                          world.operations.values(block + "residual_ffn.grad"), 2 * D + 8)
              .worst > 1.0);
  }
}

TEST_CASE("oracle: embedding rows collect the gradients of their tokens", "[oracle]") {
  World world;
  const std::vector<int32_t> tokens = world.inputs.integers("tokens");
  EmbeddingBackward backward{world.make(DType::F32, {V, D}), world.upload(DType::I32, {T}, tokens.data()),
                             world.storage(block + "residual_attention.grad")};
  world.device->embedding_backward(backward);
  const Values expected = world.model.values("gradient.embedding.weight");
  CHECK(relative_error(world.values(backward.table_gradient), expected) <= 8 * 0x1p-24);
  world.device->embedding_backward(backward);  // negative control: it accumulates
  CHECK(relative_error(world.values(backward.table_gradient), expected) > 0.5);
}
