// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include <moe/routing/presets.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/layers.hpp"
#include "support/reference.hpp"
#include "support/threads.hpp"

namespace topk_router_test {

using moe::Index;
using moe::Matrix;
using moe::RouterConfig;
using moe::RouterWeights;
using moe::Routing;
using moe::TopKRouter;
using test_support::random_matrix;

template <class Scalar>
Matrix<Scalar> tokens_of(Index tokens, Index d_model, std::uint64_t seed = 11) {
  Matrix<Scalar> x(tokens, d_model);  // (T, D)
  moe::detail::fill_uniform(x.data(), x.size(), 1, seed);
  return x;
}

template <class Scalar>
TopKRouter<Scalar> router_with_biases(const RouterConfig& config) {
  RouterWeights<Scalar> weights;
  weights.weight = tokens_of<Scalar>(config.num_experts, config.d_model, 1);
  weights.bias = tokens_of<Scalar>(config.num_experts, 1, 2);
  weights.selection_bias = tokens_of<Scalar>(config.num_experts, 1, 3);
  return TopKRouter<Scalar>(config, std::move(weights));
}

template <class Scalar>
class TopKRouterOf : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TopKRouterOf, Scalars);

TYPED_TEST(TopKRouterOf, AgreesWithTheReference) {
  const RouterConfig config{
      .d_model = 37,
      .num_experts = 12,
      .top_k = 3,
      .rule = moe::presets::deepseek_v3({.groups = 4, .groups_kept = 2, .scale = 2.5})};
  const auto router = router_with_biases<TypeParam>(config);
  const auto x = tokens_of<TypeParam>(70, 37);
  Routing<TypeParam> routing;
  router.route(x, {}, routing);
  ASSERT_EQ(routing.tokens(), 70);
  ASSERT_EQ(routing.top_k(), 3);
  EXPECT_EQ(routing.num_experts, 12);
  EXPECT_EQ(routing.score_function, moe::ScoreFunction::sigmoid);

  const auto& weights = router.weights();
  const double epsilon = std::numeric_limits<TypeParam>::epsilon();
  for (Index t = 0; t < 70; ++t) {
    const reference::Values exact =
        reference::linear(weights.weight.template cast<double>(), reference::row_of(x, t),
                          reference::row_of(weights.bias.transpose(), 0));
    for (Index e = 0; e < 12; ++e) {
      const double absolute = x.row(t).template cast<double>().cwiseAbs().dot(
                                  weights.weight.row(e).template cast<double>().cwiseAbs()) +
                              std::fabs(static_cast<double>(weights.bias[e]));
      // 37 products, 37 sums and the bias round once each.
      EXPECT_NEAR(static_cast<double>(routing.logits(t, e)), exact[static_cast<std::size_t>(e)],
                  75 * epsilon * absolute);
    }
    // From the router's own logits on, so that a near tie cannot turn.
    const reference::Values logits = reference::row_of(routing.logits, t);
    const reference::Values scores = reference::scores(config.rule.score, logits);
    const reference::Choice choice = reference::choose(
        config.rule, logits, reference::row_of(weights.selection_bias.transpose(), 0), 3);
    for (Index e = 0; e < 12; ++e)
      EXPECT_NEAR(static_cast<double>(routing.scores(t, e)), scores[static_cast<std::size_t>(e)],
                  8 * epsilon);
    for (Index k = 0; k < 3; ++k) {
      EXPECT_EQ(routing.experts(t, k), choice.experts[static_cast<std::size_t>(k)]);
      EXPECT_NEAR(static_cast<double>(routing.weights(t, k)),
                  choice.weights[static_cast<std::size_t>(k)], 16 * epsilon * 2.5);
    }
  }
}

