#!/usr/bin/env python3
"""Loss and bytes of local SGD beside synchronous training: configs/quickstart-local-sgd.json on 2 CPU ranks;
docs/results/scaling.md.

  octet tokenize TEXT --output data/quickstart --validation 0.05
  scripts/measure_local_sgd.py build/octet [--steps 300]

Losses do not depend on how busy the machine is; times would, and are not measured.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "quickstart-local-sgd.json"


def train(octet, folder, steps, settings):
    command = [octet, "train", str(CONFIG), "--quiet", "--overwrite", "--ranks=2"]
    for setting in [f"run.output={folder}", f"run.steps={steps}", "run.threads=1", "run.deterministic=true",
                    "schedule.warmup_steps=50", f"evaluation.every={steps // 3}", "checkpoint.every=0", *settings]:
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL,
                   env=dict(os.environ, OMP_WAIT_POLICY="passive"))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps_of = [r for r in records if r["kind"] == "step"]
    validation = [r["validation/loss"] for r in records if r["kind"] == "validation"]
    return (statistics.mean(r["train/loss"] for r in steps_of[-20:]), validation[-1],
            statistics.mean(r["comm/gradient_bytes"] for r in steps_of),
            statistics.mean(r["comm/other_bytes"] for r in steps_of))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("octet", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", default="", help="variants that begin with this: \"H = 20\"")
    arguments = parser.parse_args()
    variants = [(f"H = {every}, {wire}" + (f", seed {seed}" if seed != 1337 else ""),
                 [f"parallel.sync_every={every}", f"parallel.reduce={wire}", f"run.seed={seed}"])
                for every, wire, seed in [(1, "fp32", 1337), (1, "fp32", 1), (1, "fp8", 1337), (5, "fp32", 1337),
                                          (5, "fp8", 1337), (20, "fp32", 1337), (20, "fp8", 1337)]]
    print("| variant | training loss, last 20 steps | validation loss | gradients sent a step, KiB | all else, KiB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, settings) in enumerate(variants):
            if not name.startswith(arguments.only):
                continue
            loss, validation, gradients, other = train(arguments.octet.resolve(), pathlib.Path(scratch) / str(number),
                                                       arguments.steps, settings)
            print(f"| {name} | {loss:.4f} | {validation:.4f} | {gradients / 1024:.1f} | {other / 1024:.2f} |",
                  flush=True)


if __name__ == "__main__":
    main()
