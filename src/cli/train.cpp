// octet train
#include <fmt/format.h>

#include <csignal>
#include <filesystem>
#include <optional>

#include "base/log.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/train_ranks.h"
#include "comm/launch.h"
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
  LaunchFlags launch;
  std::optional<int> ranks;  // to be started here
  int max_restarts = 0;
};

// True: this process starts the ranks; false: it is one.
bool starts_ranks(const TrainArguments& arguments) {
  const LaunchFlags& flags = arguments.launch;
  const bool placed = flags.rank || flags.ranks || flags.local_rank || flags.local_ranks ||
                      flags.rendezvous || flags.launcher != "auto";
  const bool starts = arguments.ranks.value_or(1) > 1 || arguments.max_restarts > 0;
  if (arguments.ranks && placed)
    throw Error(ExitCode::Usage,
                "--ranks with --rank, --world-size, --local-rank, --rendezvous or --launcher",
                "--ranks N starts N processes here by itself; the others say which of several this one is");
  if (arguments.max_restarts > 0 && placed)
    throw Error(ExitCode::Usage, "--max-restarts without --ranks",
                "Octet restarts the ranks that it has started itself; elsewhere that is the launcher's part");
  return starts;
}

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

int run_train(const TrainArguments& arguments, const CLI::App& command) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away must not stop training (F41)
  TrainRequest request;
  request.resume = resume_policy(arguments.resume);
  request.config = load_config(arguments.config, arguments.set);
  if (starts_ranks(arguments))
    return train_ranks({command, request.config, arguments.ranks.value_or(1), arguments.max_restarts});
  request.launch = detect_launch(arguments.launch, process_environment());
  if (request.launch.ranks > 1 && request.launch.rank == 0)
    Progress().note("launch: " + describe(request.launch));
  request.device = arguments.device;
  request.overwrite = arguments.overwrite;
  request.accept_changed_data = arguments.accept_changed_data;
  request.inject = arguments.inject;
  request.quiet = arguments.quiet;
  const bool follows = request.launch.rank > 0;
  if (follows) set_log_level(LogLevel::Warning);  // rank 0 speaks for all
  const TrainResult result = train(request);
  if (follows && (result.code == ExitCode::Success || result.code == ExitCode::Stopped))
    return static_cast<int>(result.code);
  switch (result.code) {
    case ExitCode::Success:
      Progress().note(fmt::format(
          "finished: step {}, loss {:.4f}{}, in {}", result.step, result.final_loss,
          result.validation_loss > 0 ? fmt::format(", validation loss {:.4f}", result.validation_loss) : "",
          escape_control(result.folder)));
      if (!result.communication.empty()) Progress().note(result.communication);
      for (const std::string& one : result.fallbacks) Progress().note("fallback: " + one);
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
  command->add_option("--device", arguments->device, device_names)->capture_default_str();
  command->add_flag("--overwrite", arguments->overwrite,
                    "remove the run that the folder holds and start afresh");
  command->add_flag("--accept-changed-data", arguments->accept_changed_data,
                    "resume although the shards are not those the checkpoint was trained on");
  command->add_flag("--quiet", arguments->quiet, "no progress lines");
  command
      ->add_option("--ranks,--gpus", arguments->ranks,
                   "start N processes on this machine, one a GPU, and train with all of them")
      ->type_name("N")
      ->check(CLI::Range(1, 1024));
  command
      ->add_option("--max-restarts", arguments->max_restarts,
                   "start all ranks again, at most K times, when one is killed, lost or its hardware fails")
      ->type_name("K")
      ->check(CLI::Range(0, 1000000));
  LaunchFlags& launch = arguments->launch;
  command->add_option("--rank", launch.rank, "which of the ranks this process is, with --world-size")
      ->type_name("R");
  command->add_option("--world-size", launch.ranks, "the number of ranks")->type_name("N");
  command->add_option("--local-rank", launch.local_rank, "which of the ranks of this host it is")
      ->type_name("R");
  command->add_option("--local-ranks", launch.local_ranks, "how many ranks this host has")->type_name("N");
  command->add_option("--rendezvous", launch.rendezvous, "where rank 0 listens")->type_name("HOST:PORT");
  command
      ->add_option("--launcher", launch.launcher,
                   "whose variables say which rank this is: auto, octet, mpi, slurm, flux, env, single")
      ->type_name("NAME")
      ->capture_default_str();
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
      "  octet train my.json --gpus 8 --max-restarts 3\n"
      "  srun octet train my.json        (mpirun and others: docs/operations.md)\n"
      "Signals: TERM and INT save and stop (exit code 75: start again to go on), USR1 saves and goes on.");
  command->callback([arguments, command, &action] {
    action = [arguments, command] { return run_train(*arguments, *command); };
  });
}

}  // namespace octet
