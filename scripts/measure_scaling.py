#!/usr/bin/env python3
"""Speed and communication of 1 and 2 CPU ranks, one global batch; docs/results/scaling.md.

  scripts/measure_scaling.py build/octet [--rounds 3] [--steps 4]

The variants take turns in every round, so that whatever else the machine does meets all of them. The first step of
each run is left out. Prints medians and ranges over all steps of a variant.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

CONFIG = {
    "run": {"name": "scaling", "seed": 1, "deterministic": True},
    "model": {"preset": "llama", "layers": 8, "width": 512, "heads": 8, "kv_heads": 4, "ffn_width": 1408,
              "context": 512, "vocabulary": 8192},
    "precision": {"recipe": "bf16"},
    "data": {"train": ["data/train_*.bin"]},
    "batch": {"tokens": 2048, "micro": 2},
    "schedule": {"learning_rate": 1e-3, "warmup_steps": 1},
    "checkpoint": {"every": 0}, "evaluation": {"every": 0}, "health": {"every": 0},
}
VARIANTS = [  # name, ranks, threads of each, settings
    ("1 rank x 1 thread", 1, 1, []),
    ("1 rank x 2 threads", 1, 2, []),
    ("2 ranks x 1 thread, gradients fp32", 2, 1, ["parallel.reduce=fp32"]),
    ("2 ranks x 1 thread, gradients bf16", 2, 1, ["parallel.reduce=bf16"]),
    ("2 ranks x 1 thread, gradients fp8", 2, 1, ["parallel.reduce=fp8"]),
    ("2 ranks x 1 thread, fp8 recipe, gradients fp8", 2, 1, ["parallel.reduce=fp8", "precision.recipe=fp8"]),
]


def train(octet, folder, ranks, threads, settings, steps):
    command = [octet, "train", "run.json", "--quiet", "--overwrite", f"--ranks={ranks}"]
    for setting in [f"run.threads={threads}", f"run.steps={steps}", *settings]:
        command += ["--set", setting]
    environment = dict(os.environ, OMP_WAIT_POLICY="passive")
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    records = [json.loads(line) for line in open(folder / "runs/scaling/metrics.jsonl")]
    return [r for r in records if r["kind"] == "step" and r["step"] > 1]


def spread(values, scale=1.0, digits=2):
    values = sorted(v * scale for v in values)
    return f"{statistics.median(values):.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("octet", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    octet = str(arguments.octet.resolve())
    steps = {name: [] for name, *_ in VARIANTS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "run.json").write_text(json.dumps(CONFIG))
        (folder / "text.txt").write_text("".join(f"line {i}: {i * i % 9973}\n" for i in range(20000)))
        subprocess.run([octet, "tokenize", "text.txt", "--output", "data"], cwd=folder, check=True, capture_output=True)
        for _ in range(arguments.rounds):
            for name, ranks, threads, settings in VARIANTS:
                steps[name] += train(octet, folder, ranks, threads, settings, arguments.steps)
    print(f"{arguments.rounds} rounds of {arguments.steps - 1} steps, load {os.getloadavg()[1]:.1f} at the end")
    print("| variant | step, s | tokens/s | gradients MiB | weights MiB | other KiB | waited s | share of the step |")
    print("|---|---|---|---|---|---|---|---|")
    for name, of_variant in steps.items():
        of = lambda key: [s.get(key, 0) for s in of_variant]
        seconds, waited = of("perf/step_seconds"), of("comm/waited_seconds")
        print("|", " | ".join([
            name, spread(seconds), f"{statistics.median(of('perf/tokens_per_second')):.0f}",
            f"{statistics.median(of('comm/gradient_bytes')) / 2**20:.2f}",
            f"{statistics.median(of('comm/weight_bytes')) / 2**20:.2f}",
            f"{statistics.median(of('comm/other_bytes')) / 2**10:.1f}",
            spread(waited), f"{100 * sum(waited) / sum(seconds):.1f} %"]), "|")


main()
