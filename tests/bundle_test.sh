#!/usr/bin/env bash
# The bundle in an empty root: nothing there but the C library and /proc, as on a machine with a driver and NVIDIA's libraries only.
# It must start, say what is missing, and compute. Takes root, or a system that lets users make namespaces.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root/proc" "$root/tmp" "$root/text"
scripts/bundle.sh "$root/a bundle" >/dev/null
cp README.md docs/*.md "$root/text/"

inside() {   # COMMAND...
  unshare --mount --pid --fork $([ "$(id -u)" -eq 0 ] || echo --map-root-user) bash -c '
    mount -t proc proc "$0/proc" && exec env -i "$(PATH=$PATH:/usr/sbin:/sbin command -v chroot)" "$0" "$@"' "$root" "$@"
}
if ! unshare --mount --pid --fork $([ "$(id -u)" -eq 0 ] || echo --map-root-user) mount -t proc proc "$root/proc" 2>/dev/null; then
  echo "skipped: no mount namespaces here"
  exit 0
fi

# The negative control: without a C library nothing starts.
if inside "/a bundle/bin/octet" --version >/dev/null 2>&1; then
  echo "octet started without a C library" >&2
  exit 1
fi
ldd "$root/a bundle/bin/octet" | grep -oE '/[^ ]+/(libc|libm|libdl|librt|libpthread|libmvec|libresolv|libutil|ld-linux[^ ]*)\.so[^ ]*' | sort -u |
  while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
  done
loader=$(ldd "$root/a bundle/bin/octet" | grep -oE '/[^ ]*ld-linux[^ ]*' | head -n 1)
mkdir -p "$root$(dirname "$loader")"
cp -L "$loader" "$root$loader"

inside "/a bundle/bin/octet" --version
inside "/a bundle/bin/octet" doctor >/dev/null
inside "/a bundle/bin/octet" selftest --device interpreter --only rope >/dev/null
inside "/a bundle/bin/octet" tokenize /text --output /tmp/data --validation 0.3 >/dev/null
inside "/a bundle/bin/octet" train "/a bundle/configs/quickstart.json" --quiet --set 'data.train=["/tmp/data/train_*.bin"]' \
  --set 'data.validation=["/tmp/data/validation_*.bin"]' --set run.output=/tmp/run \
  --set model.context=32 --set batch.tokens=64 --set batch.micro=1 --set run.steps=2 --set schedule.warmup_steps=1 --set evaluation.every=0 >/dev/null
