#!/usr/bin/env bash
# Installs, builds and runs the tests.
#   scripts/test.sh          what the gate runs
#   scripts/test.sh --full   also the long tests, fuzzing for minutes, the build without oneDNN, and the kernels for every GPU
set -euo pipefail
cd "$(dirname "$0")/.."
full=
if [ "${1:-}" = "--full" ]; then full=1; fi
began=$SECONDS
step() { printf '\n[%4ds] %s\n' $((SECONDS - began)) "$*"; }
passed=0
failed=0
check() {   # NAME COMMAND...
  local name=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
    echo "passed: $name"
  else
    failed=$((failed + 1))
    echo "FAILED: $name"
  fi
}
# Tests run side by side: threads that spin while they wait would take each other's cores.
export OMP_WAIT_POLICY=passive
run_tests() {   # BUILD CTEST-ARGUMENTS...
  local build=$1 log=$1/ctest.log bad total
  shift
  ctest --test-dir "$build" --output-on-failure -j "$(nproc)" "$@" >"$log" 2>&1 || true
  grep -vE '^ *(Start +[0-9]+:|[0-9]+/[0-9]+ Test +#[0-9]+:.* Passed )' "$log" || true
  if read -r bad total < <(sed -nE 's/.* ([0-9]+) tests? failed out of ([0-9]+).*/\1 \2/p' "$log" | tail -n 1) && [ "$total" -gt 0 ]; then
    failed=$((failed + bad))
    passed=$((passed + total - bad))
  else
    failed=$((failed + 1))
    echo "FAILED: no tests ran in $build"
  fi
}

step "dependencies"
scripts/install_dependencies.sh --test

step "format and structure"
check "clang-format" bash -o pipefail -c 'find src kernels tests -name "*.h" -o -name "*.cpp" -o -name "*.cu" -o -name "*.cuh" | xargs clang-format-14 --dry-run --Werror'
check "no floor includes a higher one" tests/check_floors.sh
check "the floor check finds planted violations" tests/check_floors_selftest.sh

step "release build, warnings are errors"
OCTET_BUILD=build scripts/build.sh all
step "tests"
run_tests build

step "bundle"
check "the bundle starts and trains in an empty root" tests/bundle_test.sh

# Also the build without CUDA. The tests of commands and reports start processes: with --full only.
step "build without CUDA, with address and undefined-behaviour sanitizers"
floors="base;numerics;tensor;device;comm;data;model;optimizer;config;training"
if [ -n "$full" ]; then floors=; fi
OCTET_BUILD=build-asan OCTET_CMAKE_ARGS="-DCMAKE_BUILD_TYPE=RelWithDebInfo -DOCTET_SANITIZE=address,undefined -DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 \
  -DOCTET_CUDA=OFF -DOCTET_TESTED_FLOORS=$floors" scripts/build.sh octet octet_tests
step "tests under the sanitizers"
# Tests named (slow) train for many steps or start hundreds of processes: they run without sanitizers only.
UBSAN_OPTIONS=print_stacktrace=1 run_tests build-asan --exclude-regex '\(slow\)'

step "kernels under the thread sanitizer: a race is a failure"
# Older thread sanitizers need addresses that are not randomised; a container may forbid that, and then it is not needed.
plain_addresses=()
if setarch "$(uname -m)" -R true 2>/dev/null; then plain_addresses=(setarch "$(uname -m)" -R); fi
OCTET_BUILD=build-tsan OCTET_CMAKE_ARGS="-DCMAKE_BUILD_TYPE=RelWithDebInfo -DOCTET_SANITIZE=thread -DOCTET_ONEDNN=OFF -DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1" \
  "${plain_addresses[@]}" scripts/build.sh test_kernels
# As many processes as cores and not one a test, because the sanitizer takes a millisecond for each thread of a block once;
# one OpenMP thread, because it does not know OpenMP's own synchronisation.
list_tests() {   # PROGRAM...; Catch2 2 exits with the number of tests, Catch2 3 has another option
  local names
  names=$("$@" --list-test-names-only 2>/dev/null) || true
  [ -n "$names" ] || names=$("$@" --list-tests --verbosity quiet) || true
  printf '%s\n' "$names"
}
no_races() {   # PROGRAM
  local run=("${plain_addresses[@]}" "$1") lists part raced=0
  lists=$(mktemp -d)
  list_tests "${run[@]}" | sed 's/,/\\,/g' >"$lists/all"
  split --number="r/$(nproc)" --elide-empty-files "$lists/all" "$lists/part."
  for part in "$lists"/part.*; do   # a name that the program does not find again is left out without a word
    if [ "$(list_tests "${run[@]}" --input-file "$part" | wc -l)" -ne "$(wc -l <"$part")" ]; then
      echo "$1 does not know its own tests: $part"
      raced=1
    fi
  done
  # xargs, unlike the shell's own jobs, ends with the tests when somebody presses Ctrl-C.
  printf '%s\0' "$lists"/part.* | OMP_NUM_THREADS=1 xargs -0 -P "$(nproc)" -I{} bash -c '"${@:2}" --input-file "$1" >"$1.log" 2>&1' - {} "${run[@]}" || raced=1
  grep -hv '^Filters: ' "$lists"/*.log || raced=1
  rm -r "$lists"
  return $raced
}
check "kernels have no races" no_races build-tsan/tests/test_kernels

if [ -n "$full" ]; then
  if [ -f build/liboctet_kernels_cuda.a ]; then
    step "kernels for every GPU"
    check "kernels compile for every GPU" env OCTET_BUILD=build-gpus \
      OCTET_CMAKE_ARGS="-DOCTET_CUDA=ON -DOCTET_CUDA_ARCHITECTURES=80;89;90a;100f;120f;120-virtual" scripts/build.sh octet_kernels_cuda test_kernels_gpu
  fi
  step "long tests"
  for program in build/tests/test_*; do
    if [ -f "$program" ] && [ -x "$program" ]; then check "$(basename "$program") [.long]" "$program" "[.long]"; fi
  done
  step "fuzzing, one minute a parser"
  for program in build-asan/tests/fuzz_*; do
    name=$(basename "$program")
    if [ -f "$program" ] && [ -x "$program" ]; then check "$name" "$program" 60 "tests/fuzz/seeds/${name#fuzz_}"; fi
  done
  step "build and tests without oneDNN"
  OCTET_BUILD=build-own OCTET_CMAKE_ARGS="-DOCTET_ONEDNN=OFF" scripts/build.sh all
  run_tests build-own
fi

step "summary"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
