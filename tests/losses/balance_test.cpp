// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/losses/balance.hpp>

#include "support/reference.hpp"

namespace {

using moe::Index;
using moe::Routing;
using moe::ScoreFunction;
using moe::losses::BalanceScale;

constexpr BalanceScale scales[] = {BalanceScale::per_choice, BalanceScale::per_token,
                                   BalanceScale::first_choice, BalanceScale::gshard_paper};

/// The routing of logits (T, E): the K best and their scores as weights.
template <class Scalar>
Routing<Scalar> route(const moe::Matrix<double>& logits, Index top_k,
                      ScoreFunction function = ScoreFunction::softmax) {
  Routing<Scalar> routing;
  routing.resize(logits.rows(), logits.cols(), top_k, {});
  routing.score_function = function;
  routing.logits = logits.cast<Scalar>();
  for (Index t = 0; t < logits.rows(); ++t) {
    const reference::Values z = reference::row_of(routing.logits, t);
    const reference::Values scores = reference::scores(function, z);
    const std::vector<Index> chosen = reference::top_k(z, top_k);
    for (Index e = 0; e < logits.cols(); ++e)
      routing.scores(t, e) = static_cast<Scalar>(scores[static_cast<std::size_t>(e)]);
    for (Index k = 0; k < top_k; ++k) {
      const Index expert = chosen[static_cast<std::size_t>(k)];
      routing.experts(t, k) = static_cast<moe::ExpertIndex>(expert);
      routing.weights(t, k) = routing.scores(t, expert);
    }
  }
  return routing;
}

moe::Matrix<double> random_logits(Index tokens, Index num_experts, std::uint64_t seed) {
  moe::Matrix<double> logits(tokens, num_experts);
  moe::detail::fill_uniform(logits.data(), logits.size(), 1, seed);
  return logits;
}

/// Every token chooses K neighbours, one further than the token before, with equal scores.
template <class Scalar>
Routing<Scalar> balanced(Index num_experts, Index top_k) {
  Routing<Scalar> routing;
  routing.resize(2 * num_experts, num_experts, top_k, {});
  for (Index t = 0; t < routing.tokens(); ++t)
    for (Index k = 0; k < top_k; ++k)
      routing.experts(t, k) = static_cast<moe::ExpertIndex>((t + k) % num_experts);
  routing.weights.setConstant(1 / static_cast<Scalar>(top_k));
  routing.scores.setConstant(1 / static_cast<Scalar>(num_experts));
  routing.logits.setZero();
  return routing;
}

/// The tokens for which `mask` is not 0.
template <class Scalar>
Routing<Scalar> without_padding(const Routing<Scalar>& routing,
                                const std::vector<std::uint8_t>& mask) {
  std::vector<Index> kept;
  for (Index t = 0; t < routing.tokens(); ++t)
    if (mask[static_cast<std::size_t>(t)] != 0) kept.push_back(t);
  Routing<Scalar> part = routing;
  part.resize(static_cast<Index>(kept.size()), routing.num_experts, routing.top_k(), {});
  for (Index i = 0; i < part.tokens(); ++i) {
    const Index t = kept[static_cast<std::size_t>(i)];
    part.experts.row(i) = routing.experts.row(t);
    part.weights.row(i) = routing.weights.row(t);
    part.logits.row(i) = routing.logits.row(t);
    part.scores.row(i) = routing.scores.row(t);
  }
  return part;
}

/// sum over e of share(e) times mean probability(e), times the scale's factor.
template <class Scalar>
double naive_balance(const Routing<Scalar>& routing, BalanceScale scale) {
  const bool first = scale == BalanceScale::first_choice || scale == BalanceScale::gshard_paper;
  const auto tokens = static_cast<double>(routing.tokens());
  const auto experts = static_cast<double>(routing.num_experts);
  double loss = 0;
  for (Index e = 0; e < routing.num_experts; ++e) {
    double choices = 0;
    double probability = 0;
    for (Index t = 0; t < routing.tokens(); ++t) {
      for (Index k = 0; k < (first ? 1 : routing.top_k()); ++k)
        choices += routing.experts(t, k) == e ? 1 : 0;
      reference::Values scores = reference::row_of(routing.scores, t);
      if (routing.score_function == ScoreFunction::identity)
        scores = reference::scores(ScoreFunction::softmax, scores);
      double sum = 0;
      for (const double score : scores) sum += score;
      probability += scores[static_cast<std::size_t>(e)] / sum;
    }
    loss += choices / tokens * probability / tokens;
  }
  if (scale == BalanceScale::gshard_paper) return loss / experts;
  if (scale == BalanceScale::per_choice)
    return loss * experts / static_cast<double>(routing.top_k());
  return loss * experts;
}

template <class Scalar>
class Balance : public testing::Test {
 protected:
  static constexpr double eps = std::numeric_limits<Scalar>::epsilon();

