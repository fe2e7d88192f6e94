#!/usr/bin/env bash
# From nothing to a verdict: installs, builds, makes shards from text already on this machine, trains a BF16 and an FP8 twin of one
# small Llama from the same weights on the same batches, and BF16 once more from another seed, which shows how far two runs of one
# recipe lie apart; writes runs/quickstart/report.html.
# Safe to run again: finished parts are reused, an interrupted comparison goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
began=$SECONDS
step() { printf '\n[%3ds] %s\n' $((SECONDS - began)) "$*"; }

step "1/4 dependencies"
scripts/install_dependencies.sh

step "2/4 build"
scripts/build.sh octet
octet=${OCTET_BUILD:-build}/octet
"$octet" --version | head -n 1

step "3/4 training shards from the C++ headers under /usr/include (byte tokenizer)"
if [ -f data/quickstart/train_000000.bin ] && [ -f data/quickstart/validation_000000.bin ] \
   && "$octet" data info data/quickstart/*.bin >/dev/null 2>&1; then
  echo "data/quickstart is there already"
else
  "$octet" tokenize /usr/include/c++ --output data/quickstart --validation 0.05 --overwrite
fi

step "4/4 training the twins, and BF16 from a second seed for the noise band"
echo "three runs of 1200 steps, some minutes each on two idle cores; Ctrl-C stops and saves, the same command goes on"
# On a machine that is busy with something else, threads that spin while they wait cost ten times more than they gain. (Not the load
# average: it still remembers the build.)
others() {   # least number of other running threads in one second
  for _ in 1 2 3 4 5; do
    sed -E 's/.* ([0-9]+)\/.*/\1/' /proc/loadavg
    sleep 0.2
  done | sort -n | head -n 1 | awk '{ print $1 - 1 }'
}
if [ -z "${OMP_WAIT_POLICY:-}" ] && [ "$(others)" -ge "$(nproc)" ]; then
  export OMP_WAIT_POLICY=passive
  echo "this machine is busy: waiting threads sleep (OMP_WAIT_POLICY=passive), and the training takes longer"
fi
# A verdict other than "equivalent" is a result, not a failure of this script.
verdict=0
"$octet" compare configs/quickstart.json --variants bf16,fp8 --seeds 2 || verdict=$?
case $verdict in 0 | 10 | 11 | 12 | 20) ;; *) exit "$verdict" ;; esac

step "done: open runs/quickstart/report.html in a browser"
cat <<TEXT
What to try next:
  $octet train configs/quickstart.json --set run.name=mine --set schedule.learning_rate=4e-3
  $octet plan configs/8b-fp8.json          # memory, FLOPs and schedule of a large model, without a device
  $octet tokenize YOUR_TEXT --output data/mine --validation 0.05
  $octet doctor                            # what this machine can train
TEXT