TYPED_TEST(TopKRouterOf, ATokenHasTheSameBitsInAnyBatchAndForAnyThreads) {
  const auto router = router_with_biases<TypeParam>(
      {.d_model = 41, .num_experts = 10, .top_k = 4, .rule = moe::presets::olmoe()});
  const auto x = tokens_of<TypeParam>(70, 41);
  Routing<TypeParam> all;
  router.route(x, {}, all);
  for (const int threads : test_support::thread_counts) {
    const test_support::ScopedThreads scoped(threads);
    for (Index first = 0; first < 70; first += 9) {
      for (const Index count : {Index{1}, Index{2}, Index{33}, 70 - first}) {
        if (first + count > 70) continue;
        Routing<TypeParam> part;
        router.route(x.middleRows(first, count), {}, part);
        EXPECT_EQ(part.logits, all.logits.middleRows(first, count));
        EXPECT_EQ(part.scores, all.scores.middleRows(first, count));
        EXPECT_EQ(part.experts, all.experts.middleRows(first, count));
        EXPECT_EQ(part.weights, all.weights.middleRows(first, count));
      }
    }
  }
}

TYPED_TEST(TopKRouterOf, KeepsOnlyWhatIsAskedFor) {
  const auto router = router_with_biases<TypeParam>({.d_model = 5, .num_experts = 4, .top_k = 2});
  const auto x = tokens_of<TypeParam>(3, 5);
  Routing<TypeParam> full;
  router.route(x, {}, full);
  for (const bool logits : {false, true}) {
    for (const bool scores : {false, true}) {
      Routing<TypeParam> routing = full;
      router.route(x, {.keep_logits = logits, .keep_scores = scores}, routing);
      EXPECT_EQ(routing.logits.rows(), logits ? 3 : 0);
      EXPECT_EQ(routing.scores.rows(), scores ? 3 : 0);
      EXPECT_EQ(routing.experts, full.experts);
      EXPECT_EQ(routing.weights, full.weights);
    }
  }
}

TYPED_TEST(TopKRouterOf, NanInATokenStaysInItsRow) {
  const auto router = router_with_biases<TypeParam>({.d_model = 9, .num_experts = 6, .top_k = 2});
  auto x = tokens_of<TypeParam>(5, 9);
  Routing<TypeParam> clean;
  router.route(x, {}, clean);
  x(2, 4) = std::numeric_limits<TypeParam>::quiet_NaN();
  Routing<TypeParam> routing;
  router.route(x, {}, routing);
  for (const Index t : {0, 1, 3, 4}) {
    EXPECT_EQ(routing.experts.row(t), clean.experts.row(t));
    EXPECT_EQ(routing.weights.row(t), clean.weights.row(t));
  }
  EXPECT_EQ(routing.experts(2, 0), 0);
  EXPECT_EQ(routing.experts(2, 1), 1);
  EXPECT_EQ(routing.weights(2, 0), 0);
  EXPECT_EQ(routing.weights(2, 1), 0);
}

TYPED_TEST(TopKRouterOf, TakesAnyRowStrideAndNoTokens) {
  const auto router = router_with_biases<TypeParam>({.d_model = 7, .num_experts = 4, .top_k = 1});
  const auto wide = tokens_of<TypeParam>(6, 20);
  Routing<TypeParam> strided;
  router.route(wide.middleCols(3, 7), {}, strided);
  const Matrix<TypeParam> packed = wide.middleCols(3, 7);  // (T, D)
  Routing<TypeParam> routing;
  router.route(packed, {}, routing);
  EXPECT_EQ(strided.logits, routing.logits);
  router.route(packed.topRows(0), {}, routing);
  EXPECT_EQ(routing.tokens(), 0);
}

TEST(TopKRouter, RandomWeightsDependOnTheGeneratorOnly) {
  std::mt19937_64 a(1);
  std::mt19937_64 b(1);
  const RouterConfig config{.d_model = 6, .num_experts = 3, .top_k = 1};
  const auto first = TopKRouter<float>::random(config, a);
  EXPECT_EQ(first.weights().weight, TopKRouter<float>::random(config, b).weights().weight);
  EXPECT_NE(first.weights().weight, TopKRouter<float>::random(config, a).weights().weight);
}

