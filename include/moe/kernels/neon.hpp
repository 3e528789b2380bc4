// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// NEON, the baseline of AArch64: 4 lanes, tiles of up to 6 rows. Of 32 registers, up to 3 rows take
// a whole panel and 4 to 6 rows half of one in each of two passes.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/numeric.hpp"
#include "moe/kernels/kernel_table.hpp"
#include "moe/kernels/target.hpp"

#if MOE_ARCH_AARCH64
#include <arm_neon.h>
#include <type_traits>

namespace moe::inline MOE_ABI::kernels::neon {

using Scalar = float;

struct Vec {
  static constexpr std::ptrdiff_t lanes = 4;
  float32x4_t value;

  static MOE_ALWAYS_INLINE Vec zero() noexcept { return {vdupq_n_f32(0)}; }
  static MOE_ALWAYS_INLINE Vec broadcast(float x) noexcept { return {vdupq_n_f32(x)}; }
  static MOE_ALWAYS_INLINE Vec load(const float* p) noexcept { return {vld1q_f32(p)}; }
  static MOE_ALWAYS_INLINE Vec load(const bfloat16* p) noexcept {
    const uint16x4_t bits = vld1_u16(reinterpret_cast<const std::uint16_t*>(p));
    return {vreinterpretq_f32_u32(vshll_n_u16(bits, 16))};
  }
  static MOE_ALWAYS_INLINE Vec load(const half* p) noexcept {
    const uint16x4_t bits = vld1_u16(reinterpret_cast<const std::uint16_t*>(p));
    return {vcvt_f32_f16(vreinterpret_f16_u16(bits))};
  }
  MOE_ALWAYS_INLINE void store(float* p) const noexcept { vst1q_f32(p, value); }
  MOE_ALWAYS_INLINE void stream(float* p) const noexcept { store(p); }
  static MOE_ALWAYS_INLINE void end_stream() noexcept {}
};

MOE_ALWAYS_INLINE Vec add(Vec a, Vec b) noexcept {
  return {vaddq_f32(a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec subtract(Vec a, Vec b) noexcept {
  return {vsubq_f32(a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec divide(Vec a, Vec b) noexcept {
  return {vdivq_f32(a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec multiply_add(Vec a, Vec b, Vec c) noexcept {
  return {vfmaq_f32(c.value, a.value, b.value)};
}
/// Kept apart from an add that follows: compilers fuse even two intrinsics.
MOE_ALWAYS_INLINE Vec multiply(Vec a, Vec b) noexcept {
  float32x4_t product = vmulq_f32(a.value, b.value);
  __asm__("" : "+w"(product));
  return {product};
}
/// a > b ? a : b, so that b wins where one is NaN.
MOE_ALWAYS_INLINE Vec maximum(Vec a, Vec b) noexcept {
  return {vbslq_f32(vcgtq_f32(a.value, b.value), a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec minimum(Vec a, Vec b) noexcept {
  return {vbslq_f32(vcltq_f32(a.value, b.value), a.value, b.value)};
}
MOE_ALWAYS_INLINE Vec absolute(Vec a) noexcept {
  return {vabsq_f32(a.value)};
}
/// a < b ? x : y.
MOE_ALWAYS_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) noexcept {
  return {vbslq_f32(vcltq_f32(a.value, b.value), x.value, y.value)};
}
MOE_ALWAYS_INLINE bool any_above(Vec a, Vec b) noexcept {
  return vmaxvq_u32(vcgtq_f32(a.value, b.value)) != 0;
}
/// 2^n, where n + 1.5 * 2^23 is given.
MOE_ALWAYS_INLINE Vec power_of_two(Vec biased_n) noexcept {
  const int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(biased_n.value), 23);
  return {vreinterpretq_f32_s32(vaddq_s32(exponent, vdupq_n_s32(127 << 23)))};
}

/// The first or the second pair of a, then of b.
MOE_ALWAYS_INLINE Vec join_pairs(float32x4_t a, float32x4_t b, bool second) noexcept {
  const float64x2_t x = vreinterpretq_f64_f32(a);
  const float64x2_t y = vreinterpretq_f64_f32(b);
  return {vreinterpretq_f32_f64(second ? vtrn2q_f64(x, y) : vtrn1q_f64(x, y))};
}

/// Turns rows into columns.
MOE_ALWAYS_INLINE void transpose(Vec (&m)[4]) noexcept {
  const float32x4_t a = vtrn1q_f32(m[0].value, m[1].value);
  const float32x4_t b = vtrn2q_f32(m[0].value, m[1].value);
  const float32x4_t c = vtrn1q_f32(m[2].value, m[3].value);
  const float32x4_t d = vtrn2q_f32(m[2].value, m[3].value);
  m[0] = join_pairs(a, c, false);
  m[1] = join_pairs(b, d, false);
  m[2] = join_pairs(a, c, true);
  m[3] = join_pairs(b, d, true);
}

inline constexpr float infinity = __builtin_inff();
inline constexpr float lowest = -3.40282347e+38F;
inline constexpr float second_lowest = -3.40282326e+38F;
inline constexpr int most_rows = 6;
inline constexpr int side_sums = 0;

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
  const uint32x4_t bits =
      vreinterpretq_u32_u16(vld1q_u16(reinterpret_cast<const std::uint16_t*>(p)));
  even.value = vreinterpretq_f32_u32(vshlq_n_u32(bits, 16));
  odd.value = vreinterpretq_f32_u32(vandq_u32(bits, vdupq_n_u32(0xffff0000)));
}
/// Numbers at even and at odd places, in their order.
MOE_ALWAYS_INLINE void interleave(Vec& even, Vec& odd) noexcept {
  const float32x4_t a = even.value;
  even.value = vzip1q_f32(a, odd.value);
  odd.value = vzip2q_f32(a, odd.value);
}
/// The reverse.
MOE_ALWAYS_INLINE void deinterleave(Vec& first, Vec& last) noexcept {
  const float32x4_t a = first.value;
  first.value = vuzp1q_f32(a, last.value);
  last.value = vuzp2q_f32(a, last.value);
}

#include "moe/kernels/generic/accumulate.inl"
#include "moe/kernels/generic/columns.inl"
#include "moe/kernels/generic/exponential.inl"
#include "moe/kernels/generic/rows.inl"
#include "moe/kernels/generic/scores.inl"
#include "moe/kernels/generic/slopes.inl"
#include "moe/kernels/generic/tile.inl"

}  // namespace moe::inline MOE_ABI::kernels::neon
#endif
