// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Floating-point values of eight and four bits: widened exactly, rounded to nearest even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "moe/core/config.hpp"

namespace moe::inline MOE_ABI {

/// The value of an e4m3 code: sign, 4 bits of exponent (bias 7), 3 of fraction. It has no
/// infinities; 0x7f and 0xff are NaN, the largest value is 448, the smallest 2^-9.
///
/// Source  Micikevicius et al. (2022), arXiv:2209.05433.
constexpr float e4m3_to_float(std::uint8_t code) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80U) << 24;
  const std::uint32_t exponent = (code >> 3) & 0xfU;
  const std::uint32_t fraction = code & 7U;
  if ((code & 0x7fU) == 0x7fU) return std::bit_cast<float>(sign | 0x7fc00000U);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-9F;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (fraction << 20));
}

/// The value of an e5m2 code: sign, 5 bits of exponent (bias 15), 2 of fraction; the upper half of
/// an IEEE 754 binary16, infinities and NaN among them. The largest finite value is 57344.
///
/// Source  as e4m3.
constexpr float e5m2_to_float(std::uint8_t code) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80U) << 24;
  const std::uint32_t exponent = (code >> 2) & 0x1fU;
  const std::uint32_t fraction = code & 3U;
  if (exponent == 0x1fU) return std::bit_cast<float>(sign | 0x7f800000U | (fraction << 21));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-16F;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 21));
}

/// The value of an e2m1 code (four bits: sign, 2 of exponent, 1 of fraction): 0, 0.5, 1, 1.5, 2, 3,
/// 4 and 6. The upper half of the byte is not looked at.
///
/// Source  OCP Microscaling formats, version 1.0 (2023), section 5.3.3.
constexpr float e2m1_to_float(std::uint8_t code) noexcept {
  constexpr float magnitudes[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  const float magnitude = magnitudes[code & 7U];
  return (code & 8U) != 0 ? -magnitude : magnitude;
}

/// The scale of an e8m0 code, 2^(code - 127); 255 is NaN.
///
/// Source  OCP Microscaling formats, version 1.0 (2023), section 5.4.1.
constexpr float e8m0_to_float(std::uint8_t code) noexcept {
  if (code == 255) return std::numeric_limits<float>::quiet_NaN();
  if (code == 0) return 0x1p-127F;
  return std::bit_cast<float>(static_cast<std::uint32_t>(code) << 23);
}

namespace detail {

/// The code of a small float with these bits of fraction, nearest, ties to even; what is too large
/// becomes `largest`. NaN is the caller's.
constexpr std::uint8_t round_to_code(float value, int fraction_bits, int bias,
                                     std::uint32_t largest) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 24) & 0x80U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  const int shift = 23 - fraction_bits;
  std::uint32_t code = 0;
  if (magnitude < static_cast<std::uint32_t>(128 - bias) << 23) {
    // A multiple of the smallest value: adding 1.5 * 2^23 of these rounds to a whole number.
    const auto unit =
        std::bit_cast<float>(static_cast<std::uint32_t>(128 - bias - fraction_bits) << 23);
    const float sum = std::bit_cast<float>(magnitude) / unit + 0x1.8p23F;
    code = std::bit_cast<std::uint32_t>(sum) - std::bit_cast<std::uint32_t>(0x1.8p23F);
  } else {
    const std::uint32_t half = (1U << (shift - 1)) - 1 + ((magnitude >> shift) & 1U);
    code =
        ((magnitude + half) >> shift) - (static_cast<std::uint32_t>(127 - bias) << fraction_bits);
  }
  return static_cast<std::uint8_t>(sign | (code > largest ? largest : code));
}

}  // namespace detail

/// The nearest e4m3 code, ties to even; what exceeds 448 becomes 448. A NaN stays one.
constexpr std::uint8_t float_to_e4m3(float value) noexcept {
  if (value != value) return 0x7f;
  return detail::round_to_code(value, 3, 7, 0x7e);
}

/// The nearest e5m2 code, ties to even; what exceeds 57344 becomes 57344. A NaN stays one.
constexpr std::uint8_t float_to_e5m2(float value) noexcept {
  if (value != value) return 0x7f;
  return detail::round_to_code(value, 2, 15, 0x7b);
}

}  // namespace moe::inline MOE_ABI
