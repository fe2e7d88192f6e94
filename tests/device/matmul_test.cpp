#include <algorithm>
#include <memory>
#include <optional>

#include "base/error.h"
#include "catch.h"
#include "device/cpu/blocked_gemm.h"
#include "device/cpu/gemm_state.h"
#include "device/cpu/micro_kernel.h"
#include "device/cpu/onednn_gemm.h"
#include "device/cpu/unpack.h"
#include "matrices.h"

using namespace octet;
using matrices::Buffer;
using matrices::uniform;

namespace {

enum class Scales { None, Tensor, Outer };

struct Case {
  int64_t m, n, k;
  DType a = DType::F32, b = DType::F32, out = DType::F32;
  bool a_transposed = false, b_transposed = false, accumulate = false;
  Scales a_scales = Scales::None, b_scales = Scales::None;
};

// A matrix product with its operands, and what it should give in double.
struct Problem {
  explicit Problem(const Case& c, float low = -1, float high = 1)
      : shape(c),
        a(c.a, c.a_transposed ? Shape{c.k, c.m} : Shape{c.m, c.k}),
        b(c.b, c.b_transposed ? Shape{c.k, c.n} : Shape{c.n, c.k}),
        out(c.out, {c.m, c.n}),
        a_scales(static_cast<size_t>(c.m)),
        b_scales(static_cast<size_t>(c.n)) {
    a.fill_uniform(1, low, high);
    b.fill_uniform(2, low, high);
    out.fill_uniform(3);
    for (int64_t i = 0; i < out.tensor.elements(); ++i) old.push_back(out.get(i));
    for (size_t i = 0; i < a_scales.size(); ++i) a_scales[i] = uniform(4, i, 0.25f, 2.0f);
    for (size_t i = 0; i < b_scales.size(); ++i) b_scales[i] = uniform(5, i, 0.25f, 2.0f);
  }

  Matmul matmul() {
    Matmul m;
    m.a = operand(a.tensor, shape.a_transposed, shape.a_scales, a_scales);
    m.b = operand(b.tensor, shape.b_transposed, shape.b_scales, b_scales);
    m.out = out.tensor;
    m.accumulate = shape.accumulate;
    return m;
  }

  // Largest |out - expected| / bound over all elements; at most 1 when the product is right.
  //   bound = u_out |value| + (K + 4) * 2^-24 * (sum |a b| scale + |old|)
  // Every order of K additions and K products in FP32, two scalings and the sum with old: at most K + 4
  // roundings of 2^-24 on partial sums of at most sum |a b|.
  double worst() const {
    double worst_ratio = 0;
    for (int64_t i = 0; i < shape.m; ++i)
      for (int64_t j = 0; j < shape.n; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < shape.k; ++k) {
          const double x = a.get(shape.a_transposed ? k * shape.m + i : i * shape.k + k);
          const double y = b.get(shape.b_transposed ? k * shape.n + j : j * shape.k + k);
          sum += x * y;
          magnitude += std::abs(x * y);
        }
        const double scale = scale_at(shape.a_scales, a_scales, i) * scale_at(shape.b_scales, b_scales, j);
        const double before = shape.accumulate ? old[static_cast<size_t>(i * shape.n + j)] : 0;
        const double expected = sum * scale + before;
        const double fp32 =
            static_cast<double>(shape.k + 4) * 0x1p-24 * (magnitude * scale + std::abs(before));
        const double rounding = shape.out == DType::BF16 ? 0x1p-8 * (std::abs(expected) + fp32) : 0;
        const double error = std::abs(out.get(i * shape.n + j) - expected);
        // A NaN compares false and must not pass.
        worst_ratio =
            error <= fp32 + rounding ? std::max(worst_ratio, error / (fp32 + rounding + 1e-300)) : 1e9;
      }
    return worst_ratio;
  }

  Case shape;
  Buffer a, b, out;
  std::vector<float> old, a_scales, b_scales;

 private:
  static Operand operand(const Tensor& values, bool transposed, Scales scales, const std::vector<float>& of) {
    Operand x;
    x.values = values;
    x.transposed = transposed;
    if (scales != Scales::None) x.inverse_scale = of.data();
    if (scales == Scales::Outer) x.granularity = ScaleGranularity::Outer;
    return x;
  }
  static double scale_at(Scales scales, const std::vector<float>& of, int64_t i) {
    return scales == Scales::None ? 1.0 : of[scales == Scales::Outer ? static_cast<size_t>(i) : 0];
  }
};

