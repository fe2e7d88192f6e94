// Products whose order of sums is oneDNN's choice, where it is built in.
#include "device/cpu/onednn_gemm.h"

#include <cmath>
#include <cstddef>
#include <vector>

#include "catch.h"
#include "device/cpu/gemm_state.h"
#include "device/matmul_problem.h"

using namespace octet;
using matrices::Case;
using matrices::check_all;
using matrices::Problem;
using matrices::Scales;
using matrices::variants;

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

TEST_CASE("oneDNN multiplies codes with scales of blocks exactly when all of them are powers of two") {
  const auto onednn = OneDnnGemm::create({2, OneDnnGemm::Codes::Always});
  if (!onednn) return;
  for (const Scales b : {Scales::Squares, Scales::Vectors}) {
    Problem problem(
        {40, 270, 300, DType::E4M3, DType::E4M3, DType::F32, false, false, true, Scales::Vectors, b});
    if (!onednn->may_suit(problem.matmul())) return;
    CHECK_FALSE(onednn->suits(problem.matmul()));
    for (float& s : problem.a_scales) s = std::exp2(std::round(4 * s));
    for (float& s : problem.b_scales) s = std::exp2(-std::round(4 * s));
    const Matmul m = problem.matmul();
    REQUIRE(onednn->suits(m));
    std::vector<std::byte> workspace(onednn->workspace_bytes(m) + 256);
    onednn->run(m, workspace.data() + 256 - reinterpret_cast<uintptr_t>(workspace.data()) % 256);
    CHECK(problem.worst() <= 1);
    problem.a_scales[2 * 40] *= 2;  // negative control: the last block of the first row counts
    CHECK(problem.worst() > 1);
    problem.b_scales[0] = 0.3f;
    CHECK_FALSE(onednn->suits(m));
  }
}
