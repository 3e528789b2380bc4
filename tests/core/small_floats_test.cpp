// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Every code against values worked out from sign, exponent and fraction.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/numeric.hpp>
#include <moe/core/small_floats.hpp>

namespace small_floats_test {

/// The value of a code with so many bits of exponent and fraction, of the form of IEEE 754 without
/// its last exponent's special meaning.
double value_of(unsigned code, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const unsigned fraction = code & ((1U << fraction_bits) - 1);
  const auto exponent = static_cast<int>((code >> fraction_bits) & ((1U << exponent_bits) - 1));
  const bool is_negative = ((code >> (fraction_bits + exponent_bits)) & 1U) != 0;
  const double ones = exponent == 0 ? 0 : 1;
  const double magnitude = std::ldexp(ones + std::ldexp(fraction, -fraction_bits),
                                      (exponent == 0 ? 1 : exponent) - bias);
  return is_negative ? -magnitude : magnitude;
}

TEST(SmallFloats, EveryE4m3Code) {
  for (unsigned code = 0; code < 256; ++code) {
    const float value = moe::e4m3_to_float(static_cast<std::uint8_t>(code));
    if ((code & 0x7fU) == 0x7fU) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else {
      EXPECT_EQ(value, value_of(code, 4, 3)) << code;
      EXPECT_EQ(std::signbit(value), code >= 128) << code;
    }
  }
  EXPECT_EQ(moe::e4m3_to_float(0x7e), 448);
  EXPECT_EQ(moe::e4m3_to_float(0x01), 0x1p-9F);
}

TEST(SmallFloats, EveryE5m2Code) {
  for (unsigned code = 0; code < 256; ++code) {
    const float value = moe::e5m2_to_float(static_cast<std::uint8_t>(code));
    if ((code & 0x7fU) > 0x7cU) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else if ((code & 0x7fU) == 0x7cU) {
      EXPECT_TRUE(std::isinf(value)) << code;
      EXPECT_EQ(value < 0, code >= 128) << code;
    } else {
      EXPECT_EQ(value, value_of(code, 5, 2)) << code;
    }
    EXPECT_EQ(std::signbit(value), code >= 128) << code;
  }
  EXPECT_EQ(moe::e5m2_to_float(0x7b), 57344);
}

TEST(SmallFloats, EveryE2m1CodeAndScale) {
  for (unsigned code = 0; code < 16; ++code)
    EXPECT_EQ(moe::e2m1_to_float(static_cast<std::uint8_t>(code)), value_of(code, 2, 1)) << code;
  EXPECT_EQ(moe::e2m1_to_float(0xf5), 3) << "the upper half does not count";
  for (unsigned code = 0; code < 255; ++code)
    EXPECT_EQ(moe::e8m0_to_float(static_cast<std::uint8_t>(code)),
              std::ldexp(1.0, static_cast<int>(code) - 127))
        << code;
  EXPECT_TRUE(std::isnan(moe::e8m0_to_float(255)));
}

TEST(SmallFloats, EverySixteenBitCode) {
  for (unsigned code = 0; code < 65536; ++code) {
    const auto bits = static_cast<std::uint16_t>(code);
    const float half = moe::half_to_float(bits);
    if ((code & 0x7c00U) != 0x7c00U) {
      EXPECT_EQ(half, value_of(code, 5, 10)) << code;
    } else {
      EXPECT_EQ(std::isnan(half), (code & 0x3ffU) != 0) << code;
      EXPECT_EQ(std::isinf(half), (code & 0x3ffU) == 0) << code;
      EXPECT_EQ(std::signbit(half), (code & 0x8000U) != 0) << code;
    }
    const float wide = moe::bfloat16_to_float(bits);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(wide), code << 16U) << code;
  }
}

/// Codes of the nearest of all finite values, ties to the code whose last bit is 0.
template <class ToFloat>
std::uint8_t nearest(float x, const ToFloat& to_float) {
  x = std::clamp(x, -1e6F, 1e6F);  // Differences of much larger ones are all the same.
  unsigned best = std::signbit(x) ? 128 : 0;
  for (unsigned code = best; code < best + 128; ++code) {
    const float value = to_float(static_cast<std::uint8_t>(code));
    if (!std::isfinite(value)) break;
    const double closer =
        std::fabs(static_cast<double>(x) -
                  static_cast<double>(to_float(static_cast<std::uint8_t>(best)))) -
        std::fabs(static_cast<double>(x) - static_cast<double>(value));
    if (closer > 0 || (closer == 0 && code % 2 == 0)) best = code;
  }
  return static_cast<std::uint8_t>(best);
}

TEST(SmallFloats, RoundToTheNearestCode) {
  std::vector<float> values{0.0F, -0.0F, 1e-30F, 1e30F, -1e30F, 464, 448.1F, 57344, 61440, 65536};
  for (unsigned code = 0; code < 127; ++code) {
    for (const bool wide : {false, true}) {
      const auto at = [&](unsigned c) {
        const auto byte = static_cast<std::uint8_t>(c);
        return wide ? moe::e5m2_to_float(byte) : moe::e4m3_to_float(byte);
      };
      if (!std::isfinite(at(code)) || !std::isfinite(at(code + 1))) continue;
      const float middle = (at(code) + at(code + 1)) / 2;
      for (const float value :
           {at(code), middle, std::nextafter(middle, 0.0F), std::nextafter(middle, 1e9F)}) {
        values.push_back(value);
        values.push_back(-value);
      }
    }
  }
  for (const float value : values) {
    EXPECT_EQ(moe::float_to_e4m3(value), nearest(value, moe::e4m3_to_float)) << value;
    EXPECT_EQ(moe::float_to_e5m2(value), nearest(value, moe::e5m2_to_float)) << value;
  }
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(moe::e4m3_to_float(moe::float_to_e4m3(nan))));
  EXPECT_TRUE(std::isnan(moe::e5m2_to_float(moe::float_to_e5m2(nan))));
}

}  // namespace small_floats_test
