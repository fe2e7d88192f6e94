// octet selftest: every operation of a device against the CPU device, and a short training run.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <memory>

#include "analysis/selftest.h"
#include "base/error.h"
#include "base/text.h"
#include "cli/command.h"
#include "device/gpu/interpreted/interpreted_backend.h"
#include "training/open_device.h"

namespace octet {
namespace {

struct Options {
  std::string device = "interpreter", only;
  bool all = false, fastest = false;
};

struct Summary {
  size_t cases = 0, passed = 0;
  double error = 0, bound = 0;
};

// "RMSNorm_forward" asks for "rmsnorm forward".
std::string as_asked(std::string name) {
  for (char& c : name) c = c == '_' ? ' ' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

std::string bound_text(double bound) { return bound == 0 ? "same bits" : fmt::format("{:.2e}", bound); }

// In the order of the first case of each operation.
std::vector<std::pair<std::string, Summary>> summarise(const std::vector<SelftestRow>& rows) {
  std::vector<std::pair<std::string, Summary>> table;
  for (const SelftestRow& row : rows) {
    auto it = std::find_if(table.begin(), table.end(),
                           [&](const auto& entry) { return entry.first == row.operation; });
    if (it == table.end()) it = table.insert(table.end(), {row.operation, {}});
    Summary& s = it->second;
    ++s.cases;
    s.passed += row.passed;
    s.error = std::max(s.error, row.error);
    s.bound = std::max(s.bound, row.bound);
  }
  return table;
}

int run(const Options& options) {
  const DeviceOptions as_tested{.deterministic = !options.fastest};
  const std::unique_ptr<Device> reference = make_cpu_device({.deterministic = true});
  const bool interpreted = options.device == "interpreter";
  const std::unique_ptr<Device> tested =
      interpreted ? make_interpreted_device(as_tested) : open_device(options.device, as_tested);
  const Libraries libraries = interpreted && !options.fastest ? Libraries::Same : Libraries::Other;
  const Repeats repeats = options.fastest ? Repeats::MayDiffer : Repeats::SameBits;
  fmt::print("tested:    {}\nreference: {}\n\n", tested->info().name, reference->info().name);

  std::vector<SelftestRow> rows;
  const auto wanted = [&](const std::string& operation) {
    return options.only.empty() || operation.find(as_asked(options.only)) != std::string::npos;
  };
  const DeviceInfo info = tested->info();
  size_t left_out = 0;
  for (const SelftestCase& one : selftest_operations(libraries)) {
    if (!wanted(one.operation)) continue;
    if ((one.float8_products && !info.float8_products) || (one.float8_attention && !info.float8_attention) ||
        (one.block_scales && !info.block_scales)) {
      ++left_out;
      continue;
    }
    rows.push_back(run_case(one, *reference, *tested));
    const SelftestRow& row = rows.back();
    if (options.all || !row.passed)
      fmt::print("{} {}: {}{}\n", row.passed ? "pass" : "FAIL", row.operation, row.variant,
                 row.passed ? "" : "\n     " + escape_control(row.detail));
  }
  if (wanted("training")) {
    for (const SelftestRow& row : selftest_training(*reference, *tested, libraries, repeats)) {
      rows.push_back(row);
      if (options.all || !row.passed)
        fmt::print("{} {}: {}{}\n", row.passed ? "pass" : "FAIL", row.operation, row.variant,
                   row.passed ? "" : "\n     " + escape_control(row.detail));
    }
  }
  if (rows.empty())
    throw Error(ExitCode::Usage,
                fmt::format("--only {}: no operation has that in its name", escape_control(options.only)),
                "octet selftest --all lists them");

  size_t passed = 0;
  fmt::print("{:<22} {:>6} {:>7} {:>12} {:>11}\n", "operation", "cases", "passed", "worst error", "bound");
  for (const auto& [operation, s] : summarise(rows)) {
    fmt::print("{:<22} {:>6} {:>7} {:>12.3g} {:>11}{}\n", operation, s.cases, s.passed, s.error,
               bound_text(s.bound), s.passed == s.cases ? "" : "   FAILED");
    passed += s.passed;
  }
  fmt::print(
      "\n{} of {} passed. Errors are relative in the Frobenius norm; where the same bits are demanded, the "
      "share "
      "of values that differ.\n",
      passed, rows.size());
  if (!info.float8_products)
    fmt::print("Left out, for this GPU has no FP8 products: {} of them, and training in FP8.\n", left_out);
  else if (left_out > 0)
    fmt::print(
        "Left out: {} of attention in FP8 or products with scales of blocks, of which this GPU{} has none.\n",
        plural(left_out, "case"), options.fastest ? "" : ", with run.deterministic,");
  return passed == rows.size() ? 0 : static_cast<int>(ExitCode::Hardware);
}

}  // namespace

void add_selftest(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("selftest", "Compare every operation of a device with the CPU device");
  command
      ->add_option("--device", options->device, "cuda, or interpreter: the GPU kernels executed on the CPU")
      ->check(CLI::IsMember({"cuda", "interpreter"}))
      ->capture_default_str();
  command->add_option("--only", options->only, "operations with this in their name, for example rmsnorm");
  command->add_flag(
      "--fastest", options->fastest,
      "as runs are by default, without run.deterministic: repeats are not demanded to be equal");
  command->add_flag("--all", options->all, "print every case, not just those that fail");
  command->footer(
      "Exit code: 0 when all passed, 30 otherwise.\n"
      "Example:\n  octet selftest --device cuda\n  octet selftest --only cast --all");
  command->callback([&action, options] { action = [options] { return run(*options); }; });
}

}  // namespace octet
