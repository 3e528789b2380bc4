// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Quantised weights with AVX2. Products are of magnitudes of weights with activations that have
// taken their signs: pairs of them stay within 16 bits, since activations are within +-127.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/weight_code.hpp"
#include "moe/kernels/avx2.hpp"
#include "moe/kernels/coded/table.hpp"
#include "moe/kernels/target.hpp"

#if MOE_ARCH_X86_64
#include <cstdint>
#include <cstring>
#include <immintrin.h>

MOE_TARGET_BEGIN("avx2,fma,f16c")
namespace moe::inline MOE_ABI::kernels::avx2 {

struct IntVec {
  static constexpr std::ptrdiff_t lanes = 8;
  __m256i value;

  static MOE_ALWAYS_INLINE IntVec zero() noexcept { return {_mm256_setzero_si256()}; }
  static MOE_ALWAYS_INLINE IntVec broadcast(const std::int32_t* p) noexcept {
    return {_mm256_set1_epi32(*p)};
  }
};

MOE_ALWAYS_INLINE Vec to_float(IntVec a) noexcept {
  return {_mm256_cvtepi32_ps(a.value)};
}
/// See coded.inl.
MOE_ALWAYS_INLINE Vec scaled_sum(IntVec sum, Vec scale, Vec excess) noexcept {
  return multiply_add(Vec{_mm256_castsi256_ps(sum.value)}, scale, excess);
}
MOE_ALWAYS_INLINE IntVec load_bytes(const std::uint8_t* p) noexcept {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
/// 2^(n - 127); a subnormal number for 0.
MOE_ALWAYS_INLINE Vec power_of_byte(IntVec n) noexcept {
  const __m256i bits = _mm256_slli_epi32(n.value, 23);
  return {_mm256_castsi256_ps(_mm256_max_epi32(bits, _mm256_set1_epi32(1 << 22)))};
}

/// Numbers of 8 bits, four of each output.
struct Signed {
  __m256i value;
};

MOE_ALWAYS_INLINE __m256i nibbles(const std::byte* p, std::ptrdiff_t v) noexcept {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32 * (v % 2)));
  return _mm256_and_si256(v < 2 ? bits : _mm256_srli_epi16(bits, 4), _mm256_set1_epi8(15));
}

template <WeightCode code>
MOE_ALWAYS_INLINE Signed load_signed(const std::byte* p, std::ptrdiff_t v) noexcept {
  if constexpr (code == WeightCode::int8) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32 * v))};
  } else if constexpr (code == WeightCode::int4) {
    return {_mm256_sub_epi8(nibbles(p, v), _mm256_set1_epi8(8))};
  } else if constexpr (code == WeightCode::int4_zeros) {
    return {nibbles(p, v)};
  } else {
    constexpr const std::int8_t* values = code == WeightCode::nl4 ? nl4_values : e2m1_halves;
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles(p, v))};
  }
}

/// Numbers j of each four, as floats.
MOE_ALWAYS_INLINE void widen_quad(Signed a, Vec (&quad)[4]) noexcept {
  MOE_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m256i top = _mm256_slli_epi32(a.value, 24 - 8 * j);
    quad[j] = to_float({_mm256_srai_epi32(top, 24)});
  }
}

/// The byte's sign becomes that of 16 bits, and once more bit 14, which is not the half's.
MOE_ALWAYS_INLINE Vec load_e4m3_as_half(const std::uint8_t* p) noexcept {
  const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i bits = _mm_slli_epi16(wide, 7);
  return {_mm256_cvtph_ps(_mm_and_si128(bits, _mm_set1_epi16(static_cast<short>(0xbfff))))};
}
MOE_ALWAYS_INLINE Vec load_e5m2_as_half(const std::uint8_t* p) noexcept {
  const __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_cvtph_ps(_mm_slli_epi16(wide, 8))};
}

MOE_ALWAYS_INLINE IntVec larger_magnitude(IntVec most, Vec x) noexcept {
  const __m256i magnitude =
      _mm256_and_si256(_mm256_castps_si256(x.value), _mm256_set1_epi32(0x7fffffff));
  return {_mm256_max_epi32(most.value, magnitude)};
}
MOE_ALWAYS_INLINE float largest_lane(IntVec a) noexcept {
  __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128(a.value), _mm256_extracti128_si256(a.value, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(four));
}
MOE_ALWAYS_INLINE std::int32_t sum_of_lanes(IntVec a) noexcept {
  __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(a.value), _mm256_extracti128_si256(a.value, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

/// Values of one `store_codes`.
inline constexpr std::ptrdiff_t code_step = 8;

/// Codes round(x by up) of 8 values, every four of them `stride` fours behind the ones before, and
/// their sums beside those of before.
MOE_ALWAYS_INLINE IntVec store_codes(const float* x, Vec by, Vec up, std::ptrdiff_t stride,
                                     std::int8_t* to, IntVec total) noexcept {
  const __m256i codes = _mm256_cvtps_epi32(multiply(multiply(Vec::load(x), by), up).value);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  const __m128i bytes = _mm_packs_epi16(words, words);
  const int first = _mm_cvtsi128_si32(bytes);
  const int last = _mm_extract_epi32(bytes, 1);
  std::memcpy(to, &first, 4);
  std::memcpy(to + 4 * stride, &last, 4);
  return {_mm256_add_epi32(total.value, codes)};
}

inline constexpr int few_coded_rows = 1;
inline constexpr std::ptrdiff_t coded_bytes_ahead = 2048;
inline constexpr int coded_side_panels = 1;
inline constexpr int widened_side_panels = 1;

/// None: see as_floats.inl.
template <WeightCode code>
struct QuickRows {
  static constexpr bool exist = false;
};

/// Of 16 registers, one row takes a whole panel, two or three take half of one.
constexpr int coded_pass(int tile_rows) noexcept {
  return tile_rows == 1 ? 4 : 2;
}
constexpr int most_coded_rows(bool grouped) noexcept {
  return grouped ? 2 : 3;
}

struct Operand {
  __m256i value;
  __m256i magnitude;
};

constexpr std::int32_t start_of(WeightCode /*code*/) noexcept {
  return 0;
}
template <WeightCode code>
MOE_ALWAYS_INLINE Operand load_quads(const std::byte* p, std::ptrdiff_t v) noexcept {
  const __m256i w = load_signed<code>(p, v).value;
  return {w, _mm256_abs_epi8(w)};
}
template <int rows>
MOE_ALWAYS_INLINE IntVec dot(int /*r*/, IntVec sum, Operand w, const std::int8_t* x) noexcept {
  std::int32_t four;
  std::memcpy(&four, x, 4);
  const __m256i with_sign = _mm256_sign_epi8(_mm256_set1_epi32(four), w.value);
  const __m256i two = _mm256_maddubs_epi16(w.magnitude, with_sign);
  return {_mm256_add_epi32(sum.value, _mm256_madd_epi16(two, _mm256_set1_epi16(1)))};
}

#include "moe/kernels/generic/as_floats.inl"
#include "moe/kernels/generic/coded.inl"

}  // namespace moe::inline MOE_ABI::kernels::avx2
MOE_TARGET_END
#endif
