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
#include <moe/losses/probabilities.hpp>

#include "support/reference.hpp"
#include "support/routings.hpp"

namespace balance_test {

using moe::Index;
using moe::Routing;
using moe::ScoreFunction;
using moe::losses::BalanceScale;
using test_support::balanced;
using test_support::known_routing;
using test_support::random_logits;
using test_support::route;
using test_support::without_padding;

constexpr BalanceScale scales[] = {BalanceScale::per_choice, BalanceScale::per_token,
                                   BalanceScale::first_choice, BalanceScale::gshard_paper,
                                   BalanceScale::unscaled};

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
  if (scale == BalanceScale::unscaled) return loss;
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
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Balance, Scalars);

TYPED_TEST(Balance, GivesTheKnownResults) {
  const Routing<TypeParam> routing = known_routing<TypeParam>();
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
        // The E scores of a token and the result are rounded, and sums of 2 E and of E terms.
        EXPECT_NEAR(this->load_balancing(routing, scale), value,
                    (2 * this->eps + 3 * experts * 0x1p-53) * value);
      };
      expect(BalanceScale::per_choice, 1);
      expect(BalanceScale::per_token, static_cast<double>(k));
      expect(BalanceScale::first_choice, 1);
      expect(BalanceScale::gshard_paper, 1 / (experts * experts));
      expect(BalanceScale::unscaled, static_cast<double>(k) / experts);
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
}

TYPED_TEST(Balance, NothingThatCountsGivesZero) {
  const auto routing = route<TypeParam>(random_logits(3, 4, 4), 2);
  const auto none = route<TypeParam>(moe::Matrix<double>(0, 4), 2);
  const std::vector<std::uint8_t> mask(3, 0);
  for (const BalanceScale scale : scales) {
    EXPECT_EQ(moe::losses::load_balancing(routing, scale, mask), 0);
    EXPECT_EQ(moe::losses::load_balancing(none, scale), 0);
  }
}

TYPED_TEST(Balance, RefusesMasksAndRoutingsThatDoNotFit) {
  auto routing = route<TypeParam>(random_logits(3, 4, 5), 2);
  for (const std::size_t length : {1U, 2U, 4U}) {
    const std::vector<std::uint8_t> mask(length, 1);
    EXPECT_THROW(moe::losses::load_balancing(routing, BalanceScale::per_choice, mask),
                 moe::ShapeError);
  }
  auto broken = routing;
  broken.experts(2, 1) = 4;
  EXPECT_THROW(moe::losses::load_balancing(broken), std::invalid_argument);
  EXPECT_NO_THROW(moe::losses::load_balancing(routing));
  routing.scores.resize(0, 0);
  EXPECT_THROW(moe::losses::load_balancing(routing), std::invalid_argument);
}

TYPED_TEST(Balance, OfGroupsIsTheMeanOfTheGroups) {
  const auto routing = route<TypeParam>(random_logits(12, 5, 7), 2);
  const auto part = [&](Index begin, Index size) {
    std::vector<std::uint8_t> mask(12, 0);
    for (Index t = begin; t < begin + size; ++t) mask[static_cast<std::size_t>(t)] = 1;
    return this->load_balancing(routing, BalanceScale::per_choice, mask);
  };
  const auto by = [&](Index group, moe::losses::TokenMask mask = {}) {
    return static_cast<double>(
        moe::losses::load_balancing_by_group(routing, group, BalanceScale::per_choice, mask));
  };
  EXPECT_NEAR(by(4), (part(0, 4) + part(4, 4) + part(8, 4)) / 3, 4 * this->eps);
  EXPECT_NEAR(by(5), (part(0, 5) + part(5, 5) + part(10, 2)) / 3, 4 * this->eps);
  EXPECT_EQ(by(100), part(0, 12));
  // A group of padding is no group.
  std::vector<std::uint8_t> mask(12, 1);
  for (std::size_t t = 4; t < 8; ++t) mask[t] = 0;
  EXPECT_NEAR(by(4, mask), (part(0, 4) + part(8, 4)) / 2, 4 * this->eps);
  EXPECT_THROW(by(0), std::invalid_argument);
}

