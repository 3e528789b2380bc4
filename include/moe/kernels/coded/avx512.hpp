// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Quantised weights with AVX-512, and with its eight-bit dot products (VNNI), which take unsigned
// codes: signed ones are shifted by 128, which costs no bits, and products begin with what that
// adds.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/weight_code.hpp"
#include "moe/kernels/avx512.hpp"
#include "moe/kernels/coded/table.hpp"
#include "moe/kernels/target.hpp"

#if MOE_ARCH_X86_64
#include <cstdint>
#include <cstring>
#include <immintrin.h>

MOE_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
namespace moe::inline MOE_ABI::kernels::avx512 {

struct IntVec {
  static constexpr std::ptrdiff_t lanes = 16;
  __m512i value;

  static MOE_ALWAYS_INLINE IntVec zero() noexcept { return {_mm512_setzero_si512()}; }
  static MOE_ALWAYS_INLINE IntVec broadcast(const std::int32_t* p) noexcept {
    return {_mm512_set1_epi32(*p)};
  }
};

MOE_ALWAYS_INLINE Vec to_float(IntVec a) noexcept {
  return {_mm512_maskz_cvtepi32_ps(all, a.value)};
}
/// See coded.inl.
MOE_ALWAYS_INLINE Vec scaled_sum(IntVec sum, Vec scale, Vec excess) noexcept {
  return multiply_add(Vec{_mm512_castsi512_ps(sum.value)}, scale, excess);
}
MOE_ALWAYS_INLINE IntVec load_bytes(const std::uint8_t* p) noexcept {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_maskz_cvtepu8_epi32(all, bytes)};
}
/// 2^(n - 127); a subnormal number for 0.
MOE_ALWAYS_INLINE Vec power_of_byte(IntVec n) noexcept {
  const __m512i bits = _mm512_maskz_slli_epi32(all, n.value, 23);
  return {_mm512_castsi512_ps(_mm512_maskz_max_epi32(all, bits, _mm512_set1_epi32(1 << 22)))};
}

/// Numbers of 8 bits, four of each output.
struct Signed {
  __m512i value;
};

MOE_ALWAYS_INLINE __m512i nibbles(const std::byte* p, std::ptrdiff_t v) noexcept {
  const __m512i bits = _mm512_loadu_si512(p);
  return _mm512_and_si512(v == 0 ? bits : _mm512_srli_epi16(bits, 4), _mm512_set1_epi8(15));
}

/// A table of 16 bytes, `added` to each, in every 128 bits.
MOE_ALWAYS_INLINE __m512i table_of(const std::int8_t* values, char added) noexcept {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm512_add_epi8(_mm512_maskz_broadcast_i32x4(all, table), _mm512_set1_epi8(added));
}

template <WeightCode code>
constexpr const std::int8_t* table_values() noexcept {
  return code == WeightCode::nl4 ? nl4_values : e2m1_halves;
}

template <WeightCode code>
MOE_ALWAYS_INLINE Signed load_signed(const std::byte* p, std::ptrdiff_t v) noexcept {
  if constexpr (code == WeightCode::int8) {
    return {_mm512_loadu_si512(p + 64 * v)};
  } else if constexpr (code == WeightCode::int4) {
    return {_mm512_sub_epi8(nibbles(p, v), _mm512_set1_epi8(8))};
  } else if constexpr (code == WeightCode::int4_zeros) {
    return {nibbles(p, v)};
  } else {
    return {_mm512_shuffle_epi8(table_of(table_values<code>(), 0), nibbles(p, v))};
  }
}

/// Numbers j of each four, as floats.
MOE_ALWAYS_INLINE void widen_quad(Signed a, Vec (&quad)[4]) noexcept {
  MOE_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512i top = _mm512_maskz_slli_epi32(all, a.value, static_cast<unsigned>(24 - 8 * j));
    quad[j] = to_float({_mm512_maskz_srai_epi32(all, top, 24)});
  }
}

MOE_ALWAYS_INLINE Vec load_half_bits(__m256i bits) noexcept {
  return {_mm512_maskz_cvtph_ps(all, bits)};
}
/// The byte's sign becomes that of 16 bits, and once more bit 14, which is not the half's.
MOE_ALWAYS_INLINE Vec load_e4m3_as_half(const std::uint8_t* p) noexcept {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i bits = _mm256_slli_epi16(wide, 7);
  return load_half_bits(_mm256_and_si256(bits, _mm256_set1_epi16(static_cast<short>(0xbfff))));
}
MOE_ALWAYS_INLINE Vec load_e5m2_as_half(const std::uint8_t* p) noexcept {
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return load_half_bits(_mm256_slli_epi16(wide, 8));
}

