// octet train
#include <fmt/format.h>

#include <csignal>
#include <filesystem>

#include "base/text.h"
#include "cli/command.h"
#include "config/run_config.h"
#include "training/checkpoint.h"
#include "training/progress.h"
#include "training/train.h"

namespace octet {
namespace {

struct TrainArguments {
  std::string config, device = "auto", resume = "auto";
  std::vector<std::string> set, inject;
  bool overwrite = false, accept_changed_data = false, quiet = false;
};

ResumePolicy resume_policy(const std::string& text) {
  if (text == "never") return {ResumePolicy::Kind::Never, {}};
  if (text == "auto") return {ResumePolicy::Kind::Auto, {}};
  if (text == "require") return {ResumePolicy::Kind::Require, {}};
  std::error_code ignored;
  const std::vector<std::string> words = {"never", "auto", "require"};
  if (const std::string near = nearest(text, words); !near.empty() && !std::filesystem::exists(text, ignored))
    throw Error(ExitCode::Usage, fmt::format("--resume {}: no such checkpoint", escape_control(text)),
                fmt::format("did you mean --resume {}?", near));
  return {ResumePolicy::Kind::Path, text};
}

std::string hint_of(const TrainResult& result) {
  const bool none = result.newest_checkpoint < 0;
  if (result.code == ExitCode::Numerics)
    return none ? "lower schedule.learning_rate"
                : "lower schedule.learning_rate, or go on from an earlier checkpoint with --resume PATH";
  return none ? "free disk space; there is no checkpoint: the same command starts afresh"
              : fmt::format("free disk space; the same command goes on from {}",
                            checkpoint_name(result.newest_checkpoint));
}

int run_train(const TrainArguments& arguments) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away must not stop training (F41)
  TrainRequest request;
  request.resume = resume_policy(arguments.resume);
  request.config = load_config(arguments.config, arguments.set);
  request.device = arguments.device;
  request.overwrite = arguments.overwrite;
  request.accept_changed_data = arguments.accept_changed_data;
  request.inject = arguments.inject;
  request.quiet = arguments.quiet;
  const TrainResult result = train(request);
  switch (result.code) {
    case ExitCode::Success:
      Progress().note(fmt::format(
          "finished: step {}, loss {:.4f}{}, in {}", result.step, result.final_loss,
          result.validation_loss > 0 ? fmt::format(", validation loss {:.4f}", result.validation_loss) : "",
          escape_control(result.folder)));
      break;
    case ExitCode::Stopped:
      Progress().note(fmt::format("stopped at step {} ({}), saved; the same command goes on", result.step,
                                  result.reason));
      break;
    default:
      complain({result.code, fmt::format("step {}: {}", result.step, escape_control(result.reason)),
                hint_of(result)});
  }
  return static_cast<int>(result.code);
}

}  // namespace

void add_train(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App* command = app.add_subcommand("train", "Train one run, or go on with it");
  command->add_option("CONFIG", arguments->config, "configuration of the run (octet config --schema)")
      ->required();
  command->add_option("--set", arguments->set, "override one key, for example --set run.steps=1000")
      ->type_name("KEY=VALUE")
      ->expected(1)
      ->take_all();
  command
      ->add_option(
          "--resume", arguments->resume,
          "never: refuse a folder that holds a run; auto: go on from the newest checkpoint, or start; "
          "require: go on or fail; or the folder of a checkpoint")
      ->type_name("never|auto|require|PATH")
      ->capture_default_str();
  command->add_option("--device", arguments->device, "auto, cpu or cuda")->capture_default_str();
  command->add_flag("--overwrite", arguments->overwrite,
                    "remove the run that the folder holds and start afresh");
  command->add_flag("--accept-changed-data", arguments->accept_changed_data,
                    "resume although the shards are not those the checkpoint was trained on");
  command->add_flag("--quiet", arguments->quiet, "no progress lines");
  command
      ->add_option("--inject", arguments->inject,
                   "rehearse a fault, for example kill:step=3 (docs/operations.md)")
      ->type_name("FAULT")
      ->expected(1)
      ->take_all();
  command->footer(
      "Examples:\n"
      "  octet train configs/quickstart.json\n"
      "  octet train my.json --set run.steps=2000 --set precision.recipe=fp8\n"
      "  octet train my.json --resume runs/my/checkpoints/step-00000100\n"
      "Signals: TERM and INT save and stop (exit code 75: start again to go on), USR1 saves and goes on.");
  command->callback([arguments, &action] { action = [arguments] { return run_train(*arguments); }; });
}

}  // namespace octet
