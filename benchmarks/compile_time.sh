#!/usr/bin/env bash
# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# How long a file takes to compile that includes <moe/moe.hpp> and uses a layer, against one that
# includes <Eigen/Dense> and multiplies two matrices: processor time at -O2, medians of 5 in turn.
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
: >"$work/eigen.s" && : >"$work/moe.s"
for _ in 1 2 3 4 5; do
  for file in eigen moe; do
    { time "${CXX:-g++}" -std=c++20 -O2 -fopenmp -I "$MOE_ROOT/include" \
      -isystem /usr/include/eigen3 -c "$work/$file.cpp" -o "$work/$file.o"; } 2>>"$work/$file.s"
  done
done
median() { sort -g "$1" | sed -n 3p; }
awk -v e="$(median "$work/eigen.s")" -v m="$(median "$work/moe.s")" \
  'BEGIN { printf "Eigen: %.2f s, moe: %.2f s, ratio %.2f\n", e, m, m / e }'
