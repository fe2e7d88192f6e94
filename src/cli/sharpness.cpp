// octet sharpness
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <memory>

#include "analysis/sharpness.h"
#include "base/files.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/experiments.h"
#include "training/checkpoint.h"
#include "training/run_files.h"

namespace octet {
namespace {

struct Options {
  SharpnessRequest request;
  std::string path, output;
};

void print_points(std::span<const SharpnessRecord> points) {
  fmt::print("{:>9}", points.front().step);
  for (const SharpnessRecord& p : points)
    fmt::print("  {:>10.5f} ± {:<8.5f} {:>10.5f}", p.last, p.last_error, p.all);
  fmt::print("\n");
  std::fflush(stdout);
}

int run(Options options) {
  options.request.path = options.path;
  for (const double epsilon : options.request.epsilons)
    if (!(epsilon > 0) || epsilon >= 1)
      throw Error(ExitCode::Usage, fmt::format("--epsilon {}: found a value outside (0, 1)", epsilon),
                  "5e-4 and 1e-3 are the defaults");
  bool begun = false;
  const SharpnessResult result =
      measure_sharpness(options.request, [&](std::span<const SharpnessRecord> points) {
        if (!begun) {
          fmt::print(
              "sharpness in percent; last token of each sequence ± standard error, then all tokens\n{:>9}",
              "step");
          for (const SharpnessRecord& p : points)
            fmt::print("  {:>21} {:>10}", fmt::format("last, epsilon {:g}", p.epsilon), "all");
          fmt::print("\n");
        }
        begun = true;
        print_points(points);
      });
  fmt::print("{} of {}\n", plural(result.sequences, "sequence"),
             escape_control(fmt::format("{}", fmt::join(result.data, " "))));
  namespace fs = std::filesystem;
  std::error_code ignored;
  const bool of_a_run = fs::is_directory(fs::path(options.path) / checkpoint_folder, ignored);
  const fs::path file = !options.output.empty() ? fs::path(options.output)
                        : of_a_run              ? fs::path(options.path) / sharpness_file
                                                : fs::path();
  if (file.empty()) return 0;
  write_atomically(file, to_json(result).dump(2) + "\n", ExitCode::Usage);
  fmt::print("written: {}\n", escape_control(file.string()));
  return 0;
}

}  // namespace

void add_sharpness(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "sharpness", "How much the loss grows when logits move a little: along a run, or of one checkpoint");
  command->add_option("PATH", options->path, "a run's folder (all its checkpoints), or one checkpoint")
      ->required();
  command
      ->add_option("--data", options->request.data,
                   "shards to read; by default the run's validation shards, or else its training shards")
      ->type_name("GLOB");
  command
      ->add_option("--sequences", options->request.sequences,
                   "context windows, the same for every checkpoint")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--epsilon", options->request.epsilons, "how far logits move: epsilon * (|logit| + 1)")
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--set", options->request.overrides,
                   "override a key of the checkpoint's configuration: --set precision.recipe=fp8")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option("--device", options->request.device, device_names)->capture_default_str();
  command->add_option("--output", options->output,
                      "JSON file; by default sharpness.json in the run's folder");
  command->footer(
      "Example:\n  octet sharpness runs/quickstart/fp8\n"
      "  octet sharpness runs/quickstart/fp8/checkpoints/step-00001200 --set precision.recipe=fp8");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace octet
