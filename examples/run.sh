#!/usr/bin/env bash
# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# Builds the language model and runs it. Without arguments: evaluates the bundled model on the bundled
# text, then lets it write. With arguments: passes them to the program (try --help); those after
# `quantize` to the program that makes packed files.
set -euo pipefail
# shellcheck source=cmake/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
moe_need_build nlohmann-json3-dev libcli11-dev
[[ " $* " != *" --plot "* ]] || moe_need gnuplot-nox
name=language_model
[ "${1:-}" != quantize ] || name=quantize
moe_build release $name -DCMAKE_CXX_FLAGS="-O2 -DNDEBUG" -DMOE_BUILD_TESTS=OFF \
  -DMOE_BUILD_BENCHMARKS=OFF -DCMAKE_UNITY_BUILD=ON
program=$MOE_BUILD/release/examples/$name/$name
[ $name = language_model ] || shift
if [ $# -gt 0 ] || [ $name = quantize ]; then
  exec "$program" "$@"
fi
model=$MOE_ROOT/examples/data/jargon-moe.safetensors
"$program" evaluate --model "$model" --text "$MOE_ROOT/examples/data/jargon_eval.txt"
echo
"$program" generate --model "$model" --tokens 400 --context 128 --temperature 0.7 --top-p 0.95 --seed 1 \
  --prompt $'hacker\n n.\n\n    '
