// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/losses/metrics.hpp>
#include <moe/routing/plan.hpp>

#include "support/routings.hpp"

namespace metrics_test {

using moe::Index;
using moe::Routing;
namespace metrics = moe::metrics;

using Load = std::vector<Index>;
constexpr double eps = std::numeric_limits<double>::epsilon();

template <class Scalar>
class Metrics : public testing::Test {
 protected:
  /// Four tokens with two choices: loads 3, 3, 2, 0.
  static Routing<Scalar> known() {
    Routing<Scalar> routing;
    routing.resize(4, 4, 2, {});
    routing.experts << 0, 1, 0, 1, 0, 2, 2, 1;
    routing.weights.setConstant(Scalar(0.5));
    routing.logits.setZero();
    routing.scores.setConstant(Scalar(0.25));
    return routing;
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Metrics, Scalars);

TYPED_TEST(Metrics, ExpertLoadCountsEveryChoice) {
  Routing<TypeParam> routing = this->known();
  const Load load = metrics::expert_load(routing);
  EXPECT_EQ(load, (Load{3, 3, 2, 0}));
  EXPECT_EQ(std::accumulate(load.begin(), load.end(), Index{0}), 8);
  const std::vector<std::uint8_t> mask{1, 0, 0, 1};
  EXPECT_EQ(metrics::expert_load(routing, mask), (Load{1, 2, 1, 0})) << "0 and 1, 2 and 1";
  EXPECT_THROW(metrics::expert_load(routing, std::vector<std::uint8_t>(3, 1)), moe::ShapeError);
  routing.resize(0, 4, 2, {});
  EXPECT_EQ(metrics::expert_load(routing), (Load{0, 0, 0, 0}));
  routing = this->known();
  routing.experts(3, 1) = -1;
  EXPECT_THROW(metrics::expert_load(routing), std::invalid_argument);
}

TEST(MaxViolation, IsTheLargestLoadOverTheMean) {
  EXPECT_EQ(metrics::max_violation(Load{3, 3, 2, 0}), 0.5);
  EXPECT_EQ(metrics::max_violation(Load{5, 5, 5}), 0);
  EXPECT_EQ(metrics::max_violation(Load{0, 0, 9, 0}), 3);
  EXPECT_EQ(metrics::max_violation(Load{7}), 0);
  EXPECT_EQ(metrics::max_violation(Load{0, 0}), 0);
  EXPECT_EQ(metrics::max_violation(Load{}), 0);
}

TEST(CoefficientOfVariation, IsTheDeviationOverTheMean) {
  // A square root, a division and exact sums.
  EXPECT_NEAR(metrics::coefficient_of_variation(Load{3, 3, 2, 0}), std::sqrt(0.375), 2 * eps);
  EXPECT_EQ(metrics::coefficient_of_variation(Load{5, 5, 5, 5}), 0);
  EXPECT_NEAR(metrics::coefficient_of_variation(Load{0, 8, 0, 0}), std::sqrt(3.0), 4 * eps);
  EXPECT_EQ(metrics::coefficient_of_variation(Load{0, 0}), 0);
  EXPECT_EQ(metrics::coefficient_of_variation(Load{}), 0);
}

TEST(LoadEntropy, IsThatOfTheShares) {
  const double expected = -2 * 0.375 * std::log(0.375) - 0.25 * std::log(0.25);
  // Three logarithms and products, and their sum.
  EXPECT_NEAR(metrics::load_entropy(Load{3, 3, 2, 0}), expected, 8 * eps * expected);
  EXPECT_NEAR(metrics::load_entropy(Load{6, 6, 6, 6}), std::log(4.0), 8 * eps * std::log(4.0));
  EXPECT_EQ(metrics::load_entropy(Load{0, 6, 0}), 0);
  EXPECT_EQ(metrics::load_entropy(Load{0, 0}), 0);
  EXPECT_EQ(metrics::load_entropy(Load{}), 0);
}

/// -p ln(p + 1e-9).
double term(double p) {
  return -p * std::log(p + 1e-9);
}

TYPED_TEST(Metrics, RouterEntropyIsTheMeanOverTheTokens) {
  Routing<TypeParam> routing = this->known();
  routing.scores << TypeParam(0.5), TypeParam(0.25), TypeParam(0.25), 0,   //
      TypeParam(0.25), TypeParam(0.25), TypeParam(0.25), TypeParam(0.25),  //
      0, 0, 1, 0,                                                          //
      0, TypeParam(0.5), 0, TypeParam(0.5);
  const double expected = (3 * term(0.5) + 6 * term(0.25) + term(1)) / 4;
  // The scores are exact; each of ten terms and sums rounds a few times.
  EXPECT_NEAR(metrics::router_entropy(routing), expected, 20 * eps * expected);
}

TYPED_TEST(Metrics, RouterEntropyOfScoresThatAreNoDistribution) {
  Routing<TypeParam> routing = this->known();
  routing.score_function = moe::ScoreFunction::sigmoid;
  for (const double score : {0.125, 0.75, 1.0}) {
    routing.scores.setConstant(static_cast<TypeParam>(score));
    const double expected = 4 * term(0.25);
    EXPECT_NEAR(metrics::router_entropy(routing), expected, 20 * eps * expected);
  }
}

// Identity scores are logits: they become a distribution by softmax, as for the balancing loss.
TYPED_TEST(Metrics, RouterEntropyOfIdentityScores) {
  Routing<TypeParam> routing = this->known();
  routing.score_function = moe::ScoreFunction::identity;
  for (const double logit : {0.0, 1.0, -1.0}) {  // No preference, whatever the level.
    routing.scores.setConstant(static_cast<TypeParam>(logit));
    const double expected = 4 * term(0.25);
    EXPECT_NEAR(metrics::router_entropy(routing), expected, 20 * eps * expected) << logit;
  }
  for (Index t = 0; t < 4; ++t) routing.scores.row(t) << 2, -1, 0, -3;
  double sum = 0;
  for (const double z : {2.0, -1.0, 0.0, -3.0}) sum += std::exp(z);
  double expected = 0;
  for (const double z : {2.0, -1.0, 0.0, -3.0}) expected += term(std::exp(z) / sum);
  EXPECT_NEAR(metrics::router_entropy(routing), expected, 20 * eps * expected);
}

TYPED_TEST(Metrics, RouterEntropyNeedsScoresAndNoTokens) {
  Routing<TypeParam> routing = this->known();
  routing.scores.resize(0, 0);
  EXPECT_THROW(metrics::router_entropy(routing), std::invalid_argument);
  routing.resize(0, 4, 2, {});
  EXPECT_EQ(metrics::router_entropy(routing), 0);
}

TYPED_TEST(Metrics, DropFractionIsTheShareOfTheChoices) {
  const Routing<TypeParam> routing = this->known();
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  EXPECT_EQ(metrics::drop_fraction(plan), 0);
  moe::make_plan(routing, {.factor = 1}, plan);  // Two rows an expert: one drop each of 0 and 1.
  EXPECT_EQ(metrics::drop_fraction(plan), 0.25);
  moe::make_plan(routing, {.factor = 0.5}, plan);  // One row: two drops each of 0 and 1, one of 2.
  EXPECT_EQ(metrics::drop_fraction(plan), 0.625);
  EXPECT_EQ(metrics::drop_fraction(moe::DispatchPlan()), 0);
}

TEST(Metrics, OfAKnownRouting) {
  const auto routing = test_support::known_routing<double>();
  const moe::Matrix<Index> pairs = moe::metrics::co_activation(routing);
  EXPECT_EQ(pairs, pairs.transpose().eval());
  const std::vector<Index> load = moe::metrics::expert_load(routing);
  for (Index e = 0; e < 4; ++e) EXPECT_EQ(pairs(e, e), load[static_cast<std::size_t>(e)]);
  EXPECT_EQ(pairs(0, 1), 2);  // Tokens 0 and 1.
  EXPECT_EQ(pairs(0, 2), 1);  // Token 2.
  const moe::Vector<double> margin = moe::metrics::selection_margin(routing);
  for (Index t = 0; t < 4; ++t) {
    double worst_chosen = 1;
    double best_other = 0;
    for (Index e = 0; e < 4; ++e) {
      const bool chosen = routing.experts(t, 0) == e || routing.experts(t, 1) == e;
      if (chosen) worst_chosen = std::min(worst_chosen, routing.scores(t, e));
      if (!chosen) best_other = std::max(best_other, routing.scores(t, e));
    }
    EXPECT_EQ(margin[t], worst_chosen - best_other);
  }
  EXPECT_NEAR(moe::metrics::confidence(routing), routing.scores.rowwise().maxCoeff().mean(), 1e-15);
}

TEST(Metrics, FlipsCountChoicesThatTheOtherLacks) {
  const auto a = test_support::known_routing<double>();
  auto b = a;
  EXPECT_EQ(moe::metrics::flips(a, b), 0);
  b.experts.col(0).swap(b.experts.col(1));
  EXPECT_EQ(moe::metrics::flips(a, b), 0) << "slots may stand in any order";
  b = a;
  b.experts(3, 1) = 3;
  EXPECT_EQ(moe::metrics::flips(a, b), 1.0 / 8);
}

TEST(Metrics, HistoryKnowsGlobalAndBatchViolationAndTheDead) {
  moe::metrics::LoadHistory history;
  EXPECT_EQ(history.batch_violation(), 0);
  const std::vector<Index> first{4, 0, 2};
  const std::vector<Index> second{0, 0, 6};
  history.add(first);
  history.add(second);
  EXPECT_EQ(history.batches(), 2);
  EXPECT_NEAR(history.batch_violation(), (1.0 + 2.0) / 2, 1e-15);
  EXPECT_NEAR(history.global_violation(), 8.0 * 3 / 12 - 1, 1e-15);
  EXPECT_EQ(history.dead_experts(2), (std::vector<Index>{1}));
  EXPECT_EQ(history.dead_experts(1), (std::vector<Index>{0, 1}));
  EXPECT_THROW(history.add(std::vector<Index>{1}), moe::ShapeError);
}

TEST(Metrics, SaliencyIsTheMeanWeightedNorm) {
  moe::Routing<double> routing;
  routing.resize(2, 3, 2, {});
  routing.experts << 0, 1, 1, 0;
  routing.weights << 2, 3, 5, 7;
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  moe::Matrix<double> rows(4, 2);  // expert 0: tokens 0 and 1; expert 1: tokens 0 and 1
  rows << 3, 4, 0, 1, 1, 0, 6, 8;
  const auto saliency = moe::metrics::saliency(routing, plan, rows);
  EXPECT_NEAR(saliency[0], (2 * 5 + 7 * 1) / 2.0, 1e-14);
  EXPECT_NEAR(saliency[1], (3 * 1 + 5 * 10) / 2.0, 1e-14);
  EXPECT_EQ(saliency[2], 0);
  EXPECT_EQ(moe::metrics::capacity_used(plan, 4), 4.0 / 12);
  routing.weights.resize(2, 1);
  EXPECT_THROW(moe::metrics::saliency(routing, plan, rows), moe::ShapeError);
}

}  // namespace metrics_test
