// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Quantised weights with NEON: by products of 16 bits, and by its eight-bit dot products.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/weight_code.hpp"
#include "moe/kernels/coded/table.hpp"
#include "moe/kernels/neon.hpp"
#include "moe/kernels/target.hpp"

#if MOE_ARCH_AARCH64
#include <arm_neon.h>
#include <bit>
#include <cstdint>
#include <cstring>

namespace moe::inline MOE_ABI::kernels::neon {

struct IntVec {
  static constexpr std::ptrdiff_t lanes = 4;
  int32x4_t value;

  static MOE_ALWAYS_INLINE IntVec zero() noexcept { return {vdupq_n_s32(0)}; }
  static MOE_ALWAYS_INLINE IntVec broadcast(const std::int32_t* p) noexcept {
    return {vdupq_n_s32(*p)};
  }
};

MOE_ALWAYS_INLINE Vec to_float(IntVec a) noexcept {
  return {vcvtq_f32_s32(a.value)};
}
/// See coded.inl.
MOE_ALWAYS_INLINE Vec scaled_sum(IntVec sum, Vec scale, Vec excess) noexcept {
  return multiply_add(Vec{vreinterpretq_f32_s32(sum.value)}, scale, excess);
}
MOE_ALWAYS_INLINE IntVec load_bytes(const std::uint8_t* p) noexcept {
  std::uint32_t four;
  std::memcpy(&four, p, 4);
  const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)))};
}
/// 2^(n - 127); a subnormal number for 0.
MOE_ALWAYS_INLINE Vec power_of_byte(IntVec n) noexcept {
  return {vreinterpretq_f32_s32(vmaxq_s32(vshlq_n_s32(n.value, 23), vdupq_n_s32(1 << 22)))};
}

/// Numbers of 8 bits, four of each output.
struct Signed {
  int8x16_t value;
};
using Operand = Signed;

MOE_ALWAYS_INLINE uint8x16_t nibbles(const std::byte* p, std::ptrdiff_t v) noexcept {
  const uint8x16_t bits = vld1q_u8(reinterpret_cast<const std::uint8_t*>(p) + 16 * (v % 4));
  return v < 4 ? vandq_u8(bits, vdupq_n_u8(15)) : vshrq_n_u8(bits, 4);
}

template <WeightCode code>
MOE_ALWAYS_INLINE Signed load_signed(const std::byte* p, std::ptrdiff_t v) noexcept {
  if constexpr (code == WeightCode::int8) {
    return {vld1q_s8(reinterpret_cast<const std::int8_t*>(p) + 16 * v)};
  } else if constexpr (code == WeightCode::int4) {
    return {vsubq_s8(vreinterpretq_s8_u8(nibbles(p, v)), vdupq_n_s8(8))};
  } else if constexpr (code == WeightCode::int4_zeros) {
    return {vreinterpretq_s8_u8(nibbles(p, v))};
  } else {
    constexpr const std::int8_t* values = code == WeightCode::nl4 ? nl4_values : e2m1_halves;
    return {vqtbl1q_s8(vld1q_s8(values), nibbles(p, v))};
  }
}
template <WeightCode code>
MOE_ALWAYS_INLINE Operand load_quads(const std::byte* p, std::ptrdiff_t v) noexcept {
  return load_signed<code>(p, v);
}

/// Numbers j of each four, as floats.
MOE_ALWAYS_INLINE void widen_quad(Signed a, Vec (&quad)[4]) noexcept {
  const int32x4_t fours = vreinterpretq_s32_s8(a.value);
  quad[0] = to_float({vshrq_n_s32(vshlq_n_s32(fours, 24), 24)});
  quad[1] = to_float({vshrq_n_s32(vshlq_n_s32(fours, 16), 24)});
  quad[2] = to_float({vshrq_n_s32(vshlq_n_s32(fours, 8), 24)});
  quad[3] = to_float({vshrq_n_s32(fours, 24)});
}

