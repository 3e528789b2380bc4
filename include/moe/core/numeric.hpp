// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Sixteen-bit floating-point values: widened exactly, rounded to nearest even.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "moe/core/config.hpp"

namespace moe::inline MOE_ABI {

/// The float whose upper half these bits are. Every code has one, NaNs included.
constexpr float bfloat16_to_float(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// The value of an IEEE 754 binary16. Exact for every code; a NaN keeps its sign and payload.
constexpr float half_to_float(std::uint16_t bits) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fU;
  const std::uint32_t fraction = bits & 0x3ffU;
  if (exponent == 0x1f)  // Infinity and NaN.
    return std::bit_cast<float>(sign | 0x7f800000U | (fraction << 13));
  if (exponent == 0) {  // Zero and subnormals: fraction * 2^-24, which a float holds.
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

/// The nearest bfloat16, ties to even. A NaN stays one, quiet.
constexpr std::uint16_t float_to_bfloat16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

/// The nearest IEEE 754 binary16, ties to even; what is too large becomes infinite. A NaN stays
/// one.
constexpr std::uint16_t float_to_half(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U)
    return static_cast<std::uint16_t>(sign | 0x7e00U | ((magnitude >> 13) & 0x3ffU));
  if (magnitude >= 0x477ff000U)  // Rounds to 65536 or more.
    return static_cast<std::uint16_t>(sign | 0x7c00U);
  if (magnitude < 0x38800000U) {  // Below 2^-14: adding 1/2 leaves a multiple of 2^-24.
    const float rounded = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(rounded) - 0x3f000000U));
  }
  return static_cast<std::uint16_t>(
      sign | ((magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13));
}

/// How weights may be stored: the value of a float or double is widened from it when it is used.
struct bfloat16 {  // NOLINT(readability-identifier-naming)
  std::uint16_t bits = 0;
};
struct half {  // NOLINT(readability-identifier-naming)
  std::uint16_t bits = 0;
};

namespace detail {

/// A value in the form that it is stored in.
template <class Storage, class Scalar>
constexpr Storage store_as(Scalar value) noexcept {
  if constexpr (std::is_same_v<Storage, bfloat16>) {
    return {float_to_bfloat16(static_cast<float>(value))};
  } else if constexpr (std::is_same_v<Storage, half>) {
    return {float_to_half(static_cast<float>(value))};
  } else {
    return value;
  }
}

/// The value that is stored.
template <class Scalar, class Storage>
constexpr Scalar load_as(Storage stored) noexcept {
  if constexpr (std::is_same_v<Storage, bfloat16>) {
    return bfloat16_to_float(stored.bits);
  } else if constexpr (std::is_same_v<Storage, half>) {
    return half_to_float(stored.bits);
  } else {
    return stored;
  }
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