DeviceOptions fixed_order() {
  DeviceOptions options;
  options.deterministic = true;
  return options;
}

std::string describe(const Case& c) {
  return std::string(name_of(c.a)) + (c.a_transposed ? "^T " : " ") + name_of(c.b) +
         (c.b_transposed ? "^T " : " ") + name_of(c.out) + " " + std::to_string(c.m) + "x" +
         std::to_string(c.n) + "x" + std::to_string(c.k) + (c.accumulate ? " accumulate" : "") + " scales " +
         std::to_string(static_cast<int>(c.a_scales)) + std::to_string(static_cast<int>(c.b_scales));
}

// Every operand pair, orientation and scale granularity the interface allows.
std::vector<Case> variants(int64_t m, int64_t n, int64_t k) {
  std::vector<Case> all;
  for (const DType type : {DType::F32, DType::BF16})
    for (const bool a_transposed : {false, true})
      for (const bool b_transposed : {false, true})
        for (const DType out : {DType::F32, DType::BF16})
          for (const bool accumulate : {false, true})
            all.push_back({m, n, k, type, type, out, a_transposed, b_transposed, accumulate});
  const std::pair<DType, DType> pairs[] = {
      {DType::E4M3, DType::E4M3}, {DType::E4M3, DType::E5M2}, {DType::E5M2, DType::E4M3}};
  for (const auto& [a, b] : pairs)
    for (const Scales a_scales : {Scales::Tensor, Scales::Outer})
      for (const Scales b_scales : {Scales::Tensor, Scales::Outer})
        for (const DType out : {DType::F32, DType::BF16})
          for (const bool accumulate : {false, true})
            all.push_back({m, n, k, a, b, out, false, false, accumulate, a_scales, b_scales});
  return all;
}

void check_all(GemmEngine& engine, const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    Problem problem(c);
    engine.run(problem.matmul());
    INFO(describe(c));
    CHECK(problem.worst() <= 1);
  }
}

bool contains(const std::string& text, const std::string& part) {
  UNSCOPED_INFO(text);
  return text.find(part) != std::string::npos;
}

std::vector<std::byte> result(const Case& c, int threads, const DeviceOptions& options) {
  Problem problem(c);
  GemmEngine engine(options, threads);
  engine.run(problem.matmul());
  return problem.out.bytes();
}

}  // namespace

TEST_CASE("every code and every BF16 value unpacks to its exact value") {
  for (const DType type : {DType::E4M3, DType::E5M2}) {
    uint8_t codes[256];
    float values[256];
    uint16_t halves[256];
    for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
    unpack(type, codes, values, 256);
    unpack_to_bfloat16(type, codes, halves, 256);
    for (int i = 0; i < 256; ++i) {
      const float expected = type == DType::E4M3 ? decode_e4m3(codes[i]) : decode_e5m2(codes[i]);
      const float half = to_float(BFloat16{halves[i]});
      INFO(name_of(type) << " code " << i);
      CHECK(
          ((std::isnan(expected) && std::isnan(values[i]) && std::isnan(half)) ||
           (values[i] == expected && half == expected && std::signbit(values[i]) == std::signbit(expected))));
    }
  }
}

TEST_CASE("all micro-kernels of this machine give the bits of one chain of fused multiply-adds") {
  constexpr int64_t inner = 37, pitch = 48;
  std::vector<float> a(pitch * inner), b(pitch * inner), first(32 * pitch), c(32 * pitch);
  for (size_t i = 0; i < a.size(); ++i) a[i] = uniform(1, i), b[i] = uniform(2, i);
  int count = 0;
  const MicroKernel* kernels = micro_kernels(count);
  for (int n = 0; n < count; ++n) {
    const MicroKernel& kernel = kernels[n];
    if (std::string(kernel.instruction_set) == "plain") continue;  // fused only where the compiler says so
    for (const bool rows_contiguous : {false, true})
      for (const auto write : {MicroTile::Write::Store, MicroTile::Write::Add}) {
        for (size_t i = 0; i < c.size(); ++i) c[i] = first[i] = uniform(3, i);
        const int64_t row_stride = rows_contiguous ? 1 : inner, inner_stride = rows_contiguous ? pitch : 1;
        kernel.run({a.data(), row_stride, inner_stride, b.data(), pitch, c.data(), pitch, inner, write});
        for (int i = 0; i < kernel.rows; ++i)
          for (int j = 0; j < kernel.columns; ++j) {
            float sum = 0;
            for (int64_t step = 0; step < inner; ++step) {
              const int64_t k = std::min(step ^ 1, inner - 1);
              sum = std::fma(a[static_cast<size_t>(i * row_stride + k * inner_stride)],
                             b[static_cast<size_t>(k * pitch + j)], sum);
            }
            const size_t at = static_cast<size_t>(i * pitch + j);
            REQUIRE(c[at] == (write == MicroTile::Write::Add ? first[at] + sum : sum));
          }
        CHECK(c[static_cast<size_t>(kernel.columns)] == first[static_cast<size_t>(kernel.columns)]);
      }
  }
}

