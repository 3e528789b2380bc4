#!/usr/bin/env bash
# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# Builds and runs one experiment: examples/experiments/run.sh NAME [--out FOLDER] [--threads N]
# [--steps N]. The names are those of the sources here; specialisation trains nothing and has no
# steps. Writes table.md and pictures to the folder.
set -euo pipefail
# shellcheck source=cmake/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../cmake/setup.sh"
name=${1:-}
[ -e "$MOE_ROOT/examples/experiments/$name.cpp" ] && [ "$name" != experiment ] ||
  moe_stop "give one of collapse, dropping, granularity, sparse_against_dense, specialisation"
shift
moe_need_build nlohmann-json3-dev libcli11-dev
moe_need gnuplot-nox
moe_build release "experiment_$name" -DCMAKE_CXX_FLAGS="-O2 -DNDEBUG" -DMOE_BUILD_TESTS=OFF \
  -DMOE_BUILD_BENCHMARKS=OFF -DCMAKE_UNITY_BUILD=ON
exec "$MOE_BUILD/release/examples/experiments/experiment_$name" "$@"
