#!/usr/bin/env bash
# The tower of src/: a file includes only its own floor and floors below it; kernels/ includes kernels/, numerics/
# and the two headers of base/ that numerics/ needs; CUDA's headers only in kernels/gpu.h, inline PTX only in kernels/instructions.h.
# And no type has two definitions.
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
if hits=$(grep -rnE '#include "' kernels 2>/dev/null | grep -vE '#include "(kernels/[^.]|numerics/[^.]|base/(platform|random)\.h")'); then
  printf 'kernels/ includes more than kernels/, numerics/, base/platform.h and base/random.h:\n%s\n' "$hits"; failed=1
fi
if hits=$(grep -rnE '#include [<"](cuda|cooperative_groups|cub/|thrust/|mma\.h)' kernels 2>/dev/null | grep -v '^kernels/gpu\.h:'); then
  printf 'CUDA headers outside kernels/gpu.h:\n%s\n' "$hits"; failed=1
fi
if hits=$(grep -rnE '\basm\b' kernels --include='*.cu' --include='*.cuh' --include='*.h' 2>/dev/null | grep -v '^kernels/instructions\.h:'); then
  printf 'inline assembly outside kernels/instructions.h:\n%s\n' "$hits"; failed=1
fi
# One name, one type: two headers that define a type of the same name are two definitions in one program.
if hits=$(grep -rhoE '^(class|struct) [A-Z][A-Za-z0-9]*[^;]*\{' src --include='*.h' 2>/dev/null | awk '{print $2}' | sort | uniq -d | grep .); then
  printf 'types defined in two headers:\n%s\n' "$hits"; failed=1
fi
exit $failed
