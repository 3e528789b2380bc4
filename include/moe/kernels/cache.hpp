// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The caches for which products are blocked, and how they are filled.
#pragma once

#include <atomic>
#include <cstddef>

#include "moe/core/config.hpp"
#include "moe/kernels/target.hpp"

#if MOE_ARCH_X86_64
#include <cpuid.h>
#elif defined(__linux__)
#include <unistd.h>
#endif

namespace moe::inline MOE_ABI::kernels {

/// What the processor tells of its cache of this level, 2 or 3, in bytes; 0 where it does not.
inline std::ptrdiff_t told_cache(unsigned level) noexcept {
#if MOE_ARCH_X86_64
  // Intel's leaf, then AMD's: one subleaf for each cache.
  constexpr unsigned leaves[] = {4U, 0x8000001dU};
  for (const unsigned leaf : leaves) {
    for (unsigned i = 0; i < 8; ++i) {
      unsigned a = 0;
      unsigned b = 0;
      unsigned c = 0;
      unsigned d = 0;
      if (__get_cpuid_count(leaf, i, &a, &b, &c, &d) == 0 || (a & 31U) == 0) break;
      const bool holds_data = (a & 31U) != 2;
      if (!holds_data || ((a >> 5U) & 7U) != level) continue;
      const auto ways = static_cast<std::ptrdiff_t>(b >> 22U) + 1;
      const auto partitions = static_cast<std::ptrdiff_t>((b >> 12U) & 1023U) + 1;
      const auto line = static_cast<std::ptrdiff_t>(b & 4095U) + 1;
      return ways * partitions * line * (static_cast<std::ptrdiff_t>(c) + 1);
    }
  }
#elif defined(_SC_LEVEL3_CACHE_SIZE)
  return static_cast<std::ptrdiff_t>(
      ::sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE));
#endif
  static_cast<void>(level);
  return 0;
}

/// The second-level cache, within what processors have: 256 KiB to 4 MiB; 1 MiB where nothing is
/// told. Asked once.
inline std::ptrdiff_t second_level_cache() noexcept {
  static const std::ptrdiff_t bytes = [] {
    constexpr std::ptrdiff_t kib = 1024;
    const std::ptrdiff_t told = told_cache(2);
    if (told <= 0) return 1024 * kib;
    return told < 256 * kib ? 256 * kib : told > 4096 * kib ? 4096 * kib : told;
  }();
  return bytes;
}

/// The third-level cache; 32 MiB where nothing is told. Asked once; tests set it.
inline std::atomic<std::ptrdiff_t>& third_level_choice() noexcept {
  static std::atomic<std::ptrdiff_t> choice = [] {
    const std::ptrdiff_t told = told_cache(3);
    return told > 0 ? told : std::ptrdiff_t{32} << 20;
  }();
  return choice;
}
inline std::ptrdiff_t third_level_cache() noexcept {
  return third_level_choice().load(std::memory_order_relaxed);
}

/// Whether a core reads memory faster as several streams than as one: Intel's do, by 1.3 (4th and
/// 5th generation of Xeon); AMD's (4th and 5th generation of Zen) are as fast with one, and slower
/// with several short ones. Tiles of integer products (see integer_tile_rows) and the panels that a
/// row of widened products meets follow it, too. Tests set it.
inline std::atomic<bool>& stream_choice() noexcept {
  static std::atomic<bool> choice = [] {
#if MOE_ARCH_X86_64
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    return __get_cpuid(0, &a, &b, &c, &d) != 0 && b == signature_INTEL_ebx &&
           c == signature_INTEL_ecx && d == signature_INTEL_edx;
#else
    return false;
#endif
  }();
  return choice;
}
inline bool fetches_in_streams() noexcept {
  return stream_choice().load(std::memory_order_relaxed);
}

}  // namespace moe::inline MOE_ABI::kernels