TEST_CASE("the BF16 micro-kernel gives the same bits from pairs") {
  const MicroKernel* kernel = pair_micro_kernel();
  if (!kernel) {
    WARN("this machine has no BF16 instructions");
    return;
  }
  constexpr int64_t pairs = 21;
  const int64_t rows = kernel->rows, columns = kernel->columns;
  std::vector<float> a, b, c(static_cast<size_t>(rows * columns));
  const auto value = [](uint64_t key, size_t pair, size_t second) {
    return to_bfloat16(uniform(key, 2 * pair + second));
  };
  const auto make = [&](uint64_t key, int64_t count, std::vector<float>& to) {
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
      const uint32_t bits = value(key, i, 0).bits | static_cast<uint32_t>(value(key, i, 1).bits) << 16;
      to.push_back(0);
      memcpy(&to.back(), &bits, 4);
    }
  };
  make(1, rows * pairs, a);     // [row][pair]
  make(2, pairs * columns, b);  // [pair][column]
  kernel->run({a.data(), pairs, 1, b.data(), columns, c.data(), columns, pairs, MicroTile::Write::Store});
  for (size_t i = 0; i < static_cast<size_t>(rows); ++i)
    for (size_t j = 0; j < static_cast<size_t>(columns); ++j) {
      float sum = 0;
      for (size_t k = 0; k < pairs; ++k)
        for (const size_t second : {1, 0})
          sum = std::fma(to_float(value(1, i * pairs + k, second)),
                         to_float(value(2, k * static_cast<size_t>(columns) + j, second)), sum);
      REQUIRE(c[i * static_cast<size_t>(columns) + j] == sum);
    }
}

TEST_CASE("matmul agrees with double for every type, orientation and scale, at ragged shapes") {
  GemmEngine engine(fixed_order(), 2);
  const int64_t shapes[][3] = {{1, 1, 1}, {7, 5, 3}, {33, 65, 17}, {40, 70, 300}};
  for (const auto& s : shapes) check_all(engine, variants(s[0], s[1], s[2]));
}

TEST_CASE("matmul agrees with double beyond one tile in every direction") {
  GemmEngine engine(fixed_order(), 2);
  const std::vector<Case> cases = {
      {300, 600, 40},
      {261, 37, 700, DType::BF16, DType::BF16, DType::BF16, true, true, true},
      {37, 530, 270, DType::E5M2, DType::E4M3, DType::F32, false, false, true, Scales::Outer, Scales::Outer}};
  check_all(engine, cases);
}

TEST_CASE("an inner size of zero gives zeros, or leaves an accumulator as it was") {
  GemmEngine engine(fixed_order(), 2);
  check_all(engine, {{5, 9, 0}, {5, 9, 0, DType::BF16, DType::BF16, DType::BF16, false, false, true}});
}

