#!/usr/bin/env bash
# The tower of src/: a file includes only its own floor and floors below it; kernels/ includes numerics/ (and base/) only.
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"
floors=(base numerics tensor device comm data model optimizer config training analysis cli)
failed=0
for i in "${!floors[@]}"; do
  for higher in "${floors[@]:i+1}"; do
    if hits=$(grep -rnE "#include [\"<](\.\./)*$higher/" "src/${floors[i]}" 2>/dev/null); then
      printf 'floor %s includes the higher floor %s:\n%s\n' "${floors[i]}" "$higher" "$hits"; failed=1
    fi
  done
done
for other in "${floors[@]:2}"; do
  if hits=$(grep -rnE "#include [\"<](\.\./)*(src/)?$other/" kernels 2>/dev/null); then
    printf 'kernels/ includes %s/:\n%s\n' "$other" "$hits"; failed=1
  fi
done
exit $failed
