#!/usr/bin/env bash
# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# The parsers under libFuzzer with Address- and UndefinedBehaviorSanitizer, ten minutes each, all at
# the same time: cmake/fuzz.sh [SECONDS [PARSER...]]. By hand. What reaches most is kept in
# tests/data/corpus, whose files are tests. Status 1 if one fails; the input is kept in the build's
# fuzz/failed, and tried again first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. cmake/setup.sh
moe_need clang libomp-dev
moe_need "libclang-rt-$(clang++ -dumpversion | cut -d. -f1)-dev" libeigen3-dev nlohmann-json3-dev
seconds=${1:-600}
parsers=("${@:2}")
[ ${#parsers[@]} -gt 0 ] || parsers=(safetensors index gguf packed checkpoint)
fuzz=$MOE_BUILD/fuzz
mkdir -p "$fuzz" tests/data/corpus
compile=(clang++ -std=c++20 -O1 -g -fopenmp -fno-omit-frame-pointer -Iinclude -Itests
  -isystem /usr/include/eigen3)
"${compile[@]}" -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
  tests/fuzz/fuzz.cpp -o "$fuzz/fuzz"
"${compile[@]}" tests/fuzz/corpus.cpp -o "$fuzz/corpus"

# fuzz_one PARSER
fuzz_one() {
  local dir=$fuzz/$1
  rm -rf "$dir"
  mkdir -p "$dir/found" "$dir/kept" "$fuzz/failed/$1"
  "$fuzz/corpus" seeds "$1" "$dir/found"
  [ ! -e "tests/data/corpus/$1.bin" ] || "$fuzz/corpus" unpack "tests/data/corpus/$1.bin" "$dir/found"
  # Threads of its own for each parser would be more than there are cores.
  export MOE_FUZZ=$1 OMP_NUM_THREADS=1
  "$fuzz/fuzz" -max_total_time="$seconds" -max_len=20000 -rss_limit_mb=2000 -timeout=20 \
    -print_final_stats=1 -artifact_prefix="$fuzz/failed/$1/" "$dir/found" "$fuzz/failed/$1" >"$dir/log" 2>&1 || return 1
  "$fuzz/fuzz" -merge=1 -max_len=20000 "$dir/kept" "$dir/found" "$fuzz/failed/$1" >>"$dir/log" 2>&1
  "$fuzz/corpus" pack "$dir/kept" "tests/data/corpus/$1.bin"
}

pids=()
for parser in "${parsers[@]}"; do
  fuzz_one "$parser" &
  pids+=($!)
done
failed=0
for i in "${!parsers[@]}"; do
  if wait "${pids[$i]}"; then
    echo "${parsers[$i]}: $(grep number_of_executed_units "$fuzz/${parsers[$i]}/log" | grep -o '[0-9]*') runs"
  else
    echo "${parsers[$i]}: failed, see $fuzz/${parsers[$i]}/log and $fuzz/failed/${parsers[$i]}"
    failed=1
  fi
done
exit $failed