/// The same of all a panel's outputs: each step is one instruction for 32 of them.
MOE_ALWAYS_INLINE void load_halves(__m512i bits, Vec (&value)[2]) noexcept {
  value[0] = load_half_bits(_mm512_maskz_extracti64x4_epi64(0xf, bits, 0));
  value[1] = load_half_bits(_mm512_maskz_extracti64x4_epi64(0xf, bits, 1));
}
MOE_ALWAYS_INLINE void load_e4m3_as_half(const std::uint8_t* p, Vec (&value)[2]) noexcept {
  const __m512i wide =
      _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i bits = _mm512_slli_epi16(wide, 7);
  load_halves(_mm512_and_si512(bits, _mm512_set1_epi16(static_cast<short>(0xbfff))), value);
}
MOE_ALWAYS_INLINE void load_e5m2_as_half(const std::uint8_t* p, Vec (&value)[2]) noexcept {
  const __m512i wide =
      _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  load_halves(_mm512_slli_epi16(wide, 8), value);
}

/// See as_floats.inl.
template <WeightCode code>
struct QuickRows {
  static constexpr bool exist = false;
};

/// Lines of codes whose exponents are above 0, since halves take conversions, four of which for 64
/// codes bound the product: 1/256 of such a code is the float whose exponent begins with 0111. The
/// 32 of a row come as those at even places, then those at odd ones, since two that share 32 bits
/// are widened by a shift and a mask.
template <>
struct QuickRows<WeightCode::fp8_e4m3> {
  static constexpr bool exist = true;

  template <int panels>
  static MOE_ALWAYS_INLINE bool are_quick(const std::byte* lines, std::ptrdiff_t stride) noexcept {
    const __m512i exponent = _mm512_set1_epi8(0x78);
    __mmask64 normal = _mm512_test_epi8_mask(_mm512_loadu_si512(lines), exponent);
    MOE_UNROLL
    for (int p = 1; p < panels; ++p)
      normal = _mm512_mask_test_epi8_mask(normal, _mm512_loadu_si512(lines + p * stride), exponent);
    return _kortestc_mask64_u8(normal, normal) != 0;
  }
  static MOE_ALWAYS_INLINE void load(const std::byte* p, Vec (&value)[2]) noexcept {
    const __m512i wide =
        _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    // (x & 0x87f0) | 0x3800 of the shifted code, whose sign stands in five bits.
    const __m512i bits = _mm512_ternarylogic_epi32(_mm512_slli_epi16(wide, 4),
                                                   _mm512_set1_epi16(static_cast<short>(0x87f0)),
                                                   _mm512_set1_epi16(0x3800), 0xea);
    value[0] = {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(all, bits, 16))};
    value[1] = {_mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-65536)))};
  }
  static MOE_ALWAYS_INLINE void reorder(Vec (&value)[2]) noexcept {
    deinterleave(value[0], value[1]);
  }
  static MOE_ALWAYS_INLINE void restore(Vec (&value)[2]) noexcept {
    interleave(value[0], value[1]);
  }
};

