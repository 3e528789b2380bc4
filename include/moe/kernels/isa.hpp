// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The levels that kernels exist for, and which of them this machine can run.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/kernels/target.hpp"

#if MOE_ARCH_X86_64
#include <cpuid.h>
#elif MOE_ARCH_AARCH64 && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace moe::inline MOE_ABI {

/// A level of vector instructions, lowest first.
enum class Isa {
  scalar,        ///< the baseline that the program is compiled for, one value at a time
  avx2,          ///< with FMA and F16C
  avx512,        ///< F, BW, DQ and VL
  avx512_vnni,   ///< the same with eight-bit dot products
  neon,          ///< the baseline of AArch64
  neon_dotprod,  ///< the same with eight-bit dot products
};

inline constexpr std::array<std::string_view, 6> isa_names{"scalar",      "avx2", "avx512",
                                                           "avx512_vnni", "neon", "neon_dotprod"};

inline std::string_view isa_name(Isa isa) noexcept {
  return isa_names[static_cast<std::size_t>(isa)];
}

/// Levels that this machine and its operating system can run, lowest first.
inline std::vector<Isa> available_isas() {
  std::vector<Isa> levels{Isa::scalar};
#if MOE_ARCH_X86_64
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return levels;
  constexpr unsigned fma = 1U << 12;
  constexpr unsigned saves_state = 1U << 27;
  constexpr unsigned avx = 1U << 28;
  constexpr unsigned f16c = 1U << 29;
  constexpr unsigned needed = fma | saves_state | avx | f16c;
  if ((c & needed) != needed) return levels;
  // Which registers the operating system saves: 0x6 for the 256-bit ones, 0xe0 for AVX-512's.
  unsigned low = 0;
  unsigned high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 0x6U) != 0x6U) return levels;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (b & (1U << 5)) == 0) return levels;
  levels.push_back(Isa::avx2);
  constexpr unsigned avx512 = (1U << 16) | (1U << 17) | (1U << 30) | (1U << 31);
  if ((low & 0xe0U) != 0xe0U || (b & avx512) != avx512) return levels;
  levels.push_back(Isa::avx512);
  if ((c & (1U << 11)) != 0) levels.push_back(Isa::avx512_vnni);
#elif MOE_ARCH_AARCH64
  levels.push_back(Isa::neon);
#if MOE_ARM_DOTPROD
#if defined(__ARM_FEATURE_DOTPROD)
  levels.push_back(Isa::neon_dotprod);
#elif defined(__linux__)
  constexpr unsigned long dotprod = 1UL << 20;  // HWCAP_ASIMDDP
  if ((getauxval(AT_HWCAP) & dotprod) != 0) levels.push_back(Isa::neon_dotprod);
#endif
#endif
#endif
  return levels;
}

namespace detail {

/// The level of that name.
///
/// Throws  std::invalid_argument if there is none, or this machine cannot run it.
inline Isa isa_of(std::string_view name) {
  std::string known;
  for (const Isa isa : available_isas()) {
    if (isa_name(isa) == name) return isa;
    known += known.empty() ? "" : ", ";
    known += isa_name(isa);
  }
  throw_invalid("MOE_ISA",
                text_of("'", name, "' is not a level of this machine, which has ", known));
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
