// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the bits of small floats mean, by the definition of IEEE 754.
#pragma once

#include <cmath>

namespace test_support {

/// The value of a code, bit by bit: sign, exponent with this many bits and fraction, subnormal ones
/// where the exponent is 0.
inline double value_of_bits(unsigned code, int exponent_bits, int fraction_bits) {
  const unsigned sign = code >> static_cast<unsigned>(exponent_bits + fraction_bits);
  const unsigned fraction = code & ((1U << static_cast<unsigned>(fraction_bits)) - 1);
  const auto exponent = static_cast<int>((code >> static_cast<unsigned>(fraction_bits)) &
                                         ((1U << static_cast<unsigned>(exponent_bits)) - 1));
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double part = std::ldexp(static_cast<double>(fraction), -fraction_bits);
  const double magnitude =
      exponent == 0 ? std::ldexp(part, 1 - bias) : std::ldexp(1 + part, exponent - bias);
  return sign == 0 ? magnitude : -magnitude;
}

}  // namespace test_support
