#!/usr/bin/env bash
# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# Builds and runs all tests. Arguments go to ctest (tests/run.sh -R conformance).
# CXX, MOE_BUILD_NAME and MOE_CMAKE_ARGS (split at blanks) select another compiler, build folder
# and configuration; without, kernels have -O2 and the tests' own sources -O1. Several sources are
# compiled as one, which takes half the time; MOE_SEPARATE=1 compiles each by itself, and each
# header, too.
set -euo pipefail
# shellcheck source=cmake/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
moe_need_build nlohmann-json3-dev libcli11-dev libgtest-dev
# A relative folder means the caller's.
[ -z "${MOE_CONFORMANCE_DIR:-}" ] || MOE_CONFORMANCE_DIR=$(realpath -- "$MOE_CONFORMANCE_DIR")
export MOE_CONFORMANCE_DIR=${MOE_CONFORMANCE_DIR:-}
name=${MOE_BUILD_NAME:-tests}
read -ra extra <<<"${MOE_CMAKE_ARGS:--DCMAKE_CXX_FLAGS=-O2 -DMOE_QUICK_TESTS=ON}"
targets=all
unity=(-DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=16)
if [ -n "${MOE_SEPARATE:-}" ]; then
  targets="all all_verify_interface_header_sets"
  unity=(-DCMAKE_UNITY_BUILD=OFF)
fi
moe_build "$name" "$targets" -DMOE_BUILD_BENCHMARKS=OFF "${unity[@]}" "${extra[@]}"
# The names of tests depend on MOE_ISA, and CMake looks for new ones only where a program is newer.
find "$MOE_BUILD/$name/tests" -name '*_tests.cmake' -delete
# What the reference cases gave is shown when they pass, too.
ctest --test-dir "$MOE_BUILD/$name" --output-on-failure -j "$(nproc)" "$@" |
  while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in
      *"Test "*": conformance "*Passed*) cat "$MOE_BUILD/$name/tests/conformance.log" ;;
    esac
  done
