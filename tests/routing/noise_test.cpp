// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>

#include <gtest/gtest.h>

#include <moe/routing/noise.hpp>

namespace noise_test {

using moe::Index;
using moe::Matrix;
using moe::Noise;

TEST(Noise, HasTheMomentsOfItsDistribution) {
  std::mt19937_64 rng(1);
  const auto moments = [&](Noise noise) {
    Matrix<double> values(500, 400);
    moe::fill_noise(noise, rng, moe::MatrixView<double>(values));
    EXPECT_TRUE(values.allFinite());
    const double mean = values.mean();
    return std::pair{mean, (values.array() - mean).square().mean()};
  };
  // 200,000 draws: six standard errors of the mean, and of the variance with room.
  const auto expect = [&](Noise noise, double mean, double variance) {
    const auto [m, v] = moments(noise);
    EXPECT_NEAR(m, mean, 6 * std::sqrt(variance / 200'000));
    EXPECT_NEAR(v, variance, 0.03 * variance);
  };
  expect(Noise::uniform, 0.5, 1.0 / 12);
  expect(Noise::normal, 0, 1);
  expect(Noise::gumbel, 0.5772156649, 1.6449340668);
}

/// The reverse of mix_bits.
std::uint64_t unmix_bits(std::uint64_t z) {
  z ^= z >> 31 ^ z >> 62;
  z *= 0x319642b2d24d8ec3U;
  z ^= z >> 27 ^ z >> 54;
  z *= 0x96de1b173f119089U;
  return z ^ z >> 30 ^ z >> 60;
}

TEST(Noise, IsFiniteWhereTheUniformNumberIsZero) {
  // The seed whose first number it is.
  const std::uint64_t seed = unmix_bits(0 - 0x9e3779b97f4a7c15U);
  ASSERT_EQ(moe::detail::uniform(seed, 0), 0);
  EXPECT_EQ(moe::detail::draw(moe::Noise::uniform, seed, 0), 0x1p-54);
  EXPECT_NEAR(moe::detail::draw(moe::Noise::gumbel, seed, 0), -std::log(54 * std::log(2)), 1e-12);
  EXPECT_LT(std::fabs(moe::detail::draw(moe::Noise::normal, seed, 0)), 9);
}

TEST(Jitter, MultipliesByFactorsAroundOne) {
  const Matrix<float> x = Matrix<float>::Constant(7, 11, 3);
  Matrix<float> y(7, 11);
  moe::jitter<float>(x, 0.25, 5, y);
  EXPECT_GE(y.minCoeff(), 3 * 0.75F);
  EXPECT_LE(y.maxCoeff(), 3 * 1.25F);
  EXPECT_LT(y.minCoeff(), 3 * 0.8F);
  EXPECT_GT(y.maxCoeff(), 3 * 1.2F);
  Matrix<float> again(7, 11);
  moe::jitter<float>(x, 0.25, 5, again);
  EXPECT_EQ(y, again);
  moe::jitter<float>(x, 0.25, 6, again);
  EXPECT_NE(y, again);
  // Supplied: u = 0 is the least factor, u = 1 the largest.
  const Matrix<float> u = Matrix<float>::Ones(7, 11);
  moe::jitter<float>(x, 0.25, 5, y, u);
  EXPECT_EQ(y, Matrix<float>::Constant(7, 11, 3.75F));
  EXPECT_THROW(moe::jitter<float>(x, 1, 5, y), std::invalid_argument);
  EXPECT_THROW(moe::jitter<float>(x, 0.5, 5, y, u.topRows(3).eval()), moe::ShapeError);
}

}  // namespace noise_test
