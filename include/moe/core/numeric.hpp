// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Sixteen-bit floating-point values, widened exactly.
#pragma once

#include <bit>
#include <cstdint>

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

}  // namespace moe::inline MOE_ABI
