// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

#include <moe/core/numeric.hpp>

namespace numeric_test {

static_assert(moe::half_to_float(0x3c00) == 1.0F && moe::bfloat16_to_float(0x3f80) == 1.0F);

/// A binary floating-point format by its definition: sign, then exponent, then fraction.
struct Format {
  int exponent_bits;
  int fraction_bits;
};

/// Compares one code's float with arithmetic on its fields. Zeros by sign, NaNs by sign and
/// payload.
void check_code(Format format, std::uint32_t code, float got) {
  const auto field = [&](int first, int width) {
    return static_cast<int>((code >> first) & ((1U << width) - 1));
  };
  const int fraction = field(0, format.fraction_bits);
  const int exponent = field(format.fraction_bits, format.exponent_bits);
  const bool is_negative = field(format.fraction_bits + format.exponent_bits, 1) != 0;
  const int highest = (1 << format.exponent_bits) - 1;
  const int bias = highest / 2;
  ASSERT_EQ(std::signbit(got), is_negative) << "code " << code;
  if (exponent == highest && fraction != 0) {
    ASSERT_TRUE(std::isnan(got)) << "code " << code;
    const auto payload = std::bit_cast<std::uint32_t>(got) & 0x7fffffU;
    ASSERT_EQ(payload, static_cast<std::uint32_t>(fraction) << (23 - format.fraction_bits))
        << "code " << code;
    return;
  }
  double magnitude = HUGE_VAL;
  if (exponent == 0)
    magnitude = std::ldexp(fraction, 1 - bias - format.fraction_bits);
  else if (exponent != highest)
    magnitude =
        std::ldexp((1 << format.fraction_bits) + fraction, exponent - bias - format.fraction_bits);
  ASSERT_EQ(std::fabs(static_cast<double>(got)), magnitude) << "code " << code;
}

TEST(Numeric, EveryHalfIsItsValue) {
  for (std::uint32_t code = 0; code <= 0xffff; ++code)
    check_code({5, 10}, code, moe::half_to_float(static_cast<std::uint16_t>(code)));
}

TEST(Numeric, EveryBfloat16IsItsValue) {
  for (std::uint32_t code = 0; code <= 0xffff; ++code)
    check_code({8, 7}, code, moe::bfloat16_to_float(static_cast<std::uint16_t>(code)));
}

TEST(Numeric, KnownValues) {
  EXPECT_EQ(moe::half_to_float(0x7bff), 65504.0F);
  EXPECT_EQ(moe::half_to_float(0x0001), 0x1p-24F);
  EXPECT_EQ(moe::half_to_float(0x0400), 0x1p-14F);
  EXPECT_EQ(moe::half_to_float(0xc000), -2.0F);
  EXPECT_EQ(moe::half_to_float(0x3555), 0x1.554p-2F);
  EXPECT_EQ(moe::bfloat16_to_float(0x4049), 3.140625F);
  EXPECT_EQ(moe::bfloat16_to_float(0x0001), 0x1p-133F);
}

TEST(Bfloat16, RoundsToTheNearestAndTiesToEven) {
  EXPECT_EQ(moe::float_to_bfloat16(1.0F), 0x3f80);
  EXPECT_EQ(moe::float_to_bfloat16(std::bit_cast<float>(0x3f808000U)), 0x3f80);  // tie, to even
  EXPECT_EQ(moe::float_to_bfloat16(std::bit_cast<float>(0x3f818000U)), 0x3f82);  // tie, to even
  EXPECT_EQ(moe::float_to_bfloat16(std::bit_cast<float>(0x3f808001U)), 0x3f81);
  EXPECT_EQ(moe::float_to_bfloat16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(moe::float_to_bfloat16(-std::numeric_limits<float>::infinity()), 0xff80);
  EXPECT_TRUE(std::isnan(
      moe::bfloat16_to_float(moe::float_to_bfloat16(std::bit_cast<float>(0x7f800001U)))));
}

TEST(Bfloat16, EveryCodeComesBack) {
  for (std::uint32_t code = 0; code < 0x10000; ++code) {
    const float value = moe::bfloat16_to_float(static_cast<std::uint16_t>(code));
    if (std::isnan(value)) continue;
    ASSERT_EQ(moe::float_to_bfloat16(value), code);
  }
}

TEST(Half, EveryCodeComesBackAndMidpointsGoToTheEvenOne) {
  for (std::uint32_t code = 0; code < 0x10000; ++code) {
    const float value = moe::half_to_float(static_cast<std::uint16_t>(code));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(moe::half_to_float(moe::float_to_half(value))));
      continue;
    }
    ASSERT_EQ(moe::float_to_half(value), code);
    if ((code & 0x7fffU) >= 0x7bffU) continue;  // No number follows.
    const float next = moe::half_to_float(static_cast<std::uint16_t>(code + 1));
    const float middle = value + (next - value) / 2;  // Exact in single precision.
    ASSERT_EQ(moe::float_to_half(middle), code % 2 == 0 ? code : code + 1) << code;
    ASSERT_EQ(moe::float_to_half(std::nextafter(middle, next)), code + 1);
    ASSERT_EQ(moe::float_to_half(std::nextafter(middle, value)), code);
  }
}

TEST(Half, LargeValuesBecomeInfinite) {
  EXPECT_EQ(moe::float_to_half(65519.99F), 0x7bff);
  EXPECT_EQ(moe::float_to_half(65520.0F), 0x7c00);
  EXPECT_EQ(moe::float_to_half(-1e10F), 0xfc00);
}

}  // namespace numeric_test
