// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Quantised weights one output at a time, for the baseline of the program.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "moe/core/config.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/small_floats.hpp"
#include "moe/core/weight_code.hpp"
#include "moe/kernels/coded/table.hpp"
#include "moe/kernels/scalar.hpp"
#include "moe/kernels/target.hpp"

namespace moe::inline MOE_ABI::kernels::scalar::of_float {

struct IntVec {
  static constexpr std::ptrdiff_t lanes = 1;
  std::int32_t value;

  static IntVec zero() noexcept { return {0}; }
  static IntVec broadcast(const std::int32_t* p) noexcept { return {*p}; }
};

MOE_ALWAYS_INLINE Vec to_float(IntVec a) noexcept {
  return {static_cast<float>(a.value)};
}
/// See coded.inl. Without a fused multiply-add the excess goes first, which is exact.
MOE_ALWAYS_INLINE Vec scaled_sum(IntVec sum, Vec scale, Vec /*excess*/) noexcept {
  return {(std::bit_cast<float>(sum.value) - sum_excess) * scale.value};
}
MOE_ALWAYS_INLINE IntVec load_bytes(const std::uint8_t* p) noexcept {
  return {*p};
}
MOE_ALWAYS_INLINE Vec power_of_byte(IntVec n) noexcept {
  return {e8m0_to_float(static_cast<std::uint8_t>(n.value))};
}

/// Four numbers of an output.
struct Signed {
  std::int8_t value[4];
};
using Operand = Signed;

template <WeightCode code>
MOE_ALWAYS_INLINE Signed load_signed(const std::byte* p, std::ptrdiff_t v) noexcept {
  Signed result;
  for (std::ptrdiff_t j = 0; j < 4; ++j) {
    if constexpr (code == WeightCode::int8) {
      result.value[j] = static_cast<std::int8_t>(p[4 * v + j]);
    } else {
      constexpr std::ptrdiff_t half = panel_width / 2;
      const auto byte = static_cast<unsigned>(p[4 * (v % half) + j]);
      const unsigned nibble = v < half ? byte & 15U : byte >> 4U;
      if constexpr (code == WeightCode::int4) {
        result.value[j] = static_cast<std::int8_t>(static_cast<int>(nibble) - 8);
      } else if constexpr (code == WeightCode::int4_zeros) {
        result.value[j] = static_cast<std::int8_t>(nibble);
      } else {
        result.value[j] = code == WeightCode::nl4 ? nl4_values[nibble] : e2m1_halves[nibble];
      }
    }
  }
  return result;
}
template <WeightCode code>
MOE_ALWAYS_INLINE Operand load_quads(const std::byte* p, std::ptrdiff_t v) noexcept {
  return load_signed<code>(p, v);
}
template <int rows>
MOE_ALWAYS_INLINE IntVec dot(int /*r*/, IntVec sum, const Operand& w,
                             const std::int8_t* x) noexcept {
  for (int j = 0; j < 4; ++j) sum.value += w.value[j] * x[j];
  return sum;
}
MOE_ALWAYS_INLINE void widen_quad(const Signed& a, Vec (&quad)[4]) noexcept {
  for (int j = 0; j < 4; ++j) quad[j] = {static_cast<float>(a.value[j])};
}

MOE_ALWAYS_INLINE Vec load_e4m3_as_half(const std::uint8_t* p) noexcept {
  const unsigned bits = ((*p & 0x7fU) << 7U) | ((*p & 0x80U) << 8U);
  return {half_to_float(static_cast<std::uint16_t>(bits))};
}
MOE_ALWAYS_INLINE Vec load_e5m2_as_half(const std::uint8_t* p) noexcept {
  return {half_to_float(static_cast<std::uint16_t>(*p << 8U))};
}

MOE_ALWAYS_INLINE IntVec larger_magnitude(IntVec most, Vec x) noexcept {
  const std::int32_t magnitude = std::bit_cast<std::int32_t>(x.value) & 0x7fffffff;
  return {magnitude > most.value ? magnitude : most.value};
}
MOE_ALWAYS_INLINE float largest_lane(IntVec a) noexcept {
  return std::bit_cast<float>(a.value);
}
MOE_ALWAYS_INLINE std::int32_t sum_of_lanes(IntVec a) noexcept {
  return a.value;
}

inline constexpr std::ptrdiff_t code_step = 4;

MOE_ALWAYS_INLINE IntVec store_codes(const float* x, Vec by, Vec up, std::ptrdiff_t /*stride*/,
                                     std::int8_t* to, IntVec total) noexcept {
  for (int j = 0; j < 4; ++j) {
    const float scaled = multiply(multiply(Vec{x[j]}, by), up).value;
    // What is not finite has no code; its scale says so.
    const float code = std::fabs(scaled) < 127.5F ? std::nearbyint(scaled) : 0;
    to[j] = static_cast<std::int8_t>(code);
    total.value += static_cast<std::int32_t>(code);
  }
  return total;
}

inline constexpr int few_coded_rows = 0;
inline constexpr std::ptrdiff_t coded_bytes_ahead = 0;
inline constexpr int coded_side_panels = 1;
inline constexpr int widened_side_panels = 1;

/// None: see as_floats.inl.
template <WeightCode code>
struct QuickRows {
  static constexpr bool exist = false;
};

constexpr int coded_pass(int /*tile_rows*/) noexcept {
  return 4;
}
constexpr int most_coded_rows(bool /*grouped*/) noexcept {
  return 1;
}
constexpr std::int32_t start_of(WeightCode /*code*/) noexcept {
  return 0;
}

#include "moe/kernels/generic/as_floats.inl"
#include "moe/kernels/generic/coded.inl"

}  // namespace moe::inline MOE_ABI::kernels::scalar::of_float
