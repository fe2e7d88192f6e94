#!/usr/bin/env bash
# Negative control of check_floors.sh: a tree with one upward include must be refused, a clean one accepted.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/src/base" "$tree/src/model" "$tree/kernels"
echo '#include "base/error.h"' >"$tree/src/model/a.h"
"$here/check_floors.sh" "$tree" >/dev/null || { echo "a clean tree was refused"; exit 1; }
echo '#include "model/a.h"' >"$tree/src/base/b.h"
! "$here/check_floors.sh" "$tree" >/dev/null || { echo "an upward include was accepted"; exit 1; }
rm "$tree/src/base/b.h"
echo '#include "../src/model/a.h"' >"$tree/kernels/k.cuh"
! "$here/check_floors.sh" "$tree" >/dev/null || { echo "kernels/ including model/ was accepted"; exit 1; }