MOE_ALWAYS_INLINE IntVec larger_magnitude(IntVec most, Vec x) noexcept {
  const __m512i magnitude =
      _mm512_and_si512(_mm512_castps_si512(x.value), _mm512_set1_epi32(0x7fffffff));
  return {_mm512_maskz_max_epi32(all, most.value, magnitude)};
}
MOE_ALWAYS_INLINE float largest_lane(IntVec a) noexcept {
  const __m256i eight = _mm256_max_epi32(_mm512_maskz_extracti64x4_epi64(0xf, a.value, 0),
                                         _mm512_maskz_extracti64x4_epi64(0xf, a.value, 1));
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(four));
}
MOE_ALWAYS_INLINE std::int32_t sum_of_lanes(IntVec a) noexcept {
  const __m256i eight = _mm256_add_epi32(_mm512_maskz_extracti64x4_epi64(0xf, a.value, 0),
                                         _mm512_maskz_extracti64x4_epi64(0xf, a.value, 1));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

/// Values of one `store_codes`.
inline constexpr std::ptrdiff_t code_step = 16;

/// Codes round(x by up) of 16 values, every four of them `stride` fours behind the ones before, and
/// their sums beside those of before.
MOE_ALWAYS_INLINE IntVec store_codes(const float* x, Vec by, Vec up, std::ptrdiff_t stride,
                                     std::int8_t* to, IntVec total) noexcept {
  const Vec scaled = multiply(multiply(Vec::load(x), by), up);
  const __m512i codes = _mm512_maskz_cvtps_epi32(all, scaled.value);
  const __m128i bytes = _mm512_maskz_cvtsepi32_epi8(all, codes);
  alignas(16) std::int8_t fours[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(fours), bytes);
  MOE_UNROLL
  for (int q = 0; q < 4; ++q) std::memcpy(to + 4 * stride * q, fours + std::ptrdiff_t{4} * q, 4);
  return {_mm512_add_epi32(total.value, codes)};
}

inline constexpr int few_coded_rows = 2;
inline constexpr std::ptrdiff_t coded_bytes_ahead = 2048;
inline constexpr int coded_side_panels = 8;
inline constexpr int widened_side_panels = 4;
constexpr int coded_pass(int /*tile_rows*/) noexcept {
  return 2;
}
#include "moe/kernels/generic/as_floats.inl"

/// Products by the sign trick: pairs of products, whose sums stay within 16 bits.
namespace pairs {

/// More rows would gain little: most of the work is done for each row.
constexpr int most_coded_rows(bool /*grouped*/) noexcept {
  return 4;
}

struct Operand {
  __m512i magnitude;
  __mmask64 negative;
};

constexpr std::int32_t start_of(WeightCode /*code*/) noexcept {
  return 0;
}
template <WeightCode code>
MOE_ALWAYS_INLINE Operand load_quads(const std::byte* p, std::ptrdiff_t v) noexcept {
  const __m512i w = load_signed<code>(p, v).value;
  return {_mm512_abs_epi8(w), _mm512_movepi8_mask(w)};
}
template <int rows>
MOE_ALWAYS_INLINE IntVec dot(int /*r*/, IntVec sum, Operand w, const std::int8_t* x) noexcept {
  std::int32_t four;
  std::memcpy(&four, x, 4);
  const __m512i codes = _mm512_set1_epi32(four);
  const __m512i with_sign = _mm512_mask_sub_epi8(codes, w.negative, _mm512_setzero_si512(), codes);
  const __m512i two = _mm512_maddubs_epi16(w.magnitude, with_sign);
  return {_mm512_add_epi32(sum.value, _mm512_madd_epi16(two, _mm512_set1_epi16(1)))};
}

#include "moe/kernels/generic/coded.inl"

}  // namespace pairs
}  // namespace moe::inline MOE_ABI::kernels::avx512
MOE_TARGET_END

MOE_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
namespace moe::inline MOE_ABI::kernels::avx512::vnni {

/// Sums take 28 of 32 registers; where groups have scales, totals are in memory then (see
/// integer_tile_rows). Half a panel for 14 rows at a time was bound by loads.
constexpr int most_coded_rows(bool /*grouped*/) noexcept {
  return 14;
}

struct Operand {
  __m512i value;
};

constexpr std::int32_t start_of(WeightCode code) noexcept {
  if (code == WeightCode::int4_zeros) return 0;
  return code == WeightCode::int4 ? -8 : -128;
}
template <WeightCode code>
MOE_ALWAYS_INLINE Operand load_quads(const std::byte* p, std::ptrdiff_t v) noexcept {
  if constexpr (code == WeightCode::int8) {
    return {_mm512_xor_si512(_mm512_loadu_si512(p + 64 * v), _mm512_set1_epi8(-128))};
  } else if constexpr (code == WeightCode::int4 || code == WeightCode::int4_zeros) {
    return {nibbles(p, v)};
  } else {
    return {_mm512_shuffle_epi8(table_of(table_values<code>(), -128), nibbles(p, v))};
  }
}
/// Four codes, whatever was written there.
using AnyFour [[gnu::may_alias]] = std::int32_t;

/// By the instruction itself: with the intrinsic, g++ 12 copies every sum before and after it, and
/// none reads its activations as multiply-adds of a tile do (see memory_factors).
template <int rows>
MOE_ALWAYS_INLINE IntVec dot(int r, IntVec sum, Operand w, const std::int8_t* x) noexcept {
  if (reads_factor(r, rows, 2)) {
    __asm__("{vpdpbusd %2%{1to16%}, %1, %0|vpdpbusd %0, %1, %2%{1to16%}}"
            : "+v"(sum.value)
            : "v"(w.value), "m"(*reinterpret_cast<const AnyFour*>(x)));
    return sum;
  }
  std::int32_t four;
  std::memcpy(&four, x, 4);
  __asm__("{vpdpbusd %2, %1, %0|vpdpbusd %0, %1, %2}"
          : "+v"(sum.value)
          : "v"(w.value), "v"(_mm512_set1_epi32(four)));
  return sum;
}

#include "moe/kernels/generic/coded.inl"

}  // namespace moe::inline MOE_ABI::kernels::avx512::vnni
MOE_TARGET_END
#endif
