// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <stdexcept>
#include <utility>

#include <gtest/gtest.h>

#include <moe/routing/gshard_router.hpp>
#include <moe/routing/presets.hpp>

#include "support/layers.hpp"

namespace gshard_router_test {

using moe::Index;
using moe::Matrix;
using moe::Routing;
using moe::SecondExpertPolicy;

moe::TopKRouter<double> identity(Index experts) {
  return {{.d_model = experts, .num_experts = experts, .top_k = 2, .rule = moe::presets::gshard()},
          {.weight = Matrix<double>::Identity(experts, experts)}};
}

const Matrix<double> x = (Matrix<double>(3, 3) << 1, 0, -1, 3, 0, -1, 0, .5, 1).finished();

TEST(GShard, KeepsTheSecondByItsWeightInTraining) {
  const moe::GShardRouter<double> router(identity(3));
  Routing<double> plain;
  router.route(x, {}, plain);
  const double g2 = std::exp(0) / (std::exp(1) + std::exp(0));  // of token 0
  EXPECT_NEAR(plain.weights(0, 1), g2, 1e-8);
  Routing<double> routing;
  const auto kept = [&](double u) {
    router.route(x, Matrix<double>::Constant(3, 1, u).eval(), {.training = true}, routing);
    return routing.experts(0, 1) != moe::no_expert;
  };
  EXPECT_TRUE(kept(2 * g2 - 1e-6));
  EXPECT_FALSE(kept(2 * g2 + 1e-6));
  EXPECT_EQ(routing.weights(0, 1), 0);
  EXPECT_EQ(routing.weights(0, 0), plain.weights(0, 0)) << "the first keeps its weight";
  EXPECT_EQ(routing.experts.col(0), plain.experts.col(0));
}

TEST(GShard, TheThresholdAndTheProbabilityAreOptions) {
  const double p = 1 / (std::exp(1) + 1 + std::exp(-1));  // of token 0's second, before the norm
  Routing<double> routing;
  const auto kept = [&](moe::SecondExpert second, double u) {
    moe::GShardRouter<double>(identity(3), second)
        .route(x, Matrix<double>::Constant(3, 1, u).eval(), {.training = true}, routing);
    return routing.experts(0, 1) != moe::no_expert;
  };
  EXPECT_TRUE(kept({.threshold = .2}, .999));
  EXPECT_TRUE(kept({.of_probability = true}, 2 * p - 1e-6));
  EXPECT_FALSE(kept({.of_probability = true}, 2 * p + 1e-6));
  EXPECT_TRUE(kept({.policy = SecondExpertPolicy::best}, .999));
}

TEST(GShard, SamplingDrawsTheSecondAndWeighsItWithoutNoise) {
  const moe::GShardRouter<double> router(identity(3), {.policy = SecondExpertPolicy::sampling});
  Matrix<double> gumbel = Matrix<double>::Zero(3, 3);
  gumbel(0, 2) = 2;
  gumbel(0, 0) = 100;  // The first is not drawn again.
  Routing<double> routing;
  router.route(x, gumbel, {.training = true}, routing);
  EXPECT_EQ(routing.experts(0, 0), 0);
  EXPECT_EQ(routing.experts(0, 1), 2);
  EXPECT_NEAR(routing.weights(0, 1), std::exp(-1) / (std::exp(1) + std::exp(-1)), 1e-8);
  EXPECT_EQ(routing.experts(1, 1), 1);
}

TEST(GShard, KeepsAboutTwiceTheWeightsShare) {
  const moe::GShardRouter<double> router(identity(3));
  const Matrix<double> many = x.row(0).replicate(20'000, 1);
  Routing<double> routing;
  router.route(many, {.keep_logits = false, .keep_scores = false, .training = true, .seed = 3},
               routing);
  EXPECT_EQ(routing.logits.size(), 0);
  EXPECT_EQ(routing.scores.size(), 0);
  double kept = 0;
  for (Index t = 0; t < many.rows(); ++t) kept += routing.experts(t, 1) != moe::no_expert ? 1 : 0;
  const double g2 = 1 / (std::exp(1) + 1);
  EXPECT_NEAR(kept / 20'000, 2 * g2, 5 * .5 / std::sqrt(20'000.0));
}

TEST(GShard, RefusesAnotherK) {
  moe::TopKRouter<double> one({.d_model = 3, .num_experts = 3, .top_k = 1},
                              {.weight = Matrix<double>::Identity(3, 3)});
  EXPECT_THROW(moe::GShardRouter<double>(std::move(one)), std::invalid_argument);
  EXPECT_THROW(moe::GShardRouter<double>(identity(3), {.threshold = 0}), std::invalid_argument);
}

TEST(GShard, PassesTheJitterOfItsRouterOn) {
  const moe::TopKRouter<double> inner(
      {.d_model = 6, .num_experts = 5, .top_k = 2, .rule = moe::presets::mixtral(.1)},
      {.weight = test_support::random_matrix<double>(5, 6, 1)});
  const moe::GShardRouter<double> router(inner);
  const auto tokens = test_support::random_matrix<double>(3, 6, 2);
  moe::GrowingMatrix<double> buffer;
  moe::GrowingMatrix<double> own;
  const moe::RouteOptions options{.training = true, .seed = 4};
  EXPECT_EQ(router.hidden_states(tokens, options, buffer).map(),
            inner.hidden_states(tokens, options, own).map());
  EXPECT_EQ(router.hidden_states(tokens, {}, buffer).data(), tokens.data());
}

}  // namespace gshard_router_test