TYPED_TEST(Balance, OfLayersCountsThemAsOneLongBatch) {
  const auto logits = random_logits(14, 5, 8);
  const auto both = route<TypeParam>(logits, 2);
  const auto first = route<TypeParam>(logits.topRows(7), 2);
  const auto second = route<TypeParam>(logits.bottomRows(7), 2);
  const std::vector<const Routing<TypeParam>*> layers{&first, &second};
  EXPECT_EQ(moe::losses::load_balancing_of_layers<TypeParam>(layers),
            moe::losses::load_balancing(both, BalanceScale::per_token));
  EXPECT_EQ(moe::losses::load_balancing_of_layers<TypeParam>({}), 0);
}

TYPED_TEST(Balance, OfAGlobalBatchTakesItsChoicesAndTheProbabilitiesOfAPart) {
  const auto logits = random_logits(10, 4, 9);
  const auto first = route<TypeParam>(logits.topRows(4), 2);
  const auto second = route<TypeParam>(logits.bottomRows(6), 2);
  moe::losses::BalanceSums global = moe::losses::balance_sums(first);
  global += moe::losses::balance_sums(second);
  const auto all = moe::losses::balance_sums(route<TypeParam>(logits, 2));
  EXPECT_EQ(global.tokens, 10);
  EXPECT_EQ(global.choices, all.choices);
  double expected = 0;
  for (Index e = 0; e < 4; ++e) {
    double probability = 0;
    for (Index t = 0; t < 4; ++t) probability += static_cast<double>(first.scores(t, e)) / 4;
    expected += 4.0 / (2 * 10) * all.choices[e] * probability;
  }
  EXPECT_NEAR(moe::losses::load_balancing(global, moe::losses::balance_sums(first)), expected,
              1e-14 * expected);
  EXPECT_EQ(moe::losses::load_balancing(moe::losses::BalanceSums{}), 0);
}

TYPED_TEST(Balance, UnusedSlotsAreNoChoices) {
  auto routing = known_routing<TypeParam>();
  const auto before = moe::losses::balance_sums(routing);
  const Index expert = routing.experts(2, 1);
  routing.experts(2, 1) = moe::no_expert;
  routing.weights(2, 1) = 0;
  const auto after = moe::losses::balance_sums(routing);
  EXPECT_EQ(after.choices[expert], before.choices[expert] - 1);
  EXPECT_EQ(after.choices.sum(), 7);
  EXPECT_EQ(after.probabilities, before.probabilities);
}

TEST(LoadBalancing, SumsAddUpPartByPart) {
  const auto two = [](double a, double b) { return moe::Vector<double>{{a, b}}; };
  moe::losses::BalanceSums sums;
  sums += {2, 3, two(1, 5), two(2, 1), two(0.5, 2.5)};
  sums += {2, 4, two(3, 5), two(1, 3), two(1.5, 2.5)};
  EXPECT_EQ(sums.tokens, 7);
  EXPECT_EQ(sums.choices, two(4, 10));
  EXPECT_EQ(sums.first_choices, two(3, 4));
  EXPECT_EQ(sums.probabilities, two(2, 5));
}

TEST(TokenProbabilities, OfScoresThatAreNextToNothing) {
  moe::Routing<double> routing;
  routing.resize(1, 2, 1, {});
  routing.score_function = moe::ScoreFunction::sigmoid;
  routing.scores << 1e-20, 3e-20;
  moe::Vector<double> probability(2);
  moe::detail::token_probabilities(routing, 0, probability);
  EXPECT_NEAR(probability[0], 0.2, 1e-15);
  EXPECT_NEAR(probability[1], 0.6, 1e-15);
}

TEST(LoadBalancing, RefusesSumsThatAreNotOfOneLayer) {
  moe::losses::BalanceSums sums;
  sums.top_k = 1;
  sums.tokens = 2;
  sums.choices = moe::Vector<double>::Ones(3);
  EXPECT_THROW((void)moe::losses::load_balancing(sums), moe::ShapeError);
  sums.first_choices = sums.probabilities = sums.choices;
  EXPECT_NO_THROW((void)moe::losses::load_balancing(sums));
  sums.top_k = 0;
  EXPECT_THROW((void)moe::losses::load_balancing(sums), std::invalid_argument);
}

}  // namespace balance_test
