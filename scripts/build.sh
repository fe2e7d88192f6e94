#!/usr/bin/env bash
# Configures and builds into build/ (or $OCTET_BUILD); reuses what is there.
#   scripts/build.sh [TARGET...]     default: octet
set -euo pipefail
cd "$(dirname "$0")/.."
build=${OCTET_BUILD:-build}
# A build folder that was made elsewhere (a moved or copied checkout) would be refused by CMake: start it afresh.
if [ -f "$build/CMakeCache.txt" ] && ! grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" "$build/CMakeCache.txt"; then
  rm -rf "$build"
fi
mkdir -p "$build"
# A second checkout finds the first one's objects in ccache.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
log=$build/build.log
# shellcheck disable=SC2086  # several arguments on purpose
if ! cmake -G Ninja -S . -B "$build" ${OCTET_CMAKE_ARGS:-} >"$log" 2>&1; then
  tail -n 40 "$log" >&2
  echo "configuration failed; the whole log is $log" >&2
  exit 1
fi
if ! cmake --build "$build" --target "${@:-octet}" >>"$log" 2>&1; then
  grep -A12 -m3 -E 'error|FAILED' "$log" >&2 || tail -n 40 "$log" >&2
  echo "build failed; the whole log is $log" >&2
  exit 1
fi
