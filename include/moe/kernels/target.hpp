// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Regions of code that is compiled for more than the program's baseline.
#pragma once

#include "moe/core/config.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#define MOE_ARCH_X86_64 1
#else
#define MOE_ARCH_X86_64 0
#endif
#if defined(__aarch64__)
#define MOE_ARCH_AARCH64 1
#else
#define MOE_ARCH_AARCH64 0
#endif
// Whether there is code with AArch64's dot products: clang has their intrinsics in a region of
// higher target from version 16 on.
#if MOE_ARCH_AARCH64 && \
    (defined(__ARM_FEATURE_DOTPROD) || !defined(__clang__) || __clang_major__ >= 16)
#define MOE_ARM_DOTPROD 1
#else
#define MOE_ARM_DOTPROD 0
#endif

// Between these two, functions are compiled for the features named. Every include stands above a
// region: inline functions of other headers would be emitted for the higher level and, as the
// linker keeps one copy of each, crash on older machines. Bodies (`generic/*.inl`) are the
// exception. OpenMP pragmas stay outside, since clang does not give a region's target to their
// outlined code.
#define MOE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define MOE_TARGET_BEGIN(features) \
  MOE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define MOE_TARGET_END MOE_PRAGMA(clang attribute pop)
#define MOE_UNROLL MOE_PRAGMA(clang loop unroll(full))
#define MOE_UNROLL_8 MOE_PRAGMA(clang loop unroll_count(8))
#else
#define MOE_TARGET_BEGIN(features) MOE_PRAGMA(GCC push_options) MOE_PRAGMA(GCC target(features))
#define MOE_TARGET_END MOE_PRAGMA(GCC pop_options)
#define MOE_UNROLL MOE_PRAGMA(GCC unroll 32)
#define MOE_UNROLL_8 MOE_PRAGMA(GCC unroll 8)
#endif
