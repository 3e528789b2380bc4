// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Version, inline ABI namespace and attributes. Everything in `moe` lives in `moe::inline MOE_ABI`,
// so that translation units that differ in AVX, AVX2, FMA, AVX-512 or OpenMP get different symbols
// instead of each other's code.
#pragma once

// The one place where the version is written; CMake reads it from here.
#define MOE_VERSION_MAJOR 0
#define MOE_VERSION_MINOR 1
#define MOE_VERSION_PATCH 0

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "moe: NaN and infinity have defined results here, so -ffast-math is unsupported"
#endif

#if defined(__AVX512F__)
#define MOE_BASELINE avx512
#elif defined(__AVX2__) && defined(__FMA__)
#define MOE_BASELINE avx2_fma
#elif defined(__AVX2__)
#define MOE_BASELINE avx2
#elif defined(__AVX__)
#define MOE_BASELINE avx
#elif defined(__FMA__)
#define MOE_BASELINE fma
#else
#define MOE_BASELINE generic
#endif

#if defined(_OPENMP)
#define MOE_THREADING omp
#else
#define MOE_THREADING serial
#endif

#define MOE_PASTE_EXPANDED(major, minor, baseline, threading) \
  v##major##_##minor##_##baseline##_##threading
#define MOE_PASTE(major, minor, baseline, threading) \
  MOE_PASTE_EXPANDED(major, minor, baseline, threading)
#define MOE_ABI MOE_PASTE(MOE_VERSION_MAJOR, MOE_VERSION_MINOR, MOE_BASELINE, MOE_THREADING)

#if defined(__GNUC__)
#define MOE_COLD __attribute__((cold, noinline))
#define MOE_ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define MOE_COLD
#define MOE_ALWAYS_INLINE inline
#endif
