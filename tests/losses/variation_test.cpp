// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/losses/variation.hpp>

#include "support/reference.hpp"
#include "support/routings.hpp"

namespace variation_test {

using moe::Index;
using test_support::balanced;
using test_support::known_routing;
using test_support::random_logits;
using test_support::route;
using test_support::without_padding;

using moe::losses::Variance;

template <class Scalar>
class Variation : public testing::Test {
 protected:
  static constexpr double eps = std::numeric_limits<Scalar>::epsilon();
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Variation, Scalars);

TYPED_TEST(Variation, ImportanceIsTheSquaredVariationOfTheWeights) {
  auto routing = known_routing<TypeParam>();
  reference::Values sums(4, 0.0);
  for (Index t = 0; t < 4; ++t)
    for (Index k = 0; k < 2; ++k)
      sums[static_cast<std::size_t>(routing.experts(t, k))] +=
          static_cast<double>(routing.weights(t, k));
  const double mean = (sums[0] + sums[1] + sums[2] + sums[3]) / 4;
  double variance = 0;
  for (const double sum : sums) variance += (sum - mean) * (sum - mean) / 4;
  const double expected = variance / (mean * mean + 1e-10);
  // Some thirty operations in double, and one rounding of the result.
  EXPECT_NEAR(static_cast<double>(moe::losses::importance(routing)), expected,
              (this->eps + 64 * 0x1p-53) * expected);

  routing.weights.setOnes();  // Now of the loads: variance 1.5, mean 2.
  EXPECT_NEAR(static_cast<double>(moe::losses::importance(routing)), 1.5 / (4 + 1e-10),
              2 * this->eps * 0.375);
}

TYPED_TEST(Variation, ImportanceAtBestAndAtWorst) {
  auto routing = balanced<TypeParam>(8, 2);
  EXPECT_EQ(moe::losses::importance(routing), 0);
  routing.experts.setConstant(5);
  // One expert has all 16: mean 2, variance 28.
  EXPECT_NEAR(static_cast<double>(moe::losses::importance(routing)), 28 / (4 + 1e-10),
              2 * this->eps * 7);
  routing.weights.setZero();
  EXPECT_EQ(moe::losses::importance(routing), 0);
}

TYPED_TEST(Variation, UnbiasedIsLargerByTheRatioOfTheCounts) {
  const auto routing = known_routing<TypeParam>();
  const double population = static_cast<double>(moe::losses::importance(routing));
  const double unbiased = static_cast<double>(moe::losses::importance(routing, Variance::unbiased));
  EXPECT_NEAR(population, unbiased * 3 / 4, 4 * this->eps * population);
  // Of the loads 3, 3, 2, 0.
  const moe::Vector<double> loads = (moe::Vector<double>(4) << 3, 3, 2, 0).finished();
  EXPECT_NEAR(moe::losses::variation(loads), .375, 1e-10);
  EXPECT_NEAR(moe::losses::variation(loads, Variance::unbiased), .5, 1e-10);
  EXPECT_EQ(moe::losses::variation(moe::Vector<double>::Ones(1)), 0);
}

TYPED_TEST(Variation, PaddingCountsNowhere) {
  auto routing = route<TypeParam>(random_logits(5, 4, 3), 2);
  const std::vector<std::uint8_t> mask{1, 0, 255, 0, 1};
  for (const Index t : {1, 3}) routing.weights.row(t).setConstant(1000);
  EXPECT_EQ(moe::losses::importance(routing, Variance::population, mask),
            moe::losses::importance(without_padding(routing, mask)));
  const std::vector<std::uint8_t> wrong(4, 1);
  EXPECT_THROW(moe::losses::importance(routing, Variance::population, wrong), moe::ShapeError);
  routing.experts(2, 1) = 4;
  EXPECT_THROW(moe::losses::importance(routing), std::invalid_argument);
}

TYPED_TEST(Variation, SmoothLoadIsTheChanceToBeChosenAgain) {
  using Matrix = moe::Matrix<TypeParam>;
  const Matrix clean = (Matrix(1, 4) << 1, 0.5, 0, -1).finished();
  const Matrix noisy = (Matrix(1, 4) << 0.25, 1.5, 0.375, -2).finished();
  const Matrix deviation = (Matrix(1, 4) << 1, 2, 0.5, 3).finished();
  const auto load = moe::losses::smooth_load(clean, noisy, deviation, 2);
  for (Index e = 0; e < 4; ++e) {
    // Among the others, the second best noisy logit is what e must exceed.
    std::vector<double> others;
    for (Index i = 0; i < 4; ++i)
      if (i != e) others.push_back(static_cast<double>(noisy(0, i)));
    std::sort(others.begin(), others.end(), std::greater<>());
    const double z =
        (static_cast<double>(clean(0, e)) - others[1]) / static_cast<double>(deviation(0, e));
    EXPECT_NEAR(load[e], 0.5 * std::erfc(-z / std::sqrt(2.0)), 4 * this->eps) << e;
  }
  // With the K-th best of all as the threshold, an expert that is in competes with itself.
  const auto kth =
      moe::losses::smooth_load(clean, noisy, deviation, 2, moe::losses::LoadThreshold::kth);
  EXPECT_NEAR(kth[1], 0.5 * std::erfc(-((0.5 - 0.375) / 2) / std::sqrt(2.0)), 4 * this->eps);
  EXPECT_NEAR(kth[0], load[0], 4 * this->eps);
  EXPECT_EQ(moe::losses::smooth_load(clean, noisy, deviation, 4),
            moe::Vector<double>::Ones(4).eval());
  EXPECT_THROW(moe::losses::smooth_load(clean, noisy, deviation, 5), std::invalid_argument);
}

TEST(VariationSlopes, OfMeansNextToNothing) {
  // The mean's square is as small as what is added to it.
  moe::Vector<double> values{{0.5e-5, 1.5e-5, 2e-5, 0}};
  const double squares = (0.25 + 0.25 + 1 + 1) * 1e-10;
  EXPECT_NEAR(moe::losses::variation(values), squares / 4 / 2e-10, 1e-12);
  const moe::Vector<double> slopes = moe::losses::variation_slopes(values);
  for (Index i = 0; i < values.size(); ++i) {
    const double kept = values[i];
    const double h = 1e-10;
    values[i] = kept + h;
    const double above = moe::losses::variation(values);
    values[i] = kept - h;
    const double below = moe::losses::variation(values);
    values[i] = kept;
    EXPECT_NEAR(slopes[i] / ((above - below) / (2 * h)), 1, 1e-5) << i;
  }
}

TEST(VariationConversion, IsThatOfTheTwoVariances) {
  const moe::Vector<double> values = (moe::Vector<double>(4) << 1, 2, 4, 9).finished();
  const double population = moe::losses::variation(values, Variance::population);
  const double unbiased = moe::losses::variation(values, Variance::unbiased);
  EXPECT_NEAR(moe::losses::convert(unbiased, Variance::unbiased, Variance::population, 4),
              population, 1e-15);
  EXPECT_NEAR(moe::losses::convert(population, Variance::population, Variance::unbiased, 4),
              unbiased, 1e-15);
  EXPECT_EQ(moe::losses::convert(0.5, Variance::unbiased, Variance::unbiased, 4), 0.5);
  EXPECT_THROW((void)moe::losses::convert(1, Variance::unbiased, Variance::population, 1),
               std::invalid_argument);
}

TEST(LoadLoss, IsTheVariationOfTheSmoothLoadOfTheTokensThatCount) {
  const moe::Matrix<double> clean = random_logits(6, 4, 1);
  const moe::Matrix<double> noisy = clean + 0.3 * random_logits(6, 4, 2);
  const moe::Matrix<double> deviation = moe::Matrix<double>::Constant(6, 4, 0.3);
  const std::uint8_t mask[] = {1, 1, 1, 1, 0, 0};
  const auto all = moe::losses::smooth_load(clean, noisy, deviation, 2);
  EXPECT_EQ(moe::losses::load(clean, noisy, deviation, 2), moe::losses::variation(all));
  const moe::Matrix<double> first = clean.topRows(4);
  EXPECT_NEAR(moe::losses::load(clean, noisy, deviation, 2, Variance::population,
                                moe::losses::LoadThreshold::excluding, mask),
              moe::losses::load(first, noisy.topRows(4), deviation.topRows(4), 2), 1e-15);
}

}  // namespace variation_test