std::string complaint(const RouterConfig& config, RouterWeights<float> weights) {
  try {
    const TopKRouter<float> router(config, std::move(weights));
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(TopKRouter, RefusesWhatCannotWork) {
  const RouterConfig good{.d_model = 4, .num_experts = 3, .top_k = 2};
  const Matrix<float> weight = Matrix<float>::Zero(3, 4);  // (E, D)
  EXPECT_EQ(complaint(good, {weight}), "");
  const auto changed = [&](auto change) {
    RouterConfig config = good;
    change(config);
    return complaint(config, {weight});
  };
  EXPECT_EQ(changed([](auto& c) { c.d_model = 0; }), "TopKRouter: d_model must be positive");
  EXPECT_EQ(changed([](auto& c) { c.num_experts = 0; }),
            "TopKRouter: num_experts must be positive");
  EXPECT_EQ(changed([](auto& c) { c.top_k = 0; }), "TopKRouter: top_k must be positive");
  EXPECT_EQ(changed([](auto& c) { c.top_k = 4; }), "TopKRouter: top_k must not exceed num_experts");
  EXPECT_EQ(changed([](auto& c) { c.d_model = 5; }),
            "TopKRouter: weight.cols(): expected 5, got 4");
  EXPECT_EQ(changed([](auto& c) { c.rule.groups.count = 2; }),
            "TopKRouter: num_experts must be a multiple of groups.count");
  EXPECT_EQ(changed([](auto& c) { c.rule.scale = 1e300; }),
            "TopKRouter: scale is too large for the scalar type");
  EXPECT_EQ(complaint(good, {.weight = weight, .bias = moe::Vector<float>::Zero(2)}),
            "TopKRouter: bias.size(): expected 3, got 2");
  EXPECT_EQ(complaint(good, {.weight = weight, .selection_bias = moe::Vector<float>::Zero(4)}),
            "TopKRouter: selection_bias.size(): expected 3, got 4");
}

TEST(TopKRouter, RefusesAnInputOfAnotherWidth) {
  std::mt19937_64 rng(1);
  const auto router =
      TopKRouter<float>::random({.d_model = 512, .num_experts = 3, .top_k = 1}, rng);
  Routing<float> routing;
  try {
    router.route(Matrix<float>::Zero(2, 256).eval(), {}, routing);
    FAIL() << "nothing was thrown";
  } catch (const moe::ShapeError& error) {
    EXPECT_STREQ(error.what(), "TopKRouter::route: x.cols(): expected 512, got 256");
  }
}

// Sizes on both sides of where a matrix product might change its path, and a single expert.
TYPED_TEST(TopKRouterOf, EveryBatchSizeGivesTheBitsOfATokenAlone) {
  struct Size {
    Index d_model;
    Index num_experts;
    Index top_k;
  };
  for (const Size size : {Size{1, 1, 1}, Size{3, 2, 1}, Size{11, 8, 2}, Size{12, 8, 8},
                          Size{40, 1, 1}, Size{129, 9, 3}, Size{67, 66, 6}}) {
    const auto router = router_with_biases<TypeParam>(
        {.d_model = size.d_model, .num_experts = size.num_experts, .top_k = size.top_k});
    const auto x = tokens_of<TypeParam>(70, size.d_model);
    Routing<TypeParam> alone;
    alone.resize(70, size.num_experts, size.top_k, {});
    Routing<TypeParam> routing;
    for (Index t = 0; t < 70; ++t) {
      router.route(x.middleRows(t, 1), {}, routing);
      alone.logits.row(t) = routing.logits;
      alone.scores.row(t) = routing.scores;
      alone.experts.row(t) = routing.experts;
      alone.weights.row(t) = routing.weights;
    }
    for (Index tokens = 1; tokens <= 70; ++tokens) {
      router.route(x.bottomRows(tokens), {}, routing);
      ASSERT_EQ(routing.logits, alone.logits.bottomRows(tokens)) << tokens << " tokens";
      ASSERT_EQ(routing.scores, alone.scores.bottomRows(tokens)) << tokens << " tokens";
      ASSERT_EQ(routing.experts, alone.experts.bottomRows(tokens)) << tokens << " tokens";
      ASSERT_EQ(routing.weights, alone.weights.bottomRows(tokens)) << tokens << " tokens";
    }
  }
}

/// A router of one convention beside the linear ones.
moe::TopKRouter<double> router_of(const moe::RoutingRule& rule,
                                  moe::RouterWeights<double> weights) {
  const Index experts = weights.weight.rows();
  return {{.d_model = 6, .num_experts = experts, .top_k = 2, .rule = rule}, std::move(weights)};
}

TEST(TopKRouterLogits, OfACosineRouter) {
  const auto weight = random_matrix<double>(5, 4, 1);      // (E, P)
  const auto projection = random_matrix<double>(4, 6, 2);  // (P, D)
  const moe::Vector<double> bias = random_matrix<double>(4, 1, 3).col(0);
  const auto x = random_matrix<double>(7, 6, 4);
  const auto router =
      router_of({.logits = {.form = moe::LogitForm::cosine, .temperature = .5}},
                {.weight = weight, .projection = projection, .projection_bias = bias});
  Routing<double> routing;
  router.route(x, {}, routing);
  for (Index t = 0; t < 7; ++t) {
    const moe::Vector<double> p = projection * x.row(t).transpose() + bias;
    for (Index e = 0; e < 5; ++e)
      EXPECT_NEAR(routing.logits(t, e),
                  weight.row(e).dot(p) / (weight.row(e).norm() * p.norm()) / .5, 1e-14);
  }
  // Without a projection, a token's length does not matter.
  const auto plain = router_of({.logits = {.form = moe::LogitForm::cosine}},
                               {.weight = random_matrix<double>(5, 6, 1)});
  Routing<double> longer;
  plain.route(x, {}, routing);
  plain.route((3 * x).eval(), {}, longer);
  EXPECT_TRUE(routing.logits.isApprox(longer.logits, 1e-14));
  plain.route(moe::Matrix<double>::Zero(1, 6).eval(), {}, routing);
  EXPECT_EQ(routing.logits, (moe::Matrix<double>::Zero(1, 5)));
}

TEST(TopKRouterLogits, OfTwoLayersAResidualAndADeviation) {
  const auto weight = random_matrix<double>(5, 8, 1);      // (E, P)
  const auto projection = random_matrix<double>(8, 6, 2);  // (P, D)
  const auto residual = random_matrix<double>(5, 3, 3);    // (E, R)
  const auto previous = random_matrix<double>(7, 3, 5);    // (T, R)
  const auto x = random_matrix<double>(7, 6, 4);
  const auto router =
      router_of({.logits = {.form = moe::LogitForm::two_layer, .standard_deviation = 2}},
                {.weight = weight, .projection = projection, .residual = residual});
  Routing<double> routing;
  router.route(x, {.previous_logits = previous}, {}, routing);
  for (Index t = 0; t < 7; ++t) {
    const moe::Vector<double> hidden = (projection * x.row(t).transpose()).array().tanh();
    moe::Vector<double> z = weight * hidden + residual * previous.row(t).transpose();
    for (Index e = 0; e < 5; ++e)
      EXPECT_NEAR(routing.logits(t, e), z[e], 1e-13) << "what a next layer adds is not scaled";
    const double deviation = std::sqrt((z.array() - z.mean()).square().sum() / 4);
    z *= 2 / deviation;
    const double sum = z.array().exp().sum();
    for (Index e = 0; e < 5; ++e) EXPECT_NEAR(routing.scores(t, e), std::exp(z[e]) / sum, 1e-13);
  }
  EXPECT_NO_THROW(router.route(x, {}, routing)) << "the first layer has no previous one";
  EXPECT_THROW(router.route(x, {.previous_logits = x}, {}, routing), moe::ShapeError);
}

TEST(TopKRouterLogits, JitterAndNoiseAreOnInTrainingOnly) {
  const auto weight = random_matrix<double>(5, 6, 1);
  const auto x = random_matrix<double>(7, 6, 2);
  const auto router =
      router_of({.logits = {.noise = .5},
                 .jitter = {.target = moe::JitterTarget::router_input, .epsilon = .25}},
                {.weight = weight});
  Routing<double> plain;
  router.route(x, {}, plain);
  moe::Matrix<double> u(7, 6);
  moe::detail::fill_uniform(u.data(), u.size(), 1, 3);
  u = u.array() / (2 * std::sqrt(3.0)) + .5;  // In 0 .. 1.
  const auto noise = random_matrix<double>(7, 5, 4);
  Routing<double> routing;
  router.route(x, {.jitter = u, .noise = noise}, {.training = true}, routing);
  for (Index t = 0; t < 7; ++t) {
    const moe::Vector<double> jittered = x.row(t).array() * (.75 + .5 * u.row(t).array());
    const moe::Vector<double> z = weight * jittered;
    moe::Vector<double> score = (z + .5 * noise.row(t).transpose()).array().exp();
    score /= score.sum();
    for (Index e = 0; e < 5; ++e) {
      EXPECT_NEAR(routing.logits(t, e), z[e], 1e-13) << "logits are kept without noise";
      EXPECT_NEAR(routing.scores(t, e), score[e], 1e-13);
    }
  }
  Routing<double> a;
  Routing<double> b;
  router.route(x, {.training = true, .seed = 5}, a);
  router.route(x, {.training = true, .seed = 5}, b);
  EXPECT_EQ(a.scores, b.scores);
  EXPECT_FALSE(a.logits.isApprox(plain.logits, 1e-3));
  EXPECT_THROW(router.route(x, {.jitter = noise}, {}, routing), moe::ShapeError);
}

TEST(TopKRouterLogits, RefuseWeightsThatDoNotFitTheForm) {
  const auto weight = random_matrix<double>(5, 6, 1);
  EXPECT_THROW(router_of({.logits = {.form = moe::LogitForm::two_layer}}, {.weight = weight}),
               std::invalid_argument);
  EXPECT_THROW(router_of({}, {.weight = weight, .projection = random_matrix<double>(6, 6, 1)}),
               std::invalid_argument);
  EXPECT_THROW(router_of({}, {.weight = weight, .residual = random_matrix<double>(4, 6, 1)}),
               moe::ShapeError);
  EXPECT_THROW(router_of({.logits = {.temperature = 0}}, {.weight = weight}),
               std::invalid_argument);
  EXPECT_THROW(router_of({.jitter = {.epsilon = 1}}, {.weight = weight}), std::invalid_argument);
  EXPECT_THROW(router_of({.limit = {.minimum = 3}}, {.weight = weight}), std::invalid_argument);
  EXPECT_THROW(router_of({.weightless_experts = 6}, {.weight = weight}), std::invalid_argument);
}

TEST(TopKRouter, RefusesNoiseThatTheRuleDoesNotHave) {
  const moe::TopKRouter<double> router({.d_model = 4, .num_experts = 3, .top_k = 1},
                                       {.weight = random_matrix<double>(3, 4, 1)});
  const auto x = random_matrix<double>(2, 4, 2);
  const auto noise = random_matrix<double>(2, 3, 3);
  moe::Routing<double> routing;
  EXPECT_THROW(router.route(x, {.jitter = x}, {.training = true}, routing), std::invalid_argument);
  EXPECT_THROW(router.route(x, {.noise = noise}, {.training = true}, routing),
               std::invalid_argument);
}

}  // namespace topk_router_test