/// Four codes, as often as there are outputs.
MOE_ALWAYS_INLINE int8x16_t repeat_quad(const std::int8_t* x) noexcept {
  std::int32_t four;
  std::memcpy(&four, x, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

MOE_ALWAYS_INLINE uint16x4_t widen_bytes(const std::uint8_t* p) noexcept {
  std::uint32_t four;
  std::memcpy(&four, p, 4);
  return vget_low_u16(vmovl_u8(vcreate_u8(four)));
}
MOE_ALWAYS_INLINE Vec load_e4m3_as_half(const std::uint8_t* p) noexcept {
  const uint16x4_t wide = widen_bytes(p);
  const uint16x4_t rest = vshl_n_u16(vand_u16(wide, vdup_n_u16(0x7f)), 7);
  const uint16x4_t sign = vshl_n_u16(vand_u16(wide, vdup_n_u16(0x80)), 8);
  return {vcvt_f32_f16(vreinterpret_f16_u16(vorr_u16(rest, sign)))};
}
MOE_ALWAYS_INLINE Vec load_e5m2_as_half(const std::uint8_t* p) noexcept {
  return {vcvt_f32_f16(vreinterpret_f16_u16(vshl_n_u16(widen_bytes(p), 8)))};
}

MOE_ALWAYS_INLINE IntVec larger_magnitude(IntVec most, Vec x) noexcept {
  const int32x4_t magnitude = vandq_s32(vreinterpretq_s32_f32(x.value), vdupq_n_s32(0x7fffffff));
  return {vmaxq_s32(most.value, magnitude)};
}
MOE_ALWAYS_INLINE float largest_lane(IntVec a) noexcept {
  return std::bit_cast<float>(vmaxvq_s32(a.value));
}
MOE_ALWAYS_INLINE std::int32_t sum_of_lanes(IntVec a) noexcept {
  return vaddvq_s32(a.value);
}

/// Values of one `store_codes`.
inline constexpr std::ptrdiff_t code_step = 4;

/// Codes round(x by up) of 4 values, and their sums beside those of before.
MOE_ALWAYS_INLINE IntVec store_codes(const float* x, Vec by, Vec up, std::ptrdiff_t /*stride*/,
                                     std::int8_t* to, IntVec total) noexcept {
  const int32x4_t codes = vcvtnq_s32_f32(multiply(multiply(Vec::load(x), by), up).value);
  const int16x4_t words = vqmovn_s32(codes);
  const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
  const std::uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
  std::memcpy(to, &four, 4);
  return {vaddq_s32(total.value, codes)};
}

inline constexpr int few_coded_rows = 1;
inline constexpr std::ptrdiff_t coded_bytes_ahead = 1024;
inline constexpr int coded_side_panels = 1;
inline constexpr int widened_side_panels = 1;

/// None: see as_floats.inl.
template <WeightCode code>
struct QuickRows {
  static constexpr bool exist = false;
};

/// Of 32 registers, one row takes a whole panel, two or three take half of one.
constexpr int coded_pass(int tile_rows) noexcept {
  return tile_rows == 1 ? 8 : 4;
}
constexpr int most_coded_rows(bool grouped) noexcept {
  return grouped ? 2 : 3;
}
constexpr std::int32_t start_of(WeightCode /*code*/) noexcept {
  return 0;
}

#include "moe/kernels/generic/as_floats.inl"

namespace products {

template <int rows>
MOE_ALWAYS_INLINE IntVec dot(int /*r*/, IntVec sum, Operand w, const std::int8_t* x) noexcept {
  const int8x16_t codes = repeat_quad(x);
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w.value), vget_low_s8(codes)));
  const int32x4_t high = vpaddlq_s16(vmull_high_s8(w.value, codes));
  return {vaddq_s32(sum.value, vpaddq_s32(low, high))};
}

#include "moe/kernels/generic/coded.inl"

}  // namespace products
}  // namespace moe::inline MOE_ABI::kernels::neon

#if MOE_ARM_DOTPROD
// clang has the intrinsic in a region of higher target. g++ has it, too, but the region replaces
// the program's own features there and cannot inline what was compiled with them, and its assembler
// takes the instruction from ARMv8.2 on alone: its code, with the numbers of its registers.
#if defined(__clang__) && !defined(__ARM_FEATURE_DOTPROD)
#define MOE_DOTPROD_REGION 1
MOE_TARGET_BEGIN("dotprod")
#endif
namespace moe::inline MOE_ABI::kernels::neon::dotprod {

template <int rows>
MOE_ALWAYS_INLINE IntVec dot(int /*r*/, IntVec sum, Operand w, const std::int8_t* x) noexcept {
#if defined(__clang__) || defined(__ARM_FEATURE_DOTPROD)
  return {vdotq_s32(sum.value, w.value, repeat_quad(x))};
#else
  __asm__(
      ".irp n, "
      "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
      "\n\t.equ .Lmoe_v\\n, \\n\n\t.endr\n\t"
      ".inst 0x4e809400 | (.Lmoe_%2 << 16) | (.Lmoe_%1 << 5) | .Lmoe_%0"
      : "+w"(sum.value)
      : "w"(w.value), "w"(repeat_quad(x)));
  return sum;
#endif
}

#include "moe/kernels/generic/coded.inl"

}  // namespace moe::inline MOE_ABI::kernels::neon::dotprod
#if defined(MOE_DOTPROD_REGION)
#undef MOE_DOTPROD_REGION
MOE_TARGET_END
#endif
#endif
#endif
