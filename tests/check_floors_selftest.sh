#!/usr/bin/env bash
# Negative control of check_floors.sh: an upward include, a kernel that is not portable, or a type with two definitions must be refused, a clean tree accepted.
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
rm "$tree/kernels/k.cuh"
printf '#include <cstdint>\n#include "kernels/gpu.h"\n#include "numerics/float8.h"\n#include "base/random.h"\n' >"$tree/kernels/k.cu"
"$here/check_floors.sh" "$tree" >/dev/null || { echo "a kernel with kernels/ and numerics/ was refused"; exit 1; }
for line in '#include "base/error.h"' '#include "float8.h"' '#include <cuda_fp8.h>' 'asm("bar.sync 0;");'; do
  echo "$line" >"$tree/kernels/k.cu"
  ! "$here/check_floors.sh" "$tree" >/dev/null || { echo "a kernel with $line was accepted"; exit 1; }
done
rm "$tree/kernels/k.cu"
echo 'struct Twice {' >"$tree/src/base/c.h"
"$here/check_floors.sh" "$tree" >/dev/null || { echo "one definition was refused"; exit 1; }
echo 'class Twice final {' >"$tree/src/model/c.h"
! "$here/check_floors.sh" "$tree" >/dev/null || { echo "two definitions of one type were accepted"; exit 1; }
