// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// AVX-512: 16 lanes, tiles of up to 14 rows: 28 accumulators, a panel's two vectors and one row's
// value fill 31 of the 32 registers.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/numeric.hpp"
#include "moe/kernels/kernel_table.hpp"
#include "moe/kernels/target.hpp"

#if MOE_ARCH_X86_64
#include <immintrin.h>
#include <type_traits>

MOE_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
namespace moe::inline MOE_ABI::kernels::avx512 {

using Scalar = float;

/// Masks of all lanes, where the plain intrinsic would set off a false warning of g++ 12 in the
/// user's build (-Wmaybe-uninitialized); the compilers drop them.
inline constexpr __mmask16 all = 0xffff;

struct Vec {
  static constexpr std::ptrdiff_t lanes = 16;
  __m512 value;

  static MOE_ALWAYS_INLINE Vec zero() noexcept { return {_mm512_setzero_ps()}; }
  static MOE_ALWAYS_INLINE Vec broadcast(float x) noexcept { return {_mm512_set1_ps(x)}; }
  static MOE_ALWAYS_INLINE Vec load(const float* p) noexcept { return {_mm512_loadu_ps(p)}; }
  static MOE_ALWAYS_INLINE Vec load(const bfloat16* p) noexcept {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m512i wide = _mm512_maskz_cvtepu16_epi32(all, bits);
    return {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(all, wide, 16))};
  }
  static MOE_ALWAYS_INLINE Vec load(const half* p) noexcept {
    return {_mm512_maskz_cvtph_ps(all, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  /// Past the caches, to a whole line; `end_stream` before another thread reads it.
  MOE_ALWAYS_INLINE void stream(float* p) const noexcept { _mm512_stream_ps(p, value); }
  static MOE_ALWAYS_INLINE void end_stream() noexcept { _mm_sfence(); }
  MOE_ALWAYS_INLINE void store(float* p) const noexcept { _mm512_storeu_ps(p, value); }
};

MOE_ALWAYS_INLINE Vec add(Vec a, Vec b) noexcept {
  return {_mm512_add_ps(a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec subtract(Vec a, Vec b) noexcept {
  return {_mm512_sub_ps(a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec divide(Vec a, Vec b) noexcept {
  return {_mm512_div_ps(a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec multiply_add(Vec a, Vec b, Vec c) noexcept {
  return {_mm512_fmadd_ps(a.value, b.value, c.value)};
}
/// a is read by the instruction itself, of which compilers would make a broadcast for all uses.
MOE_ALWAYS_INLINE Vec multiply_add(const float* a, Vec b, Vec c) noexcept {
  __asm__("{vfmadd231ps %2%{1to16%}, %1, %0|vfmadd231ps %0, %1, %2%{1to16%}}"
          : "+v"(c.value)
          : "v"(b.value), "m"(*a));
  return c;
}
/// Kept apart from an add that follows: compilers fuse even two intrinsics.
MOE_ALWAYS_INLINE Vec multiply(Vec a, Vec b) noexcept {
  __m512 product = _mm512_mul_ps(a.value, b.value);
  __asm__("" : "+v"(product));
  return {product};
}
/// a > b ? a : b, so that b wins where one is NaN.
MOE_ALWAYS_INLINE Vec maximum(Vec a, Vec b) noexcept {
  return {_mm512_maskz_max_ps(all, a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec minimum(Vec a, Vec b) noexcept {
  return {_mm512_maskz_min_ps(all, a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec absolute(Vec a) noexcept {
  return {_mm512_abs_ps(a.value)};
}
/// a < b ? x : y.
MOE_ALWAYS_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) noexcept {
  const __mmask16 less = _mm512_cmp_ps_mask(a.value, b.value, _CMP_LT_OQ);
  return {_mm512_mask_blend_ps(less, y.value, x.value)};
}
MOE_ALWAYS_INLINE bool any_above(Vec a, Vec b) noexcept {
  return _mm512_cmp_ps_mask(a.value, b.value, _CMP_GT_OQ) != 0;
}
/// 2^n, where n + 1.5 * 2^23 is given.
MOE_ALWAYS_INLINE Vec power_of_two(Vec biased_n) noexcept {
  const __m512i exponent = _mm512_maskz_slli_epi32(all, _mm512_castps_si512(biased_n.value), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23)))};
}

/// Of each 128 bits, the first or the second pair of a, then of b.
MOE_ALWAYS_INLINE __m512 join_pairs(__m512 a, __m512 b, bool second) noexcept {
  const __m512d x = _mm512_castps_pd(a);
  const __m512d y = _mm512_castps_pd(b);
  return _mm512_castpd_ps(second ? _mm512_maskz_unpackhi_pd(0xff, x, y)
                                 : _mm512_maskz_unpacklo_pd(0xff, x, y));
}

/// Turns rows into columns.
MOE_ALWAYS_INLINE void transpose(Vec (&m)[16]) noexcept {
  __m512 pairs[16];
  MOE_UNROLL
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_maskz_unpacklo_ps(all, m[i].value, m[i + 1].value);
    pairs[i + 1] = _mm512_maskz_unpackhi_ps(all, m[i].value, m[i + 1].value);
  }
  // fours[4 j + i] has columns i, 4 + i, 8 + i and 12 + i of rows 4 j .. 4 j + 3.
  __m512 fours[16];
  MOE_UNROLL
  for (int j = 0; j < 16; j += 4) {
    fours[j] = join_pairs(pairs[j], pairs[j + 2], false);
    fours[j + 1] = join_pairs(pairs[j], pairs[j + 2], true);
    fours[j + 2] = join_pairs(pairs[j + 1], pairs[j + 3], false);
    fours[j + 3] = join_pairs(pairs[j + 1], pairs[j + 3], true);
  }
  MOE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_maskz_shuffle_f32x4(all, fours[i], fours[4 + i], 0x88);
    const __m512 b = _mm512_maskz_shuffle_f32x4(all, fours[8 + i], fours[12 + i], 0x88);
    const __m512 c = _mm512_maskz_shuffle_f32x4(all, fours[i], fours[4 + i], 0xdd);
    const __m512 d = _mm512_maskz_shuffle_f32x4(all, fours[8 + i], fours[12 + i], 0xdd);
    m[i].value = _mm512_maskz_shuffle_f32x4(all, a, b, 0x88);
    m[8 + i].value = _mm512_maskz_shuffle_f32x4(all, a, b, 0xdd);
    m[4 + i].value = _mm512_maskz_shuffle_f32x4(all, c, d, 0x88);
    m[12 + i].value = _mm512_maskz_shuffle_f32x4(all, c, d, 0xdd);
  }
}

inline constexpr float infinity = __builtin_inff();
inline constexpr float lowest = -3.40282347e+38F;
inline constexpr float second_lowest = -3.40282326e+38F;
inline constexpr int most_rows = most_tile_rows;
inline constexpr int side_sums = 28;  // As the tile of 14 rows has.

constexpr std::ptrdiff_t pass_width(int /*rows*/) noexcept {
  return panel_width;
}

/// Where a core's other thread computes, too, each of them decodes three instructions a cycle, and
/// a tile of 14 rows, 28 multiply-adds in 14 cycles, had 14 broadcasts among 50. A multiply-add
/// that reads its factor itself is one instruction, but one load for each of its vectors, of which
/// there are two a cycle: all but four rows leave room for the panel's and for requests. Beside a
/// busy neighbour that gave 0.97 of what registers alone did, 7 or all 14 rows 0.96 and 0.94,
/// broadcasts only 0.88; without one, nothing. A single vector is better off without broadcasts.
constexpr int memory_factors(int rows, int vectors) noexcept {
  return vectors == 1 ? rows : rows > 4 ? rows - 4 : 0;
}

template <class Storage>
inline constexpr bool widens_in_pairs = std::is_same_v<Storage, bfloat16>;

/// Widens 2 * lanes numbers where they lie: a shift gives those at even places, a mask those at odd
/// ones.
MOE_ALWAYS_INLINE void widen(const bfloat16* p, Vec& even, Vec& odd) noexcept {
  const __m512i bits = _mm512_loadu_si512(p);
  even.value = _mm512_castsi512_ps(_mm512_maskz_slli_epi32(all, bits, 16));
  odd.value = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(~0xffff)));
}
/// a and b become what `first` and `last` say of their 32 numbers.
MOE_ALWAYS_INLINE void permute(Vec& a, Vec& b, __m512i first, __m512i last) noexcept {
  const __m512 before = a.value;
  a.value = _mm512_permutex2var_ps(before, first, b.value);
  b.value = _mm512_permutex2var_ps(before, last, b.value);
}
/// Numbers at even and at odd places, in their order.
MOE_ALWAYS_INLINE void interleave(Vec& even, Vec& odd) noexcept {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  permute(even, odd, first, _mm512_add_epi32(first, _mm512_set1_epi32(8)));
}
/// The reverse.
MOE_ALWAYS_INLINE void deinterleave(Vec& first, Vec& last) noexcept {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  permute(first, last, even, _mm512_add_epi32(even, _mm512_set1_epi32(1)));
}

#include "moe/kernels/generic/accumulate.inl"
#include "moe/kernels/generic/columns.inl"
#include "moe/kernels/generic/exponential.inl"
#include "moe/kernels/generic/rows.inl"
#include "moe/kernels/generic/scores.inl"
#include "moe/kernels/generic/slopes.inl"
#include "moe/kernels/generic/tile.inl"

}  // namespace moe::inline MOE_ABI::kernels::avx512
MOE_TARGET_END
#endif
