#include "device/nvidia/library_scratch.h"

#include "device/nvidia/gpu_models.h"
#include "device/products_of_recipes.h"
#include "error_of.h"

using namespace octet;

namespace {

AttentionKey backward(int64_t kv_heads, bool deterministic, int64_t context = 1024) {
  AttentionKey key;
  key.batch = 2;
  key.context = context;
  key.heads = 8;
  key.kv_heads = kv_heads;
  key.head_width = 128;
  key.backward = true;
  key.deterministic = deterministic;
  return key;
}
size_t cudnn_bytes(const AttentionKey& key, int capability) {
  const AttentionScratch own = attention_scratch(key);
  return attention_scratch_estimate(key, capability).backward - own.out_products - own.query_accumulator;
}
constexpr size_t n = 2 * 8 * 1024 * 128, counters = 65536;  // batch x heads x context x head width

}  // namespace

TEST_CASE("attention's scratch by generation: FP32 sums of shared keys, and of queries before Hopper") {
  for (const int capability : {90, 100}) {
    CHECK(cudnn_bytes(backward(8, false), capability) == counters);
    CHECK(cudnn_bytes(backward(2, false), capability) == 4 * n + counters);
  }
  for (const int capability : {80, 86, 89, 120}) {
    CHECK(cudnn_bytes(backward(8, false), capability) == 4 * n + counters);
    CHECK(cudnn_bytes(backward(2, false), capability) == 8 * n + counters);
  }
}

TEST_CASE("a deterministic backward pass costs 2 B H S^2, except on data-centre Blackwell") {
  constexpr size_t scores = 2ull * 2 * 8 * 1024 * 1024;
  for (const int capability : {80, 89, 90, 120}) {
    CHECK(attention_scratch_estimate(backward(8, true), capability).score_matrix == scores);
    CHECK(cudnn_bytes(backward(8, true), capability) == scores + counters);
    CHECK(cudnn_bytes(backward(2, true), capability) == scores + 4 * n + counters);
    // Four times for twice the context, and whole blocks of it.
    CHECK(attention_scratch_estimate(backward(8, true, 2048), capability).score_matrix == 4 * scores);
    CHECK(attention_scratch_estimate(backward(8, true, 1000), capability).score_matrix == scores);
    CHECK(attention_scratch_estimate(backward(8, false), capability).score_matrix == 0);
  }
  CHECK(attention_scratch_estimate(backward(8, true), 100).score_matrix == 0);
  CHECK(cudnn_bytes(backward(2, true), 100) == 8 * n + counters);
}

TEST_CASE("wide heads have a backward pass on Hopper alone") {
  AttentionKey wide = backward(8, false);
  wide.head_width = 256;
  CHECK_NOTHROW(attention_scratch_estimate(wide, 90));
  for (const int capability : {80, 89, 100, 120}) {
    const Error error = error_of([&] { attention_scratch_estimate(wide, capability); });
    CHECK(error.code() == ExitCode::Hardware);
    CHECK_THAT(error.what(), contains_text("heads of 256"));
  }
}

TEST_CASE("products: the library's limit and, beside it, what outer scales take") {
  constexpr size_t mebibyte = 1 << 20;
  const Matmul plain = product(GemmClass::Fprop, DType::E4M3, DType::E4M3, DType::BF16);
  Matmul outer = plain;
  outer.a.granularity = ScaleGranularity::Outer;
  const auto bound = [](const Matmul& m, int capability) {
    return products_scratch_bound({&m, 1}, {capability, 130100});
  };
  CHECK(bound(plain, 90) == 32 * mebibyte);
  CHECK(bound(plain, 89) == 4 * mebibyte);
  CHECK(bound(outer, 90) == 32 * mebibyte + 512);             // 128 FP32 scales
  CHECK(bound(outer, 100) == 32 * mebibyte + 256 * 128 * 4);  // the FP32 product
  CHECK(products_scratch_bound({}, {90, 130100}) == 0);
  const Error error = error_of([&] { bound(plain, 80); });
  CHECK(error.code() == ExitCode::Hardware);
}

TEST_CASE("a driver's name finds its board, and no other") {
  const auto found = [](const char* name) {
    const GpuModel* model = find_gpu_model(name);
    return model ? std::string(model->key) : "none";
  };
  CHECK(found("NVIDIA H200") == "h200");
  CHECK(found("NVIDIA H200 NVL") == "h200-nvl");
  CHECK(found("NVIDIA H100 80GB HBM3") == "h100");
  CHECK(found("NVIDIA H100 PCIe") == "h100-pcie");
  CHECK(found("NVIDIA A100-SXM4-80GB") == "a100");
  CHECK(found("NVIDIA A100-SXM4-40GB") == "a100-40gb");
  CHECK(found("NVIDIA A10") == "a10");
  CHECK(found("NVIDIA L40S") == "l40s");
  CHECK(found("NVIDIA L4") == "l4");
  CHECK(found("NVIDIA GeForce RTX 4090") == "rtx4090");
  CHECK(found("NVIDIA GB200") == "gb200");
  CHECK(found("NVIDIA Unheard-of") == "none");
}

TEST_CASE("the table of GPUs agrees with itself") {
  for (const GpuModel& model : gpu_models()) {
    INFO(model.name);
    CHECK(gpu_model(model.key).capability == model.capability);
    CHECK(std::string(find_gpu_model(std::string("NVIDIA ") + model.name)->name) == model.name);
    // FP8 from Ada on, at twice the rate of BF16.
    if (model.capability < 89)
      CHECK(model.float8_tera_flops == 0);
    else
      CHECK(model.float8_tera_flops == Approx(2 * model.bfloat16_tera_flops).epsilon(0.02));
  }
  CHECK(&gpu_model("NVIDIA RTX 4090") == &gpu_model("rtx4090"));
  CHECK(&gpu_model("H200") == &gpu_model("h200"));
  const Error error = error_of([] { gpu_model("h20O"); });
  CHECK(error.code() == ExitCode::Usage);
  CHECK_THAT(error.what(), contains_text("rtx4090"));
  CHECK_THAT(error.hint(), contains_text("did you mean"));
}
