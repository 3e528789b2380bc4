// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// AVX2 with FMA and F16C: 8 lanes, tiles of up to 6 rows. With 16 registers, a tile of 4 to 6 rows
// takes half a panel in each of two passes; up to 3 rows take it whole, so that weights are read in
// the order in which they lie.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/numeric.hpp"
#include "moe/kernels/kernel_table.hpp"
#include "moe/kernels/target.hpp"

#if MOE_ARCH_X86_64
#include <immintrin.h>
#include <type_traits>

MOE_TARGET_BEGIN("avx2,fma,f16c")
namespace moe::inline MOE_ABI::kernels::avx2 {

using Scalar = float;

struct Vec {
  static constexpr std::ptrdiff_t lanes = 8;
  __m256 value;

  static MOE_ALWAYS_INLINE Vec zero() noexcept { return {_mm256_setzero_ps()}; }
  static MOE_ALWAYS_INLINE Vec broadcast(float x) noexcept { return {_mm256_set1_ps(x)}; }
  static MOE_ALWAYS_INLINE Vec load(const float* p) noexcept { return {_mm256_loadu_ps(p)}; }
  static MOE_ALWAYS_INLINE Vec load(const bfloat16* p) noexcept {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static MOE_ALWAYS_INLINE Vec load(const half* p) noexcept {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  /// Past the caches, to an aligned place; `end_stream` before another thread reads it.
  MOE_ALWAYS_INLINE void stream(float* p) const noexcept { _mm256_stream_ps(p, value); }
  static MOE_ALWAYS_INLINE void end_stream() noexcept { _mm_sfence(); }
  MOE_ALWAYS_INLINE void store(float* p) const noexcept { _mm256_storeu_ps(p, value); }
};

MOE_ALWAYS_INLINE Vec add(Vec a, Vec b) noexcept {
  return {_mm256_add_ps(a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec subtract(Vec a, Vec b) noexcept {
  return {_mm256_sub_ps(a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec divide(Vec a, Vec b) noexcept {
  return {_mm256_div_ps(a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec multiply_add(Vec a, Vec b, Vec c) noexcept {
  return {_mm256_fmadd_ps(a.value, b.value, c.value)};
}
/// Kept apart from an add that follows: compilers fuse even two intrinsics.
MOE_ALWAYS_INLINE Vec multiply(Vec a, Vec b) noexcept {
  __m256 product = _mm256_mul_ps(a.value, b.value);
  __asm__("" : "+x"(product));
  return {product};
}
/// a > b ? a : b, so that b wins where one is NaN.
MOE_ALWAYS_INLINE Vec maximum(Vec a, Vec b) noexcept {
  return {_mm256_max_ps(a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec minimum(Vec a, Vec b) noexcept {
  return {_mm256_min_ps(a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec absolute(Vec a) noexcept {
  return {_mm256_andnot_ps(_mm256_set1_ps(-0.0F), a.value)};
}
/// a < b ? x : y.
MOE_ALWAYS_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) noexcept {
  return {_mm256_blendv_ps(y.value, x.value, _mm256_cmp_ps(a.value, b.value, _CMP_LT_OQ))};
}
MOE_ALWAYS_INLINE bool any_above(Vec a, Vec b) noexcept {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.value, b.value, _CMP_GT_OQ)) != 0;
}
/// 2^n, where n + 1.5 * 2^23 is given.
MOE_ALWAYS_INLINE Vec power_of_two(Vec biased_n) noexcept {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(biased_n.value), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)))};
}

/// Turns rows into columns.
MOE_ALWAYS_INLINE void transpose(Vec (&m)[8]) noexcept {
  __m256 fours[8];  // fours[4 j + i] has columns i and 4 + i of rows 4 j .. 4 j + 3.
  MOE_UNROLL
  for (int j = 0; j < 8; j += 4) {
    const __m256 a = _mm256_unpacklo_ps(m[j].value, m[j + 1].value);
    const __m256 b = _mm256_unpackhi_ps(m[j].value, m[j + 1].value);
    const __m256 c = _mm256_unpacklo_ps(m[j + 2].value, m[j + 3].value);
    const __m256 d = _mm256_unpackhi_ps(m[j + 2].value, m[j + 3].value);
    fours[j] = _mm256_shuffle_ps(a, c, 0x44);
    fours[j + 1] = _mm256_shuffle_ps(a, c, 0xee);
    fours[j + 2] = _mm256_shuffle_ps(b, d, 0x44);
    fours[j + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
  MOE_UNROLL
  for (int i = 0; i < 4; ++i) {
    m[i].value = _mm256_permute2f128_ps(fours[i], fours[4 + i], 0x20);
    m[4 + i].value = _mm256_permute2f128_ps(fours[i], fours[4 + i], 0x31);
  }
}

inline constexpr float infinity = __builtin_inff();
inline constexpr float lowest = -3.40282347e+38F;
inline constexpr float second_lowest = -3.40282326e+38F;
inline constexpr int most_rows = 6;
inline constexpr int side_sums = 0;  // The registers hold 3 panels of one row, not 4.

constexpr std::ptrdiff_t pass_width(int rows) noexcept {
  return rows <= 3 ? panel_width : panel_width / 2;
}
constexpr int memory_factors(int /*rows*/, int /*vectors*/) noexcept {
  return 0;
}

template <class Storage>
inline constexpr bool widens_in_pairs = std::is_same_v<Storage, bfloat16>;

/// Widens 2 * lanes numbers where they lie: a shift gives those at even places, a mask those at odd
/// ones.
MOE_ALWAYS_INLINE void widen(const bfloat16* p, Vec& even, Vec& odd) noexcept {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even.value = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  odd.value = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(~0xffff)));
}
/// Numbers at even and at odd places, in their order.
MOE_ALWAYS_INLINE void interleave(Vec& even, Vec& odd) noexcept {
  const __m256 a = _mm256_unpacklo_ps(even.value, odd.value);
  const __m256 b = _mm256_unpackhi_ps(even.value, odd.value);
  even.value = _mm256_permute2f128_ps(a, b, 0x20);
  odd.value = _mm256_permute2f128_ps(a, b, 0x31);
}
/// The reverse.
MOE_ALWAYS_INLINE void deinterleave(Vec& first, Vec& last) noexcept {
  const __m256 a = _mm256_permute2f128_ps(first.value, last.value, 0x20);
  const __m256 b = _mm256_permute2f128_ps(first.value, last.value, 0x31);
  first.value = _mm256_shuffle_ps(a, b, 0x88);
  last.value = _mm256_shuffle_ps(a, b, 0xdd);
}

#include "moe/kernels/generic/accumulate.inl"
#include "moe/kernels/generic/columns.inl"
#include "moe/kernels/generic/exponential.inl"
#include "moe/kernels/generic/rows.inl"
#include "moe/kernels/generic/scores.inl"
#include "moe/kernels/generic/slopes.inl"
#include "moe/kernels/generic/tile.inl"

}  // namespace moe::inline MOE_ABI::kernels::avx2
MOE_TARGET_END
#endif
