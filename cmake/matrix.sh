#!/usr/bin/env bash
# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# The slow matrix, by hand before a release: all tests with both compilers at -O0 and -O3, under
# every sanitizer, at every level of instructions, on other processors, and the linter. Takes about
# two hours on two cores. Arguments select steps by name (cmake/matrix.sh tsan lint). Each header and
# each source is compiled by itself once with each compiler.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. cmake/setup.sh
steps=("$@")
report=()

# run STEP FLAGS COMMAND... : one step, if it was asked for; the report tells how long it took.
run() {
  local step=$1 start=$SECONDS
  shift
  [ ${#steps[@]} -eq 0 ] || [[ " ${steps[*]} " = *" $step "* ]] || return 0
  printf '\n== %s\n' "$step"
  "$@" || moe_stop "$step failed"
  report+=("$step: passed in $((SECONDS - start)) s")
}

# tests NAME COMPILER FLAGS CMAKE_ARGUMENT...
tests() {
  local name=$1 compiler=$2 flags=$3
  shift 3
  CXX=$compiler CXXFLAGS=$flags MOE_BUILD_NAME=$name MOE_CMAKE_ARGS="${*:--DMOE_SANITIZE=}" \
    tests/run.sh
}

# separate NAME COMPILER FLAGS
separate() {
  MOE_SEPARATE=1 tests "$@"
}

# With the benchmarks, so that clang builds everything somewhere.
clang_O3() {
  moe_need libbenchmark-dev
  tests clang-O3 clang++ -O3 -DMOE_BUILD_BENCHMARKS=ON
}

# The sanitizers' runtime, which clang's package only recommends.
clang_runtime() {
  moe_need clang libomp-dev
  moe_need "libclang-rt-$(clang++ -dumpversion | cut -d. -f1)-dev"
}

# LLVM's OpenMP runtime keeps what it took for its threads.
asan_clang() {
  clang_runtime
  mkdir -p "$MOE_BUILD"
  echo "leak:libomp.so" >"$MOE_BUILD/leaks"
  LSAN_OPTIONS="suppressions=$MOE_BUILD/leaks:print_suppressions=0" \
    tests asan-clang clang++ -O0 -DMOE_SANITIZE=address,undefined
}

# OpenMP's barriers are invisible to ThreadSanitizer, unless LLVM's runtime tells it of them.
tsan() {
  clang_runtime
  local archer
  archer=$(find /usr/lib/llvm-*/lib -name libarcher.so | sort | tail -n 1)
  [ -n "$archer" ] || moe_stop "libomp's libarcher.so is missing"
  OMP_TOOL_LIBRARIES=$archer TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1" \
    tests tsan clang++ "-O0 -g" -DMOE_SANITIZE=thread
}

# isa LEVEL : all tests at a lower level than the machine has.
isa() {
  MOE_ISA=$1 tests release-g++ g++ -O2
}

# emulated CPU LEVEL HIGHER : kernels, reference data and a program of mixed flags on an older
# processor. An emulator that lacks the level is refused, and so is a level that it must not have.
emulated() {
  moe_need qemu-user
  tests release-g++ g++ -O2 || return 1
  local program
  for program in test_kernels conformance build/mixed_flags; do
    OMP_NUM_THREADS=2 qemu-x86_64 -cpu "$1" "$MOE_BUILD/release-g++/tests/$program" || return 1
  done
  program=$MOE_BUILD/release-g++/tests/build/mixed_flags
  MOE_ISA=$2 qemu-x86_64 -cpu "$1" "$program" || return 1
  if MOE_ISA=$3 qemu-x86_64 -cpu "$1" "$program"; then return 1; fi
}

# The same cross-compiled for AArch64. GoogleTest is built from its sources, the other libraries are
# headers.
aarch64() {
  moe_need qemu-user g++-aarch64-linux-gnu libgtest-dev libeigen3-dev nlohmann-json3-dev
  local dir=$MOE_BUILD/aarch64 gtest=/usr/src/googletest/googletest
  mkdir -p "$dir/include"
  ln -sfn /usr/include/nlohmann "$dir/include/nlohmann"
  local compile=(aarch64-linux-gnu-g++ -std=c++20 -O2 -static -fopenmp -Wall -Wextra -Wpedantic
    -Wconversion -Wshadow -Werror -Iinclude -Itests -isystem /usr/include/eigen3
    -isystem "$dir/include" "-DMOE_TEST_DATA=\"$MOE_ROOT/tests/data\"")
  "${compile[@]}" -isystem $gtest/include -isystem $gtest tests/kernels/*_test.cpp \
    $gtest/src/gtest-all.cc $gtest/src/gtest_main.cc -o "$dir/test_kernels" &&
    "${compile[@]}" tests/conformance/{main,run_case,run_in_double,run_in_float}.cpp \
      -o "$dir/conformance" || return 1
  # A program with features that the region of a level lacks.
  "${compile[@]}" -march=armv8-a+crypto -isystem $gtest/include -c tests/kernels/coded_test.cpp \
    -o "$dir/coded_test.o" || return 1
  local program
  for program in test_kernels conformance; do
    OMP_NUM_THREADS=2 qemu-aarch64 "$dir/$program" || return 1
  done
}

lint() {
  moe_need clang-tidy
  CXX=clang++ moe_need_build nlohmann-json3-dev libcli11-dev libgtest-dev
  cmake -S . -B "$MOE_BUILD/lint" -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DMOE_BUILD_BENCHMARKS=OFF \
    -DCMAKE_EXPORT_COMPILE_COMMANDS=ON || return 1
  git ls-files 'examples/*.cpp' 'tests/conformance/*.cpp' |
    xargs -P "$(nproc)" -n 1 clang-tidy -p "$MOE_BUILD/lint" --quiet --warnings-as-errors='*'
}

run g++-O0 separate g++-O0 g++ -O0
run g++-O3 tests g++-O3 g++ -O3
run clang-O0 separate clang-O0 clang++ -O0
run clang-O3 clang_O3
run asan-clang asan_clang
run tsan tsan
run isa-scalar isa scalar
run isa-avx2 isa avx2
run isa-avx512 isa avx512
run haswell emulated Haswell avx2 avx512
run nehalem emulated Nehalem scalar avx2
run aarch64 aarch64
run lint lint
printf '\n'
printf '%s\n' "${report[@]}"
