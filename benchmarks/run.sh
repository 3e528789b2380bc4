#!/usr/bin/env bash
# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# Builds and runs the benchmarks. Arguments go to Google Benchmark
# (benchmarks/run.sh --benchmark_filter=forward/olmoe). With --table, the libraries to compare with
# are installed, too, and the README's table is printed; ggml takes part where CMake finds it,
# onnxruntime where MOE_ONNXRUNTIME names its folder. Only the program's output is on stdout.
set -euo pipefail
# shellcheck source=cmake/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
moe_need_build libbenchmark-dev nlohmann-json3-dev
peers=OFF
name=benchmarks
if [[ " $* " = *" --table "* ]]; then
  moe_need libopenblas-openmp-dev libdnnl-dev libtorch-dev
  peers=ON
  name=table
  # OpenBLAS 0.3.21 knows Intel's processors by their numbers and gives newer ones kernels without
  # AVX, which take three to six times as long; libtorch multiplies with it, too.
  if grep -q GenuineIntel /proc/cpuinfo && grep -q avx512f /proc/cpuinfo; then
    export OPENBLAS_CORETYPE=${OPENBLAS_CORETYPE:-SkylakeX}
  fi
fi
moe_build $name moe_benchmarks -DCMAKE_CXX_FLAGS="-O2 -DNDEBUG" -DMOE_BUILD_TESTS=OFF \
  -DMOE_BUILD_EXAMPLES=OFF -DMOE_BENCHMARK_PEERS=$peers -DMOE_ONNXRUNTIME="${MOE_ONNXRUNTIME:-}"
exec "$MOE_BUILD/$name/benchmarks/moe_benchmarks" "$@"
