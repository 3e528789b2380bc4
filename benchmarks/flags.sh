#!/usr/bin/env bash
# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# The same program with plain -O2 and with -O3 -march=native: 15 runs of each in turn, the medians
# and their ratio. Fails where plain -O2 is more than 5 % slower.
set -euo pipefail
# shellcheck source=cmake/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
moe_need_build
work=$MOE_BUILD/flags
mkdir -p "$work"
compile() {
  "${CXX:-g++}" -std=c++20 -fopenmp -I "$MOE_ROOT/include" -isystem /usr/include/eigen3 \
    "$MOE_ROOT/benchmarks/flags/forward.cpp" "$@"
}
compile -O2 -o "$work/plain"
compile -O3 -march=native -o "$work/native"
: >"$work/plain.ms" && : >"$work/native.ms"
for _ in $(seq 15); do
  "$work/plain" >>"$work/plain.ms"
  "$work/native" >>"$work/native.ms"
done
median() { sort -g "$1" | sed -n 8p; }
plain=$(median "$work/plain.ms")
native=$(median "$work/native.ms")
awk -v p="$plain" -v n="$native" 'BEGIN {
  printf "-O2: %.1f ms, -O3 -march=native: %.1f ms, ratio %.3f\n", p, n, p / n
  exit p / n > 1.05
}'
