#!/usr/bin/env bash
# Installs what Octet builds with, from the distribution's own packages. Does nothing when all of it is there.
#   scripts/install_dependencies.sh           compiler, build tools, libraries
#   scripts/install_dependencies.sh --test    also what the tests and checks need
set -euo pipefail

packages=(g++ cmake ninja-build ccache nlohmann-json3-dev libcli11-dev libfmt-dev libspdlog-dev libxxhash-dev libdnnl-dev catch2)
if [ "${1:-}" = "--test" ]; then packages+=(git clang-format-14 openmpi-bin mpich iproute2); fi

if ! command -v apt-get >/dev/null; then
  echo "This script knows Debian 12 and Ubuntu 22.04 / 24.04. Elsewhere, install the equivalents of: ${packages[*]}" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "dependencies: all installed"
  exit 0
fi

as_root=(env)
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "Run this as root or install sudo; missing packages: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo env)
fi
echo "dependencies: installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${as_root[@]}" apt-get update -q && "${as_root[@]}" DEBIAN_FRONTEND=noninteractive \
       apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "apt-get failed (above); the packages wanted were: ${missing[*]}" >&2
  exit 1
fi
echo "dependencies: installed"