TEST_CASE("the bound of these tests detects a wrong scale, a swapped operand and a missing k") {
  GemmEngine engine(fixed_order(), 1);
  const Case c{33,    33,    64,    DType::E4M3,    DType::E4M3,  DType::BF16,
               false, false, false, Scales::Tensor, Scales::Outer};
  SECTION("scale of the wrong row") {
    Problem problem(c);
    Matmul m = problem.matmul();
    m.b.granularity = ScaleGranularity::Tensor;
    engine.run(m);
    CHECK(problem.worst() > 1);
  }
  SECTION("a and b swapped") {
    Problem problem({33, 33, 64});
    Matmul m = problem.matmul();
    std::swap(m.a, m.b);
    engine.run(m);
    CHECK(problem.worst() > 1);
  }
  SECTION("one of 64 products forgotten") {
    Problem problem({33, 33, 64});
    Buffer a(DType::F32, {33, 63}), b(DType::F32, {33, 63});
    for (int64_t i = 0; i < 33; ++i)
      for (int64_t k = 0; k < 63; ++k) {
        a.set(i * 63 + k, problem.a.get(i * 64 + k));
        b.set(i * 63 + k, problem.b.get(i * 64 + k));
      }
    Matmul m = problem.matmul();
    m.a.values = a.tensor;
    m.b.values = b.tensor;
    engine.run(m);
    CHECK(problem.worst() > 1);
  }
  SECTION("and passes the right product") {
    Problem problem(c);
    engine.run(problem.matmul());
    CHECK(problem.worst() <= 1);
  }
}

TEST_CASE("sums of 16384 positive products keep their precision") {
  // Without cancellation an accumulator of fewer bits than FP32 loses the small terms: FP16-like
  // accumulators miss this bound by far. The relative Frobenius error is at most 1e-3 (2.5e-3 with a result
  // in BF16).
  const int64_t m = 16, n = 40, k = 16384;
  for (const DType out : {DType::F32, DType::BF16}) {
    const std::vector<Case> cases = {
        {m, n, k, DType::BF16, DType::BF16, out, true, false},
        {m, n, k, DType::E4M3, DType::E4M3, out, false, false, false, Scales::Tensor, Scales::Tensor},
        {m, n, k, DType::F32, DType::F32, out}};
    for (const Case& c : cases) {
      Problem problem(c, 0.5f, 1.0f);
      GemmEngine engine(fixed_order(), 2);
      engine.run(problem.matmul());
      double error = 0, norm = 0, half_error = 0;
      const double scale =
          c.a_scales == Scales::None ? 1 : double(problem.a_scales[0]) * double(problem.b_scales[0]);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          double sum = 0;
          float coarse = 0;
          for (int64_t l = 0; l < k; ++l) {
            const float x = problem.a.get(c.a_transposed ? l * m + i : i * k + l);
            const float y = problem.b.get(j * k + l);
            sum += double(x) * y;
            coarse = round_to_bfloat16(coarse + x * y);
          }
          const double difference = problem.out.get(i * n + j) - sum * scale;
          error += difference * difference;
          norm += sum * scale * sum * scale;
          half_error += (coarse - sum) * scale * (coarse - sum) * scale;
        }
      INFO(describe(c));
      CHECK(std::sqrt(error / norm) <= (out == DType::F32 ? 1e-3 : 2.5e-3));
      CHECK(std::sqrt(half_error / norm) > 2.5e-3);  // negative control: a BF16 accumulator
    }
  }
}

TEST_CASE("with fixed order the bits depend neither on threads nor on where a row stands") {
  const std::vector<Case> cases = {{70, 520, 600},
                                   {290, 65, 513, DType::BF16, DType::BF16, DType::F32, true, true, true},
                                   {65, 129, 300, DType::E5M2, DType::E4M3, DType::BF16, false, false, false,
                                    Scales::Outer, Scales::Outer}};
  for (const Case& c : cases) {
    INFO(describe(c));
    const auto one = result(c, 1, fixed_order());
    CHECK(result(c, 2, fixed_order()) == one);
    CHECK(result(c, 4, fixed_order()) == one);
    CHECK(result(c, 1, fixed_order()) == one);
  }
  SECTION("rows in parts") {
    const Case c{70, 130, 600, DType::BF16, DType::BF16, DType::F32};
    Problem whole(c), parts(c);
    GemmEngine engine(fixed_order(), 2);
    engine.run(whole.matmul());
    for (const auto& [first, count] : {std::pair{0, 13}, std::pair{13, 1}, std::pair{14, 56}}) {
      Matmul m = parts.matmul();
      m.a.values = m.a.values.slice(first, count);
      m.out = m.out.slice(first, count);
      engine.run(m);
    }
    CHECK(parts.out.bytes() == whole.out.bytes());
  }
  SECTION("columns in parts") {
    const Case c{30,    90,    300,   DType::E4M3,    DType::E5M2,   DType::F32,
                 false, false, false, Scales::Tensor, Scales::Tensor};
    Problem whole(c);
    GemmEngine engine(fixed_order(), 1);
    engine.run(whole.matmul());
    Buffer part(DType::F32, {30, 17});
    Matmul m = whole.matmul();
    m.b.values = m.b.values.slice(41, 17);
    m.out = part.tensor;
    engine.run(m);
    for (int64_t i = 0; i < 30; ++i)
      for (int64_t j = 0; j < 17; ++j) REQUIRE(part.get(i * 17 + j) == whole.out.get(i * 90 + 41 + j));
  }
}

