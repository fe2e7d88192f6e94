// Matmul as an operation: right within a derived bound for everything it allows, refused otherwise, counted.
#include <algorithm>
#include <cmath>
#include <memory>

#include "base/error.h"
#include "catch.h"
#include "device/cpu/gemm_state.h"
#include "device/cpu/micro_kernel.h"
#include "device/matmul_problem.h"

using namespace octet;
using matrices::Buffer;
using matrices::Case;
using matrices::check_all;
using matrices::describe;
using matrices::fixed_order;
using matrices::Problem;
using matrices::Scales;
using matrices::variants;

namespace {

bool contains(const std::string& text, const std::string& part) {
  UNSCOPED_INFO(text);
  return text.find(part) != std::string::npos;
}

}  // namespace

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
      {37, 530, 270, DType::E5M2, DType::E4M3, DType::F32, false, false, true, Scales::Outer, Scales::Outer},
      {390, 530, 700, DType::E4M3, DType::E4M3, DType::F32, false, false, true, Scales::Vectors,
       Scales::Squares}};
  check_all(engine, cases);
}

TEST_CASE("an inner size of zero gives zeros, or leaves an accumulator as it was") {
  GemmEngine engine(fixed_order(), 2);
  check_all(engine, {{5, 9, 0}, {5, 9, 0, DType::BF16, DType::BF16, DType::BF16, false, false, true}});
}

TEST_CASE("fast accumulation is a GPU's: the CPU device gives the same bits") {
  GemmEngine engine(fixed_order(), 2);
  const Case c{33,    37,    4096,  DType::E4M3,    DType::E4M3,   DType::F32,
               false, false, false, Scales::Tensor, Scales::Tensor};
  Problem slow(c), fast(c);
  engine.run(slow.matmul());
  Matmul m = fast.matmul();
  m.fast_accumulation = true;
  engine.run(m);
  bool same = true;
  for (int64_t i = 0; i < 33 * 37; ++i) same = same && slow.out.get(i) == fast.out.get(i);
  CHECK(same);
  CHECK(slow.worst() <= 1);
  CHECK(slow.out.get(0) != slow.out.get(1));  // there is something to compare
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
  SECTION("the scale of another block") {
    Problem problem({33, 33, 200, DType::E4M3, DType::E4M3, DType::F32, false, false, false, Scales::Vectors,
                     Scales::Squares});
    Matmul m = problem.matmul();
    engine.run(m);
    CHECK(problem.worst() <= 1);
    std::swap(problem.b_scales[0], problem.b_scales[1]);
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
  const auto in_blocks = [&](Scales a, Scales b) {
    Problem problem({4, 4, 4, DType::E4M3, DType::E4M3, DType::F32, false, false, false, a, b});
    return refusal(problem.matmul());
  };
  CHECK(contains(in_blocks(Scales::Vectors, Scales::Outer), "on one operand only"));
  CHECK(contains(in_blocks(Scales::Squares, Scales::Squares), "not both"));
  CHECK(in_blocks(Scales::Squares, Scales::Vectors) == "accepted");
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
