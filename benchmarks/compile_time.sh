#!/usr/bin/env bash
# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# How long a file takes to compile that includes <moe/moe.hpp> and uses a layer, against one that
# includes <Eigen/Dense> and multiplies two matrices: processor time at -O2, medians of 5 in turn.
# Then the same for a file that leaves its layer to moe/instances.cpp.
set -euo pipefail
# shellcheck source=cmake/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
moe_need_build
work=$MOE_BUILD/compile_time
mkdir -p "$work"
cat >"$work/eigen.cpp" <<'END'
#include <Eigen/Dense>
int main() {
  const Eigen::MatrixXf a = Eigen::MatrixXf::Random(64, 64);
  const Eigen::MatrixXf c = a * a;
  return c(0, 0) > 0 ? 0 : 1;
}
END
cp "$MOE_ROOT/examples/01_quick_start.cpp" "$work/moe.cpp"
TIMEFORMAT=%U
names=(eigen moe moe_of_instances)
for name in "${names[@]}"; do : >"$work/$name.s"; done
for _ in 1 2 3 4 5; do
  for name in "${names[@]}"; do
    flags=()
    [ "$name" != moe_of_instances ] || flags=(-DMOE_EXTERN_INSTANCES)
    { time "${CXX:-g++}" -std=c++20 -O2 -fopenmp "${flags[@]}" -I "$MOE_ROOT/include" \
      -isystem /usr/include/eigen3 -c "$work/${name%_of_instances}.cpp" -o "$work/$name.o"; } \
      2>>"$work/$name.s"
  done
done
{ time "${CXX:-g++}" -std=c++20 -O2 -fopenmp -DMOE_EXTERN_INSTANCES -I "$MOE_ROOT/include" \
  -isystem /usr/include/eigen3 -c "$MOE_ROOT/include/moe/instances.cpp" \
  -o "$work/instances.o"; } 2>"$work/instances.s"
median() { sort -g "$work/$1.s" | sed -n 3p; }
awk -v e="$(median eigen)" -v m="$(median moe)" -v i="$(median moe_of_instances)" \
  -v once="$(cat "$work/instances.s")" 'BEGIN {
  printf "Eigen: %.2f s, moe: %.2f s, ratio %.2f\n", e, m, m / e
  printf "moe with its layer in moe/instances.cpp: %.2f s, ratio %.2f\n", i, i / e
  printf "moe/instances.cpp: %.1f s, once\n", once }'
