// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/losses/logit_losses.hpp>

#include "support/reference.hpp"
#include "support/routings.hpp"

namespace logit_losses_test {

using moe::Index;
using moe::Routing;
using moe::ScoreFunction;
using test_support::balanced;
using test_support::random_logits;
using test_support::route;
using test_support::without_padding;

template <class Scalar>
class LogitLosses : public testing::Test {
 protected:
  static constexpr double eps = std::numeric_limits<Scalar>::epsilon();
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(LogitLosses, Scalars);

TYPED_TEST(LogitLosses, ZLossIsTheMeanSquaredLogSumExp) {
  const auto routing = route<TypeParam>(random_logits(23, 9, 6), 2);
  double expected = 0;
  for (Index t = 0; t < 23; ++t) {
    double sum = 0;
    for (const double z : reference::row_of(routing.logits, t)) sum += std::exp(z);
    expected += std::log(sum) * std::log(sum) / 23;
  }
  // Sums in double of nine exponentials and of 23 squares, and one rounding of the result.
  EXPECT_NEAR(static_cast<double>(moe::losses::z_loss(routing)), expected,
              (this->eps + 100 * 0x1p-53) * expected);
}

TYPED_TEST(LogitLosses, ZLossOfKnownLogits) {
  auto routing = balanced<TypeParam>(8, 2);
  const double log_8 = std::log(8.0);
  EXPECT_NEAR(static_cast<double>(moe::losses::z_loss(routing)), log_8 * log_8,
              2 * this->eps * log_8 * log_8);
  routing.logits.setConstant(10000);  // exp(10000) is infinite in either scalar.
  const double large = (10000 + log_8) * (10000 + log_8);
  EXPECT_NEAR(static_cast<double>(moe::losses::z_loss(routing)), large, 2 * this->eps * large);
  routing.logits.setConstant(-std::numeric_limits<TypeParam>::infinity());
  routing.logits.col(3).setConstant(5);  // An expert that is switched off adds nothing.
  EXPECT_EQ(moe::losses::z_loss(routing), 25);
}

TYPED_TEST(LogitLosses, LogitsThatAreNotFiniteAreDefined) {
  const double infinity = std::numeric_limits<double>::infinity();
  moe::Matrix<double> logits = random_logits(3, 4, 5);  // (T, E)
  logits.row(1).setConstant(-infinity);
  Routing<TypeParam> routing = route<TypeParam>(random_logits(3, 4, 5), 2);
  routing.score_function = ScoreFunction::identity;
  routing.logits = logits.cast<TypeParam>();
  routing.scores = routing.logits;
  EXPECT_FALSE(std::isfinite(moe::losses::z_loss(routing)));
  routing.scores(1, 2) = routing.logits(1, 2) = static_cast<TypeParam>(infinity);
  EXPECT_FALSE(std::isfinite(moe::losses::z_loss(routing)));
  routing.logits(1, 2) = std::numeric_limits<TypeParam>::quiet_NaN();
  EXPECT_FALSE(std::isfinite(moe::losses::z_loss(routing)));
  // Padding does not count.
  const std::vector<std::uint8_t> mask{1, 0, 1};
  EXPECT_TRUE(std::isfinite(moe::losses::z_loss(routing, mask)));
}

TYPED_TEST(LogitLosses, PaddingCountsNowhere) {
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  auto routing = route<TypeParam>(random_logits(5, 4, 3), 2);
  const std::vector<std::uint8_t> mask{1, 0, 255, 0, 1};
  for (const Index t : {1, 3}) {
    routing.scores.row(t).setConstant(nan);
    routing.logits.row(t).setConstant(nan);
  }
  const Routing<TypeParam> part = without_padding(routing, mask);
  EXPECT_EQ(moe::losses::z_loss(routing, mask), moe::losses::z_loss(part));
  EXPECT_EQ(moe::losses::mean_entropy(routing, mask), moe::losses::mean_entropy(part));
  const std::vector<std::uint8_t> none(5, 0);
  EXPECT_EQ(moe::losses::z_loss(routing, none), 0);
  EXPECT_EQ(moe::losses::mean_entropy(routing, none), 0);
}

TYPED_TEST(LogitLosses, RefusesMasksAndRoutingsThatDoNotFit) {
  auto routing = route<TypeParam>(random_logits(3, 4, 5), 2);
  const std::vector<std::uint8_t> mask(2, 1);
  EXPECT_THROW(moe::losses::z_loss(routing, mask), moe::ShapeError);
  EXPECT_THROW(moe::losses::mean_entropy(routing, mask), moe::ShapeError);
  routing.logits.resize(0, 0);
  EXPECT_THROW(moe::losses::z_loss(routing), std::invalid_argument);
  EXPECT_EQ(moe::losses::z_loss(route<TypeParam>(moe::Matrix<double>(0, 4), 2)), 0);
}

TYPED_TEST(LogitLosses, MeanEntropyHasItsEnds) {
  auto routing = balanced<TypeParam>(8, 2);
  EXPECT_NEAR(static_cast<double>(moe::losses::mean_entropy(routing)), -std::log(8.0),
              4 * this->eps);
  routing.scores.setZero();
  routing.scores.col(3).setOnes();
  EXPECT_EQ(moe::losses::mean_entropy(routing), 0);
}

}  // namespace logit_losses_test
