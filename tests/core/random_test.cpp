// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>

namespace random_test {

using moe::Index;

// The published generator adds this to its state and mixes; from state 0 it is known to give
// e220a8397b1dcdaf, then 6e789e6aa1b965f4.
TEST(Random, MixesAsSplitmix64Does) {
  constexpr std::uint64_t step = 0x9e3779b97f4a7c15U;
  EXPECT_EQ(moe::detail::mix_bits(step), 0xe220a8397b1dcdafU);
  EXPECT_EQ(moe::detail::mix_bits(2 * step), 0x6e789e6aa1b965f4U);
}

TEST(Random, UniformLiesInTheHalfOpenUnitInterval) {
  std::set<double> values;
  for (std::uint64_t i = 0; i < 10000; ++i) {
    const double u = moe::detail::uniform(42, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ASSERT_EQ(std::ldexp(u, 53), std::floor(std::ldexp(u, 53)));
    values.insert(u);
  }
  // 10^4 of 2^53 values: the chance of any collision is below 10^-8.
  EXPECT_EQ(values.size(), 10000U);
}

TEST(Random, SeedsAndTheirNeighboursGiveOtherStreams) {
  std::set<double> values;
  for (std::uint64_t seed = 0; seed < 100; ++seed)
    for (std::uint64_t i = 0; i < 100; ++i) values.insert(moe::detail::uniform(seed, i));
  EXPECT_EQ(values.size(), 10000U);
}

template <class Scalar>
class FillUniform : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(FillUniform, Scalars);

TYPED_TEST(FillUniform, HasMeanZeroAndTheVarianceOfTheFan) {
  constexpr Index count = 100000;
  constexpr Index fan_in = 48;
  std::vector<TypeParam> values(count);
  moe::detail::fill_uniform(values.data(), count, fan_in, 5);
  const double bound = std::sqrt(3.0 / fan_in);
  double sum = 0;
  double squares = 0;
  for (const TypeParam value : values) {
    // Rounding to Scalar may pass the bound by half a unit in the last place.
    ASSERT_LE(std::fabs(static_cast<double>(value)), bound * (1 + 0x1p-24));
    sum += static_cast<double>(value);
    squares += static_cast<double>(value) * static_cast<double>(value);
  }
  // The mean of n values has deviation sigma / sqrt(n). A uniform variable has fourth moment 9/5
  // sigma^4, so its mean square has deviation sigma^2 sqrt(4/5 / n). Six deviations each.
  const double variance = 1.0 / fan_in;
  EXPECT_NEAR(sum / count, 0, 6 * std::sqrt(variance / count));
  EXPECT_NEAR(squares / count, variance, 6 * variance * std::sqrt(0.8 / count));
}

TYPED_TEST(FillUniform, DependsOnSeedAndPositionOnly) {
  std::vector<TypeParam> shorter(10);
  std::vector<TypeParam> longer(1000);
  std::vector<TypeParam> other(10);
  moe::detail::fill_uniform(shorter.data(), 10, 7, 3);
  moe::detail::fill_uniform(longer.data(), 1000, 7, 3);
  moe::detail::fill_uniform(other.data(), 10, 7, 4);
  EXPECT_TRUE(std::equal(shorter.begin(), shorter.end(), longer.begin()));
  EXPECT_NE(shorter, other);
}

TYPED_TEST(FillUniform, NothingAndNoFanAreLegal) {
  moe::detail::fill_uniform<TypeParam>(nullptr, 0, 4, 1);
  std::vector<TypeParam> values(100);
  moe::detail::fill_uniform(values.data(), 100, 0, 1);
  for (const TypeParam value : values) EXPECT_TRUE(std::isfinite(value));
}

TEST(Random, SeedsAreDrawnFromAnyGenerator) {
  std::mt19937 a(1);
  std::mt19937 b(1);
  EXPECT_EQ(moe::detail::draw_seed(a), moe::detail::draw_seed(b));
  std::minstd_rand narrow(1);
  std::set<std::uint64_t> seeds;
  for (int i = 0; i < 100; ++i) seeds.insert(moe::detail::draw_seed(narrow));
  EXPECT_EQ(seeds.size(), 100U);
  EXPECT_GT(*seeds.rbegin(), std::uint64_t{1} << 60) << "the upper bits are drawn, too";
}

}  // namespace random_test
