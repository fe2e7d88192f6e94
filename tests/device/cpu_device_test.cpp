#include <limits>

#include "base/error.h"
#include "catch.h"
#include "device/cpu/host_facts.h"
#include "device/op_fixture.h"

using namespace octet;

TEST_CASE("device memory is aligned and zeroed", "[cpu_device]") {
  OpFixture f;
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{4097}, size_t{5} << 20}) {
    void* memory = f->allocate(bytes);
    CHECK(reinterpret_cast<uintptr_t>(memory) % 256 == 0);
    const Bytes content(static_cast<uint8_t*>(memory), static_cast<uint8_t*>(memory) + bytes);
    CHECK(content == Bytes(bytes));
    f->free(memory);
  }
}

TEST_CASE("memory that is not there is refused with numbers and a remedy", "[cpu_device]") {
  OpFixture f;
  for (const size_t bytes : {size_t{1} << 50, std::numeric_limits<size_t>::max()}) {
    try {
      f->allocate(bytes);
      FAIL("allocated");
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Usage);
      CHECK(std::string(error.what()).find("GiB are available") != std::string::npos);
      CHECK_FALSE(error.hint().empty());
    }
  }
}

TEST_CASE("copy converts between storage types and moves everything else as it is", "[cpu_device]") {
  OpFixture f;
  const Values values = normal_values(100000, 1);
  const Tensor wide = f.floats(DType::F32, {100000}, values), narrow = f.zeros(DType::BF16, {100000}),
               back = f.zeros(DType::F32, {100000});
  f->copy(narrow, wide);
  f->copy(back, narrow);
  Values expected = values;
  for (float& v : expected) v = round_to_bfloat16(v);
  CHECK(read_floats(narrow) == expected);
  CHECK(read_floats(back) == expected);
  CHECK(expected != values);
  CHECK_THROWS(f->copy(f.zeros(DType::F32, {3}), f.zeros(DType::F32, {4})));
  CHECK_THROWS(f->copy(f.zeros(DType::E4M3, {3}), f.zeros(DType::F32, {3})));
}

TEST_CASE("fill_normal is a function of key and element alone", "[cpu_device]") {
  std::vector<Bytes> results;
  for (const int threads : {1, 4}) {
    OpFixture f(threads);
    const Tensor tensor = f.zeros(DType::F32, {70000});
    f->fill_normal(tensor, 0.02f, 42);
    results.push_back(read_bytes(tensor));
    CHECK(tensor.as<float>()[66000] ==
          static_cast<float>(static_cast<double>(0.02f) * random_normal(42, 66000)));
    f->fill_normal(tensor, 0.02f, 43);
    CHECK(read_bytes(tensor) != results[0]);
  }
  CHECK(results[0] == results[1]);
}

TEST_CASE("fill, zero and accumulate_sum", "[cpu_device]") {
  OpFixture f;
  const Tensor a = f.zeros(DType::F32, {70000}), b = f.zeros(DType::BF16, {3}),
               sum = f.zeros(DType::F64, {1});
  f->fill(a, 0.1f);
  f->fill(b, 2.0f);
  CHECK(read_floats(b) == Values{2, 2, 2});
  *sum.as<double>() = 1.0;
  f->accumulate_sum(sum, a);
  double expected = 1.0;
  for (int i = 0; i < 70000; ++i) expected += static_cast<double>(0.1f);
  CHECK(*sum.as<double>() == expected);
  f->zero(a);
  CHECK(read_floats(a) == Values(70000));
  CHECK_THROWS(f->fill(f.zeros(DType::I32, {1}), 1.0f));
}

TEST_CASE("the device says what it is, and a peak only with its source", "[cpu_device]") {
  const DeviceInfo info = OpFixture(2)->info();
  CHECK(info.name.rfind("CPU (", 0) == 0);
  CHECK(info.name.find("2 threads") != std::string::npos);
  CHECK_FALSE(info.peak_source.empty());

  const ProcessorFacts facts{"a processor", 2000, true, true, true, false};
  CHECK(stated_peak(facts, 4).flops == 4 * 2e9 * 64);
  CHECK(stated_peak({"another", 2000, true, true, true, true}, 4).flops == 4 * 2e9 * 1024);
  CHECK(stated_peak({"no clock", 0, true, true, true, true}, 4).flops == 0);
}
