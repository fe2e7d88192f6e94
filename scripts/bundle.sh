#!/usr/bin/env bash
# Makes a folder that can be copied to another machine and starts there: the program, the libraries it needs (but for the C library,
# the driver and NVIDIA's own), configurations and documents. That machine needs a C library at least as new as this one's.
#   scripts/bundle.sh [FOLDER]      default: dist/octet
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-dist/octet}
build=${OCTET_BUILD:-build}

scripts/build.sh octet
if [ -e "$folder" ] && [ ! -f "$folder/BUNDLE" ]; then
  echo "$folder is there and is not a bundle; give another folder or remove it" >&2
  exit 2
fi
rm -rf "$folder"
mkdir -p "$folder/lib"
: >"$folder/BUNDLE"   # so that a second try knows the folder as its own
cmake --install "$build" --prefix "$folder" >/dev/null

# The C library belongs to the machine, the driver's and NVIDIA's libraries are opened on demand.
ldd "$folder/bin/octet" | awk '$2 == "=>" { print $1, $3 }' | while read -r name path; do
  case $name in
    libc.so.* | libm.so.* | libdl.so.* | librt.so.* | libpthread.so.* | libmvec.so.* | libresolv.so.* | libutil.so.* | ld-linux* | linux-vdso*) ;;
    *)
      if [ ! -f "$path" ]; then
        echo "$name, which octet needs, was not found" >&2
        exit 1
      fi
      cp -L "$path" "$folder/lib/$name"
      ;;
  esac
done
cp -r README.md configs docs "$folder/"

glibc=$(getconf GNU_LIBC_VERSION)
"$folder/bin/octet" --version >"$folder/BUNDLE"
echo "needs $glibc or newer" >>"$folder/BUNDLE"
cat >"$folder/quickstart.sh" <<'TEXT'
#!/bin/sh
# Shards from text on this machine (default: /usr/share; give another folder), then the BF16 and FP8 twins and their report.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
text=${1:-/usr/share}
[ -f data/quickstart/train_000000.bin ] || "$here/bin/octet" tokenize "$text" --output data/quickstart --validation 0.05
exec "$here/bin/octet" compare "$here/configs/quickstart.json" --variants bf16,fp8 --seeds 2
TEXT
chmod +x "$folder/quickstart.sh"
echo "$folder: $(du -sh "$folder" | cut -f1), $(ls "$folder/lib" | wc -l) libraries; needs $glibc or newer"