  static double load_balancing(const Routing<Scalar>& routing, BalanceScale scale,
                               moe::losses::TokenMask mask = {}) {
    return static_cast<double>(moe::losses::load_balancing(routing, scale, mask));
  }

  /// Four tokens, four experts, two choices: loads 3, 3, 2, 0.
  static Routing<Scalar> known() {
    moe::Matrix<double> logits(4, 4);
    logits << 2, 1, 0, -1, 1.5, .5, 0, 0, 2, 0, 1, 0, 0, 1, 2, .5;
    return route<Scalar>(logits, 2);
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Balance, Scalars);

TYPED_TEST(Balance, GivesTheKnownResults) {
  const Routing<TypeParam> routing = this->known();
  const auto expect = [&](BalanceScale scale, double value) {
    // Half a unit of the sixth decimal; the scores and the result are rounded once each.
    EXPECT_NEAR(this->load_balancing(routing, scale), value, 0.5001e-6 + 2 * this->eps * value);
  };
  expect(BalanceScale::per_choice, 1.235674);
  expect(BalanceScale::per_token, 2.471348);
  expect(BalanceScale::first_choice, 1.666350);
  expect(BalanceScale::gshard_paper, .104147);
  EXPECT_EQ(moe::losses::load_balancing(routing),
            moe::losses::load_balancing(routing, BalanceScale::per_choice));
}

TYPED_TEST(Balance, AgreesWithTheReference) {
  for (const ScoreFunction function : {ScoreFunction::softmax, ScoreFunction::sigmoid,
                                       ScoreFunction::sqrt_softplus, ScoreFunction::identity}) {
    for (const Index tokens : {1, 2, 37}) {
      for (const Index num_experts : {1, 2, 9}) {
        for (Index k = 1; k <= num_experts; k += 3) {
          const auto routing = route<TypeParam>(random_logits(tokens, num_experts, 1), k, function);
          for (const BalanceScale scale : scales) {
            const double expected = naive_balance(routing, scale);
            // Both sum T E positive terms in double, and the result is rounded once.
            const double terms = static_cast<double>(tokens * num_experts);
            EXPECT_NEAR(this->load_balancing(routing, scale), expected,
                        (this->eps + 2 * (terms + 8) * 0x1p-53) * expected);
          }
        }
      }
    }
  }
}

TYPED_TEST(Balance, AtBalanceEveryScaleHasItsValue) {
  for (const Index num_experts : {1, 4, 7}) {
    for (Index k = 1; k <= num_experts; k += 2) {
      const auto routing = balanced<TypeParam>(num_experts, k);
      const double experts = static_cast<double>(num_experts);
      const auto expect = [&](BalanceScale scale, double value) {
        // The E scores of a token and the result are rounded.
        EXPECT_NEAR(this->load_balancing(routing, scale), value, 2 * this->eps * value);
      };
      expect(BalanceScale::per_choice, 1);
      expect(BalanceScale::per_token, static_cast<double>(k));
      expect(BalanceScale::first_choice, 1);
      expect(BalanceScale::gshard_paper, 1 / (experts * experts));
    }
  }
}

TYPED_TEST(Balance, AtWorstItIsTheNumberOfExperts) {
  auto routing = balanced<TypeParam>(6, 1);
  routing.experts.setConstant(4);
  routing.scores.setZero();
  routing.scores.col(4).setOnes();
  EXPECT_EQ(this->load_balancing(routing, BalanceScale::per_choice), 6);
  EXPECT_EQ(this->load_balancing(routing, BalanceScale::first_choice), 6);
}

TYPED_TEST(Balance, ShrinkingAllSigmoidScoresGainsNothing) {
  auto routing = route<TypeParam>(random_logits(20, 8, 2), 2, ScoreFunction::sigmoid);
  const TypeParam before = moe::losses::load_balancing(routing);
  routing.scores *= TypeParam(0x1p-10);  // Exact, so that the quotients stay the same.
  EXPECT_EQ(moe::losses::load_balancing(routing), before);
}

TYPED_TEST(Balance, PaddingCountsNowhere) {
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  auto routing = route<TypeParam>(random_logits(5, 4, 3), 2);
  const std::vector<std::uint8_t> mask{1, 0, 255, 0, 1};
  for (const Index t : {1, 3}) {
    routing.scores.row(t).setConstant(nan);
    routing.logits.row(t).setConstant(nan);
    routing.weights.row(t).setConstant(1000);
  }
  const Routing<TypeParam> part = without_padding(routing, mask);
  ASSERT_EQ(part.tokens(), 3);
  for (const BalanceScale scale : scales)
    EXPECT_EQ(moe::losses::load_balancing(routing, scale, mask),
              moe::losses::load_balancing(part, scale));
  EXPECT_EQ(moe::losses::z_loss(routing, mask), moe::losses::z_loss(part));
  EXPECT_EQ(moe::losses::importance(routing, mask), moe::losses::importance(part));
}

TYPED_TEST(Balance, NothingThatCountsGivesZero) {
  const auto routing = route<TypeParam>(random_logits(3, 4, 4), 2);
  const auto none = route<TypeParam>(moe::Matrix<double>(0, 4), 2);
  const std::vector<std::uint8_t> mask(3, 0);
  for (const BalanceScale scale : scales) {
    EXPECT_EQ(moe::losses::load_balancing(routing, scale, mask), 0);
    EXPECT_EQ(moe::losses::load_balancing(none, scale), 0);
  }
  EXPECT_EQ(moe::losses::z_loss(routing, mask), 0);
  EXPECT_EQ(moe::losses::z_loss(none), 0);
  EXPECT_EQ(moe::losses::importance(routing, mask), 0);
  EXPECT_EQ(moe::losses::importance(none), 0);
}

TYPED_TEST(Balance, RefusesMasksAndRoutingsThatDoNotFit) {
  auto routing = route<TypeParam>(random_logits(3, 4, 5), 2);
  for (const std::size_t length : {1U, 2U, 4U}) {
    const std::vector<std::uint8_t> mask(length, 1);
    EXPECT_THROW(moe::losses::load_balancing(routing, BalanceScale::per_choice, mask),
                 moe::ShapeError);
    EXPECT_THROW(moe::losses::z_loss(routing, mask), moe::ShapeError);
    EXPECT_THROW(moe::losses::importance(routing, mask), moe::ShapeError);
  }
  auto broken = routing;
  broken.experts(2, 1) = 4;
  EXPECT_THROW(moe::losses::load_balancing(broken), std::invalid_argument);
  EXPECT_THROW(moe::losses::importance(broken), std::invalid_argument);
  routing.logits.resize(0, 0);
  EXPECT_THROW(moe::losses::z_loss(routing), std::invalid_argument);
  EXPECT_NO_THROW(moe::losses::load_balancing(routing));
  routing.scores.resize(0, 0);
  EXPECT_THROW(moe::losses::load_balancing(routing), std::invalid_argument);
  EXPECT_NO_THROW(moe::losses::importance(routing));
}

TYPED_TEST(Balance, ZLossIsTheMeanSquaredLogSumExp) {
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

TYPED_TEST(Balance, ZLossOfKnownLogits) {
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

TYPED_TEST(Balance, ImportanceIsTheSquaredVariationOfTheWeights) {
  auto routing = this->known();
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

TYPED_TEST(Balance, ImportanceAtBestAndAtWorst) {
  auto routing = balanced<TypeParam>(8, 2);
  EXPECT_EQ(moe::losses::importance(routing), 0);
  routing.experts.setConstant(5);
  // One expert has all 16: mean 2, variance 28.
  EXPECT_NEAR(static_cast<double>(moe::losses::importance(routing)), 28 / (4 + 1e-10),
              2 * this->eps * 7);
  routing.weights.setZero();
  EXPECT_EQ(moe::losses::importance(routing), 0);
}

TYPED_TEST(Balance, LogitsThatAreNotFiniteAreDefined) {
  const double infinity = std::numeric_limits<double>::infinity();
  moe::Matrix<double> logits = random_logits(3, 4, 5);  // (T, E)
  logits.row(1).setConstant(-infinity);
  Routing<TypeParam> routing = route<TypeParam>(random_logits(3, 4, 5), 2);
  routing.score_function = ScoreFunction::identity;
  routing.logits = logits.cast<TypeParam>();
  routing.scores = routing.logits;
  EXPECT_TRUE(std::isfinite(moe::losses::load_balancing(routing)));
  EXPECT_FALSE(std::isfinite(moe::losses::z_loss(routing)));
  routing.scores(1, 2) = routing.logits(1, 2) = static_cast<TypeParam>(infinity);
  EXPECT_TRUE(std::isfinite(moe::losses::load_balancing(routing)));
  EXPECT_FALSE(std::isfinite(moe::losses::z_loss(routing)));
  routing.logits(1, 2) = std::numeric_limits<TypeParam>::quiet_NaN();
  EXPECT_FALSE(std::isfinite(moe::losses::z_loss(routing)));
  // Padding does not count.
  const std::vector<std::uint8_t> mask{1, 0, 1};
  EXPECT_TRUE(std::isfinite(moe::losses::z_loss(routing, mask)));
}

}  // namespace
