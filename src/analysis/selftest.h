// octet selftest: does a device compute what the CPU device, the executable specification, computes?
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "device/device.h"

namespace octet {

// The tensors of one operation under test on one device, made from host values, and those to be compared.
class Workbench {
 public:
  explicit Workbench(Device& device) : device_(device) {}
  ~Workbench();
  Workbench(const Workbench&) = delete;
  Workbench& operator=(const Workbench&) = delete;

  Device& device() { return device_; }
  Tensor zeros(DType dtype, Shape shape);
  Tensor floats(DType dtype, Shape shape, const std::vector<float>& values);  // F32, BF16
  Tensor bytes(DType dtype, Shape shape, const void* data);
  Site site(float scale = 0);  // with counters
  // Compared after the operation, under this name.
  void output(const std::string& name, const Tensor& tensor);
  void output(const std::string& name, const Site& site);

  struct Output {
    std::string name;
    DType dtype;
    std::vector<std::byte> data;
  };
  std::vector<Output> read_outputs();  // waits for the device

 private:
  Device& device_;
  std::vector<void*> owned_;
  std::vector<std::pair<std::string, Tensor>> outputs_;
};

// One comparison. `bound` 0: every output must have the same bits; otherwise the largest relative Frobenius
// error of an output.
struct SelftestCase {
  std::string operation;  // "rmsnorm forward"
  std::string variant;    // "BF16, delayed E4M3, 33 x 200"
  double bound = 0;
  std::function<void(Workbench&)> run;
  bool float8_products = false;  // for devices that have them (DeviceInfo) only
  bool float8_attention = false;
  bool block_scales = false;
};

struct SelftestRow {
  std::string operation, variant;
  double error = 0, bound = 0;
  bool passed = false;
  std::string detail;  // of a failure: which output, where, found and expected; or the error thrown
};

// A device whose matrix products and attention are other libraries' than the reference's agrees within the
// bounds of the formats; the interpreter, which has the CPU device's, to the bit.
enum class Libraries { Same, Other };

std::vector<SelftestCase> selftest_operations(Libraries libraries);
SelftestRow run_case(const SelftestCase& one, Device& reference, Device& tested);

// Whether the tested device gives the same bits each time (DeviceOptions::deterministic).
enum class Repeats { SameBits, MayDiffer };

// A short training run of a small model per recipe on both devices: the loss of every step; where repeats
// have the same bits, so have a run that is resumed halfway and one that recomputes. FP8 recipes only on
// devices with products of codes.
std::vector<SelftestRow> selftest_training(Device& reference, Device& tested, Libraries libraries,
                                           Repeats repeats = Repeats::SameBits);

}  // namespace octet
