#!/usr/bin/env bash
# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# Builds and runs the benchmarks. Arguments go to Google Benchmark
# (benchmarks/run.sh --benchmark_filter=forward/olmoe). Only its output is on stdout.
set -euo pipefail
# shellcheck source=cmake/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
moe_need_build libbenchmark-dev
moe_build benchmarks moe_benchmarks -DCMAKE_CXX_FLAGS="-O2 -DNDEBUG" -DMOE_BUILD_TESTS=OFF \
  -DMOE_BUILD_EXAMPLES=OFF
exec "$MOE_BUILD/benchmarks/benchmarks/moe_benchmarks" "$@"