TEST_CASE("a product of codes has the bits of the product of their values") {
  const Case codes{37,    45,    600,   DType::E4M3,    DType::E5M2,   DType::F32,
                   false, false, false, Scales::Tensor, Scales::Tensor};
  Problem problem(codes);
  problem.a_scales[0] = problem.b_scales[0] = 1;
  GemmEngine engine(fixed_order(), 2);
  engine.run(problem.matmul());
  for (const DType type : {DType::F32, DType::BF16}) {
    Buffer a(type, {37, 600}), b(type, {45, 600}), out(DType::F32, {37, 45});
    for (int64_t i = 0; i < a.tensor.elements(); ++i) a.set(i, problem.a.get(i));
    for (int64_t i = 0; i < b.tensor.elements(); ++i) b.set(i, problem.b.get(i));
    Matmul m;
    m.a.values = a.tensor;
    m.b.values = b.tensor;
    m.out = out.tensor;
    engine.run(m);
    CHECK(out.bytes() == problem.out.bytes());
    b.set(7, b.get(7) + 0.5f);  // negative control: one value changed shows
    engine.run(m);
    CHECK(out.bytes() != problem.out.bytes());
  }
}

TEST_CASE("without a fixed order any implementation keeps the same bound") {
  DeviceOptions options;
  options.threads = 2;
  GemmEngine engine(options, 2);
  check_all(engine, variants(33, 65, 17));
  check_all(engine, variants(40, 70, 300));
}

TEST_CASE("oneDNN multiplies codes exactly when their scales are powers of two, and leaves others alone") {
  const auto onednn = OneDnnGemm::create({2, OneDnnGemm::Codes::Always});
  if (!onednn) {
    WARN("built without oneDNN");
    return;
  }
  for (const Scales granularity : {Scales::Tensor, Scales::Outer})
    for (const bool accumulate : {false, true}) {
      const Case c{40,    70,    300,        DType::E5M2, DType::E4M3,  DType::F32,
                   false, false, accumulate, granularity, Scales::Outer};
      Problem problem(c);
      if (!onednn->may_suit(problem.matmul())) {
        WARN("this machine has no BF16 instructions");
        return;
      }
      CHECK_FALSE(onednn->suits(problem.matmul()));
      for (float& s : problem.a_scales) s = std::exp2(std::round(4 * s));
      for (float& s : problem.b_scales) s = std::exp2(-std::round(4 * s));
      const Matmul m = problem.matmul();
      REQUIRE(onednn->suits(m));
      std::vector<std::byte> workspace(onednn->workspace_bytes(m) + 256);
      onednn->run(m, workspace.data() + 256 - reinterpret_cast<uintptr_t>(workspace.data()) % 256);
      CHECK(problem.worst() <= 1);
      problem.a_scales[39] *= 2;  // negative control: the scale of the last row counts
      CHECK((problem.worst() > 1) == (granularity == Scales::Outer));
    }
}

