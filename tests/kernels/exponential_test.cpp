// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/dispatch.hpp>

#include "support/levels.hpp"

namespace exponential_test {

using Function = void (*)(const float*, std::ptrdiff_t, float*) noexcept;

/// Distance in units of the last place of the exact value.
double ulps(float got, double exact) {
  const int exponent = std::max(std::ilogb(static_cast<float>(exact)), -126);
  return std::fabs(static_cast<double>(got) - exact) / std::ldexp(1.0, exponent - 23);
}

/// The largest error over floats spread evenly over all codes.
template <class Exact>
double worst_error(Function function, Exact exact) {
  constexpr std::size_t block = 1021;
  constexpr std::uint32_t step = 997;  // A prime, so that all exponents and endings are met.
  std::vector<float> x(block);
  std::vector<float> y(block);
  double worst = 0;
  for (std::uint64_t code = 0; code < 0xff800000U;) {
    for (float& v : x) {
      v = std::bit_cast<float>(static_cast<std::uint32_t>(code));
      code = code + step < 0xff800000U ? code + step : 0xff800000U;
    }
    function(x.data(), block, y.data());
    for (std::size_t i = 0; i < block; ++i) {
      const double expected = exact(static_cast<double>(x[i]));
      if (std::isnan(x[i])) {
        EXPECT_TRUE(std::isnan(y[i]));
      } else if (std::fabs(expected) > static_cast<double>(std::numeric_limits<float>::max())) {
        // Up to half a unit above the largest float rounds to it.
        EXPECT_TRUE(std::isinf(y[i]) || ulps(y[i], expected) <= 2) << x[i];
      } else if (expected == 0 || static_cast<float>(expected) == 0) {
        EXPECT_LE(std::fabs(y[i]), 2 * std::numeric_limits<float>::denorm_min()) << x[i];
      } else {
        worst = std::max(worst, ulps(y[i], expected));
      }
    }
  }
  return worst;
}

Function exponential() {
  return moe::kernels::map_kernel<float, moe::kernels::MapKind::exponential>();
}
Function error_function() {
  return moe::kernels::map_kernel<float, moe::kernels::MapKind::error_function>();
}

class Exponential : public test_support::EachLevel {};
MOE_FOR_EACH_LEVEL(Exponential);

TEST_P(Exponential, IsWithinTwoUlp) {
  const double worst = worst_error(exponential(), [](double x) { return std::exp(x); });
  EXPECT_LE(worst, 2);
  EXPECT_GT(worst, 0.4);  // Or nothing was measured.
}

TEST_P(Exponential, HasItsLimits) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const float x[] = {0, -0.0F, infinity, -infinity, 1, 89, -104, 88.72F};
  float y[8];
  exponential()(x, 8, y);
  EXPECT_EQ(y[0], 1);
  EXPECT_EQ(y[1], 1);
  EXPECT_EQ(y[2], infinity);
  EXPECT_EQ(y[3], 0);
  EXPECT_EQ(y[5], infinity);
  EXPECT_EQ(y[6], 0);
  EXPECT_LT(y[7], infinity);
}

TEST_P(Exponential, ErrorFunctionIsWithinFourUlp) {
  const double worst = worst_error(error_function(), [](double x) { return std::erf(x); });
  EXPECT_LE(worst, 4);
  EXPECT_GT(worst, 0.4);
}

TEST_P(Exponential, GivesTheSameBitsInBodiesAndTails) {
  std::vector<float> x(67);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = 0.37F * static_cast<float>(i) - 11;
  for (const Function function : {exponential(), error_function()}) {
    std::vector<float> together(x.size());
    function(x.data(), 67, together.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      float alone = 0;
      function(&x[i], 1, &alone);
      EXPECT_EQ(alone, together[i]) << i;
    }
  }
}

}  // namespace exponential_test
