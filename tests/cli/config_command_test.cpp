// octet config, octet plan, octet doctor and the command line itself.
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/version.h"
#include "catch.h"
#include "cli/command_run.h"
#include "config/run_config.h"

using namespace octet;
using Json = nlohmann::ordered_json;

namespace {
const std::string configs = OCTET_SOURCE_DIR "/configs/";

size_t files_in(const std::filesystem::path& folder) {
  size_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::recursive_directory_iterator(folder)) ++n;
  return n;
}
}  // namespace

TEST_CASE("octet config prints what the library resolves, and reads its own output") {
  const TemporaryFolder folder;
  const CommandRun run =
      run_octet("config '" + configs + "124m-fp8.json' --set run.steps=7000 --set batch.micro=8");
  CHECK(run.code == 0);
  CHECK(run.output == to_json(load_config(configs + "124m-fp8.json", {"run.steps=7000", "batch.micro=8"})));
  std::ofstream(folder.path() / "resolved.json") << run.output;
  CHECK(run_octet("config resolved.json", folder.path()).output == run.output);
  CHECK(run_octet("config --schema").output == json_schema());
  CHECK(run_octet("config resolved.json --hash", folder.path()).output.size() == 17);
}

TEST_CASE("a misspelt key ends every command with exit 2, the right key and no files") {
  const TemporaryFolder folder;
  std::ofstream(folder.path() / "c.json") << R"({"run": {"stepz": 4}, "model": {"width": -1}})";
  for (const char* command : {"config", "plan"}) {
    const CommandRun run = run_octet(std::string(command) + " c.json", folder.path());
    INFO(run.output);
    CHECK(run.code == 2);
    CHECK(run.says("error: c.json: 2 problems"));
    CHECK(run.says("line 1, column 10: /run/stepz: unknown key; did you mean \"steps\"?"));
    CHECK(run.says("/model/width: found -1"));
    CHECK(run.says("hint:  "));
  }
  CHECK(run_octet("plan absent.json", folder.path()).code == 2);
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("an unknown command or option ends with exit 2 and a suggestion") {
  const struct {
    const char* arguments;
    const char* error;
    const char* hint;
  } cases[] = {
      {"pln x.json", "unknown command \"pln\"", "did you mean 'octet plan'?"},
      {"docter", "unknown command \"docter\"", "did you mean 'octet doctor'?"},
      {"plan x.json --jsn", "unknown option \"--jsn\"", "did you mean 'octet plan --json'?"},
      {"plan x.json --items=3 --sett=a", "unknown option \"--sett\"", "did you mean 'octet plan --set'?"},
      {"plan a.json b.json", "unknown argument \"b.json\"", "see 'octet plan --help'"},
      {"plan", "CONFIG is required", "see 'octet plan --help'"},
      {"--versoin", "unknown option \"--versoin\"", "--version"},
  };
  for (const auto& c : cases) {
    const CommandRun run = run_octet(c.arguments);
    INFO(c.arguments << "\n" << run.output);
    CHECK(run.code == 2);
    CHECK(run.says(c.hint));
    if (std::string(c.arguments).find("--items=3") == std::string::npos)
      CHECK(run.says(std::string("error: ") + c.error));
  }
}

TEST_CASE("every command has help with an example, version names the build") {
  const CommandRun help = run_octet("--help");
  CHECK(help.code == 0);
  for (const char* command : {"plan", "config", "doctor"}) {
    CHECK(help.says(command));
    const CommandRun own = run_octet(std::string(command) + " --help");
    CHECK(own.code == 0);
    CHECK(own.says("Example"));
    CHECK(own.says(std::string("octet ") + command));
  }
  const CommandRun v = run_octet("--version");
  CHECK(v.code == 0);
  CHECK(v.says("octet " + version()));
  CHECK(v.says(build_summary()));
}

TEST_CASE("octet plan prints the plan, touching nothing") {
  const TemporaryFolder folder;
  const CommandRun text = run_octet("plan '" + configs + "8b-fp8.json'", folder.path());
  CHECK(text.code == 0);
  CHECK(text.says("8030261248 parameters"));
  CHECK(text.says("161.1B tokens"));
  CHECK(text.says("peak"));
  const CommandRun json = run_octet("plan --json '" + configs + "8b-fp8.json'", folder.path());
  CHECK(json.code == 0);
  const Json plan = Json::parse(json.output);
  CHECK(plan["parameters"] == 8030261248);
  CHECK(plan["tokens"]["per_step"] == 4194304);
  CHECK(files_in(folder.path()) == 0);
}

TEST_CASE("octet doctor reports the machine and leaves nothing behind") {
  const TemporaryFolder folder;
  const CommandRun text = run_octet("doctor", folder.path());
  CHECK(text.code == 0);
  CHECK(text.says("octet " + version()));
  CHECK(text.says("write, sync and remove work"));
  const CommandRun json = run_octet("doctor --json", folder.path());
  CHECK(json.code == 0);
  const Json facts = Json::parse(json.output);
  CHECK(facts["cpu"]["cores"].get<int>() >= 1);
  CHECK(facts["memory"]["bytes"].get<uint64_t>() > 0);
  CHECK(facts["disk"]["writable"] == true);
  CHECK(facts["verdicts"].size() == 10);
  for (const Json& verdict : facts["verdicts"]) {
    CHECK((verdict["trains"] == "yes") == (verdict["device"] == "cpu"));
    const bool codes = verdict["reason"].get<std::string>().starts_with("real FP8 codes");
    if (verdict["device"] == "cpu")
      CHECK(codes ==
            (verdict["recipe"] == "fp8" || verdict["recipe"] == "fog" || verdict["recipe"] == "deepseek"));
  }
  CHECK(files_in(folder.path()) == 0);
}

TEST_CASE("octet doctor says when the folder cannot be written") {
  // A folder under /proc cannot take files, even from root.
  const CommandRun json = run_octet("doctor --json", "/proc/self");
  CHECK(json.code == 0);
  CHECK(Json::parse(json.output)["disk"]["writable"] == false);
  CHECK(Json::parse(json.output)["problems"].dump().find("cannot write") != std::string::npos);
}

TEST_CASE("a product that cannot be written ends with exit code 74, whatever its size") {
  const TemporaryFolder folder;
  const std::string quickstart = "'" + configs + "quickstart.json'";
  for (const std::string& command :
       {"config " + quickstart, std::string("config --schema"), "plan " + quickstart,
        "plan --json " + quickstart, std::string("--help"), std::string("--version"), std::string("doctor"),
        std::string("plan --help")}) {
    INFO(command);
    CHECK(run_octet(command + " >/dev/null", folder.path()).code == 0);
    // Standard error goes to the pipe, standard output to a device that is always full; # hides what
    // run_octet adds.
    const CommandRun lost = run_octet(command + " 2>&1 >/dev/full #", folder.path());
    INFO(lost.output);
    CHECK(lost.code == 74);
    CHECK(lost.says("error: standard output cannot be written"));
    CHECK(run_octet(command + " >/dev/full", folder.path()).code == 74);  // standard error as well
    CHECK(run_octet(command + " 2>&1 >&- #", folder.path()).code == 74);  // closed: nowhere to print to
  }
  CHECK(run_octet("plan absent.json >/dev/full", folder.path()).code == 2);  // the first mistake counts
}

TEST_CASE("help about a command that is not there is a usage error that names the nearest") {
  const CommandRun typo = run_octet("pln --help");
  INFO(typo.output);
  CHECK(typo.code == 2);
  CHECK(typo.says("unknown command \"pln\""));
  CHECK(typo.says("octet plan"));
  CHECK(run_octet("report --help").code == 2);
  CHECK(run_octet("data inof --help").code == 2);
  for (const char* fine : {"--help", "plan --help", "data --help", "data info --help", "plan x.json --help"})
    CHECK(run_octet(fine).code == 0);
}

TEST_CASE("octet plan --gpu plans for a GPU that is not here, and says what is exact and what is not") {
  const CommandRun run = run_octet("plan '" + configs + "8b-fp8.json' --gpu h200");
  INFO(run.output);
  CHECK(run.code == 0);
  for (const char* text : {"Memory on the GPU H200, planned without it", "exact", "upper bound", "estimate",
                           "2 x batch x heads x context^2 = 4.00 GiB", "assumed: CUDA's context", "fits "})
    CHECK(run.says(text));
  const CommandRun small = run_octet("plan '" + configs + "8b-fp8.json' --gpu rtx4090");
  CHECK(small.code == 0);
  CHECK(small.says("DOES NOT FIT"));
  CHECK(small.says("what to change"));
  const Json json = Json::parse(run_octet("plan '" + configs + "8b-fp8.json' --gpu h100 --json").output);
  CHECK(json["gpu"]["fits"] == false);
  CHECK(json["gpu"]["memory_bytes"] == 80000000000);
  CHECK(json["gpu"]["planned_bytes"] == json["memory"]["device_bytes"]);
  CHECK(json["gpu"]["workspace"]["kernels_bytes"].get<int64_t>() > 0);
  // Without a GPU in question there is none.
  CHECK_FALSE(Json::parse(run_octet("plan '" + configs + "8b-fp8.json' --json").output).contains("gpu"));
  const CommandRun unknown = run_octet("plan '" + configs + "8b-fp8.json' --gpu h20o");
  CHECK(unknown.code == 2);
  CHECK(unknown.says("did you mean h200?"));
}

TEST_CASE("octet plan --ranks predicts a step and says what is assumed") {
  const std::string plan = "plan '" + configs + "8b-fp8.json' ";
  const CommandRun run = run_octet(plan + "--gpu h200 --ranks 256 --link 400G");
  INFO(run.output);
  CHECK(run.code == 0);
  for (const char* text :
       {"Prediction for 256 x H200: ZeRO-1, gradients bf16", "assumed   link_efficiency",
        "given     link_bits", "published node_mtbf_hours", "1024   128 does not work",
        "batch.tokens=8388608", "divide among 1, 2, 4", "sqrt(2 x stop x time between failures)"})
    CHECK(run.says(text));
  const Json fast =
      Json::parse(run_octet(plan + "--gpu h200 --ranks 256 --link 400G --json").output)["scaling"];
  const Json slow = Json::parse(
      run_octet(plan + "--gpu h200 --ranks 256 --link 10G --mtbf-hours 1000 --json").output)["scaling"];
  CHECK(fast["at_ranks"]["efficiency"] > slow["at_ranks"]["efficiency"]);
  CHECK(fast["failures"]["job_mtbf_seconds"] > slow["failures"]["job_mtbf_seconds"]);
  CHECK(fast["constants"]["link_efficiency"]["kind"] == "assumed");
  CHECK(slow["constants"]["node_mtbf_hours"]["kind"] == "given");
  CHECK(fast["curve"].size() == 15);
  CHECK_FALSE(Json::parse(run_octet(plan + "--json").output).contains("scaling"));
  CHECK(run_octet(plan + "--ranks 8").says("planned for the H200"));
  const std::string configured = plan + "--ranks 64 --set parallel.zero=0 --set parallel.reduce=fp8";
  const CommandRun codes = run_octet(configured);
  CHECK(codes.says("ZeRO-0, gradients fp8 on the wire"));
  CHECK(codes.says("With parallel.reduce bf16 a step of 64 ranks is "));
  const CommandRun flags = run_octet(configured + " --zero 1 --reduce bf16");
  CHECK(flags.says("ZeRO-1, gradients bf16 on the wire"));
  CHECK_FALSE(flags.says("With parallel.reduce bf16"));
  CHECK(run_octet(plan + "--ranks 0").code == 2);
  CHECK(run_octet(plan + "--ranks 8 --link 400X").says("--link 400X: not a bandwidth"));
  CHECK(run_octet(plan + "--ranks 8 --constant overlap_cots=1").says("did you mean overlap_cost?"));
  CHECK(run_octet(plan + "--ranks 8 --constants absent.json").code == 2);
}