TEST_CASE("matmul names what it refuses") {
  GemmEngine engine(fixed_order(), 1);
  const auto refusal = [&](const Matmul& m) -> std::string {
    try {
      engine.run(m);
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Internal);
      return error.what();
    }
    return "accepted";
  };
  Problem mixed({4, 4, 4, DType::F32, DType::BF16});
  CHECK(contains(refusal(mixed.matmul()), "fprop: a F32 [4, 4], b BF16 [4, 4]"));
  Problem twice(
      {4, 4, 4, DType::E5M2, DType::E5M2, DType::F32, false, false, false, Scales::Tensor, Scales::Tensor});
  CHECK(contains(refusal(twice.matmul()), "F8_E5M2"));
  Problem unscaled({4, 4, 4, DType::E4M3, DType::E4M3});
  CHECK(contains(refusal(unscaled.matmul()), "without an inverse scale"));
  Problem transposed(
      {4, 4, 4, DType::E4M3, DType::E4M3, DType::F32, true, false, false, Scales::Tensor, Scales::Tensor});
  CHECK(contains(refusal(transposed.matmul()), "[outer, inner]"));
  Problem scaled({4, 4, 4, DType::BF16, DType::BF16, DType::F32, false, false, false, Scales::Tensor});
  CHECK(contains(refusal(scaled.matmul()), "not codes"));
  Problem fine({4, 4, 4});
  Matmul m = fine.matmul();
  CHECK(refusal(m) == "accepted");
  Buffer longer(DType::F32, {4, 5});
  m.b.values = longer.tensor;
  CHECK(contains(refusal(m), "inner sizes differ, 4 and 5"));
  m = fine.matmul();
  m.out = longer.tensor;
  CHECK(contains(refusal(m), "must be [4, 4]"));
}

TEST_CASE("a device counts products by the types it was given, not by what a configuration says") {
  DeviceOptions options = fixed_order();
  options.threads = 2;
  const auto device = make_cpu_device(options);
  Problem codes(
      {8, 16, 32, DType::E5M2, DType::E4M3, DType::F32, false, false, false, Scales::Tensor, Scales::Tensor});
  Problem values({8, 16, 32, DType::BF16, DType::BF16, DType::F32});
  Matmul m = codes.matmul();
  m.gemm_class = GemmClass::Wgrad;
  device->matmul(m);
  device->matmul(m);
  m = values.matmul();
  m.gemm_class = GemmClass::Wgrad;
  device->matmul(m);

  Buffer qkv(DType::BF16, {6, 24}), out(DType::BF16, {6, 8}), log_sum_exp(DType::F32, {2, 2, 3});
  AttentionForward attention{};
  attention.qkv = qkv.tensor;
  attention.log_sum_exp = log_sum_exp.tensor;
  attention.context = 3;
  attention.heads = attention.kv_heads = 2;
  attention.head_width = 4;
  attention.softmax_scale = 0.5f;
  attention.out.high = out.tensor;
  device->attention_forward(attention);

  const MatmulCounts& counts = device->matmul_counts();
  REQUIRE(counts.size() == 3);
  const MatmulCount& in_codes = counts.at({GemmClass::Wgrad, DType::E5M2, DType::E4M3, DType::F32});
  CHECK(in_codes.calls == 2);
  CHECK(in_codes.flops == 2 * 2 * 8 * 16 * 32);
  CHECK(in_codes.implementation == (pair_micro_kernel() ? "blocked-bf16" : "blocked-f32"));
  CHECK(counts.at({GemmClass::Wgrad, DType::BF16, DType::BF16, DType::F32}).flops == 2 * 8 * 16 * 32);
  // 2 windows, 2 heads, 6 visible pairs, 2 * 4 operations in each of two products.
  CHECK(counts.at({GemmClass::Attention, DType::BF16, DType::BF16, DType::BF16}).flops == 2 * 2 * 6 * 8 * 2);
  device->reset_matmul_counts();
  CHECK(device->matmul_counts().empty());
}

TEST_CASE("a planned workspace of the size asked for is used, and gives the same bits") {
  const Case c{65, 129, 300, DType::BF16, DType::BF16, DType::F32};
  Problem with(c), without(c);
  GemmEngine engine(fixed_order(), 2);
  engine.run(without.matmul());
  const Matmul m = with.matmul();
  Buffer workspace(DType::U8, {static_cast<int64_t>(engine.workspace_bytes(std::span(&m, 1)))});
  auto* bytes = static_cast<uint8_t*>(workspace.tensor.data);
  std::fill_n(bytes, workspace.tensor.bytes(), uint8_t{0xff});  // NaN everywhere
  engine.set_workspace(workspace.tensor);
  engine.run(m);
  CHECK(with.out.bytes() == without.out.bytes());
  CHECK(std::count(bytes, bytes + workspace.tensor.bytes(), 0xff) <
        static_cast<int64_t>(workspace.tensor.bytes()));
  // One byte less is refused, not made up for.
  Tensor tight = workspace.tensor;
  tight.shape = {static_cast<int64_t>(workspace.tensor.bytes()) - 1};
  engine.set_workspace(tight);
  CHECK_THROWS_AS(engine.run(m), Error);
}
