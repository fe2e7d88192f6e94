#include "analysis/selftest.h"

#include <set>
#include <string>

#include "catch.h"
#include "device/gpu/interpreted/interpreted_backend.h"
#include "device/measured_device.h"

using namespace octet;

namespace {

// A case whose result depends on the device it runs on.
SelftestCase one_value(double bound, Device& reference, float expected, float found) {
  return {"planted", "one value of three", bound, [&reference, expected, found](Workbench& w) {
            const float value = &w.device() == &reference ? expected : found;
            w.output("out", w.floats(DType::F32, {3}, {1.0f, value, 2.0f}));
          }};
}

}  // namespace

TEST_CASE("every operation of the GPU device on the interpreter gives the CPU device's bits") {
  const auto reference = make_cpu_device({.deterministic = true}),
             tested = make_interpreted_device({.deterministic = true});
  std::set<std::string> operations;
  for (const SelftestCase& one : selftest_operations(Libraries::Same)) {
    const SelftestRow row = run_case(one, *reference, *tested);
    INFO(row.operation << ": " << row.variant << ": " << row.detail);
    CHECK(row.passed);
    operations.insert(row.operation);
  }
  CHECK(operations.size() == 34);
}

TEST_CASE("a model trains on the interpreter to the CPU device's bits (slow)") {
  const auto reference = make_cpu_device({.deterministic = true}),
             tested = make_interpreted_device({.deterministic = true});
  const std::vector<SelftestRow> rows = selftest_training(*reference, *tested, Libraries::Same);
  std::multiset<std::string> recipes;
  for (const SelftestRow& row : rows) {
    INFO(row.variant << ": " << row.detail);
    CHECK(row.passed);
    recipes.insert(row.variant.substr(0, row.variant.find(':')));
  }
  // No recipe was left out as one that this device cannot run: the curve, and but for SmoothQuant repeats of
  // it.
  for (const char* recipe : {"bf16", "fp8", "fp8 delayed", "fp8 attention", "deepseek"})
    CHECK(recipes.count(recipe) == 6);
  CHECK(recipes.count("fp8 SmoothQuant") == 2);
}

TEST_CASE("a device with products of another library is within the bounds, and its bits are not asked for") {
  const auto reference = make_cpu_device({.deterministic = true}),
             tested = make_interpreted_device({.deterministic = false});
  for (const SelftestCase& one : selftest_operations(Libraries::Other)) {
    if (one.operation != "matmul") continue;
    const SelftestRow row = run_case(one, *reference, *tested);
    INFO(row.variant << ": " << row.detail);
    CHECK(row.bound > 0);
    CHECK(row.passed);
  }
}

TEST_CASE("on a device without FP8 products their cases and FP8 training are left out, and nothing else") {
  // As an Ampere GPU describes itself.
  struct WithoutFloat8 : MeasuredDevice {
    using MeasuredDevice::MeasuredDevice;
    DeviceInfo info() const override {
      DeviceInfo info = MeasuredDevice::info();
      info.float8_products = false;
      return info;
    }
  };
  const auto reference = make_cpu_device({.deterministic = true});
  WithoutFloat8 tested(*reference);
  for (const SelftestRow& row : selftest_training(*reference, tested, Libraries::Same, Repeats::MayDiffer)) {
    CHECK(row.variant.rfind("bf16", 0) == 0);
    CHECK(row.passed);
  }
  size_t products = 0, codes = 0;
  for (const SelftestCase& one : selftest_operations(Libraries::Same)) {
    const bool multiplies_codes = one.operation == "matmul" && one.variant.find("F8_") != std::string::npos;
    CHECK(one.float8_products == multiplies_codes);
    products += one.operation == "matmul";
    codes += multiplies_codes;
  }
  CHECK(codes > 0);
  CHECK(products > codes);
}

TEST_CASE("the selftest sees one wrong value, one too large error, and an error thrown") {
  const auto reference = make_cpu_device({}), tested = make_cpu_device({});
  CHECK(run_case(one_value(0, *reference, 5, 5), *reference, *tested).passed);
  const SelftestRow wrong = run_case(one_value(0, *reference, 5, 5.0000005f), *reference, *tested);
  CHECK_FALSE(wrong.passed);
  CHECK(wrong.detail == "out: 1 of 3 differ, the first at 1: 5 expected, 5.000000476837158 found");
  CHECK(run_case(one_value(1e-3, *reference, 5, 5.001f), *reference, *tested).passed);
  CHECK_FALSE(run_case(one_value(1e-3, *reference, 5, 5.01f), *reference, *tested).passed);
  CHECK_FALSE(run_case(one_value(1e-3, *reference, 5, NAN), *reference, *tested).passed);
  const SelftestCase thrown{"planted", "", 0, [](Workbench&) { throw std::runtime_error("no such kernel"); }};
  CHECK(run_case(thrown, *reference, *tested).detail == "no such kernel");
  const SelftestCase empty{"planted", "", 0, [](Workbench&) {}};
  CHECK_FALSE(run_case(empty, *reference, *tested).passed);
}
