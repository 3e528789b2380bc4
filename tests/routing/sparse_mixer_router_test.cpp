// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routing/sparse_mixer_router.hpp>

#include "support/layers.hpp"

namespace sparse_mixer_router_test {

using moe::Index;
using moe::Matrix;
using moe::Routing;

/// A router whose logits are its tokens.
template <class Scalar>
moe::SparseMixerRouter<Scalar> identity_router(Index experts, double jitter) {
  return {{.d_model = experts, .num_experts = experts, .jitter = jitter},
          Matrix<Scalar>::Identity(experts, experts)};
}

const Matrix<double> known =
    (Matrix<double>(1, 8) << .9, -.4, 1.7, .2, -1.1, 1.6, .5, -.2).finished();

TEST(SparseMixer, GivesTheKnownResults) {
  Routing<double> routing;
  identity_router<double>(8, .01).route(known, {}, routing);
  EXPECT_EQ(routing.experts, (Matrix<moe::ExpertIndex>(1, 2) << 2, 5).finished());
  EXPECT_EQ(routing.weights, (Matrix<double>::Ones(1, 2)));
  identity_router<double>(8, .05).route(known, {}, routing);
  EXPECT_NEAR(routing.weights(0, 0), .524979, 0.5001e-6);
  EXPECT_EQ(routing.weights(0, 1), 1);
}

TEST(SparseMixer, ANegativeBestCountsByTheOthersAlone) {
  // max(|z|, max) is |z| for a negative max: (-1 + 1.1) / 1.1 = 0.0909.
  const Matrix<double> x = (Matrix<double>(1, 3) << -1, -1.1, -9).finished();
  Routing<double> routing;
  identity_router<double>(3, .04).route(x, {}, routing);
  EXPECT_EQ(routing.weights(0, 0), 1);
  identity_router<double>(3, .05).route(x, {}, routing);
  EXPECT_NEAR(routing.weights(0, 0), 1 / (1 + std::exp(-.1)), 1e-15);
}

TEST(SparseMixer, TrainingDrawsFromTheNearOnesAndThinsWhatWasNotBest) {
  const auto router = identity_router<double>(4, .5);
  const Matrix<double> x = (Matrix<double>(1, 4) << 1, .9, -5, .8).finished();
  // (1 - z) / max(|z|, 1): .1, 1.2, .2; expert 2 is too far.
  const double sum = std::exp(1) + std::exp(.9) + std::exp(.8);
  Matrix<double> gumbel = Matrix<double>::Zero(1, 8);
  Matrix<double> uniform = Matrix<double>::Zero(1, 2);
  Routing<double> routing;
  const moe::RouteOptions training{.training = true};
  router.route(x, {gumbel, uniform}, training, routing);
  EXPECT_EQ(routing.experts, (Matrix<moe::ExpertIndex>(1, 2) << 0, 1).finished());
  EXPECT_NEAR(routing.weights(0, 0), std::exp(1) / sum, 1e-15);
  gumbel(0, 3) = 3;   // Expert 3 wins the first draw,
  gumbel(0, 2) = 50;  // and expert 2 cannot.
  router.route(x, {gumbel, uniform}, training, routing);
  EXPECT_EQ(routing.experts(0, 0), 3);
  EXPECT_NEAR(routing.weights(0, 0), .3333 * std::exp(.8) / sum, 1e-15);
  EXPECT_EQ(routing.experts(0, 1), 0);
  uniform(0, 0) = .76;
  router.route(x, {gumbel, uniform}, training, routing);
  EXPECT_NEAR(routing.weights(0, 0), std::exp(.8) / sum, 1e-15);
}

TEST(SparseMixer, TheDrawsFollowTheSoftmax) {
  const auto router = identity_router<double>(3, 5);
  const Matrix<double> x = (Matrix<double>(1, 3) << .5, 0, -.5).finished().replicate(20'000, 1);
  Routing<double> routing;
  router.route(x, {.training = true, .seed = 4}, routing);
  Matrix<double> share = Matrix<double>::Zero(1, 3);
  for (Index t = 0; t < x.rows(); ++t) share(0, routing.experts(t, 0)) += 1.0 / 20'000;
  const double sum = std::exp(.5) + 1 + std::exp(-.5);
  for (Index e = 0; e < 3; ++e)  // Five standard errors.
    EXPECT_NEAR(share(0, e), std::exp(x(0, e)) / sum, 5 * .5 / std::sqrt(20'000.0));
}

TEST(SparseMixer, NanTakesNoPart) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Matrix<double> x(2, 3);
  x << nan, 1, 2, nan, nan, nan;
  // Through the weights NaN would reach every logit, so the router is asked by its parts.
  Routing<double> routing;
  identity_router<double>(3, .01).route(x.bottomRows(1).eval(), {}, routing);
  EXPECT_EQ(routing.experts, (Matrix<moe::ExpertIndex>(1, 2) << 0, 1).finished());
  EXPECT_EQ(routing.weights, (Matrix<double>::Zero(1, 2)));
}

TEST(SparseMixer, RefusesWhatCannotWork) {
  using Router = moe::SparseMixerRouter<float>;
  EXPECT_THROW(Router({.d_model = 2, .num_experts = 1}, Matrix<float>(1, 2)),
               std::invalid_argument);
  EXPECT_THROW(Router({.d_model = 2, .num_experts = 2, .jitter = -1}, Matrix<float>(2, 2)),
               std::invalid_argument);
  EXPECT_THROW(Router({.d_model = 2, .num_experts = 2}, Matrix<float>(3, 2)), moe::ShapeError);
  const auto router = identity_router<float>(3, .01);
  Routing<float> routing;
  EXPECT_THROW(router.route(Matrix<float>(1, 2), {}, routing), moe::ShapeError);
  EXPECT_THROW(router.route(Matrix<float>(1, 3), {Matrix<float>(1, 5), {}}, {}, routing),
               moe::ShapeError);
}

TEST(SparseMixer, JittersTheHiddenStatesInTraining) {
  const moe::SparseMixerRouter<double> router({.d_model = 6, .num_experts = 5, .input_jitter = .1},
                                              test_support::random_matrix<double>(5, 6, 1));
  const auto x = test_support::random_matrix<double>(3, 6, 2);
  moe::GrowingMatrix<double> buffer;
  EXPECT_EQ(router.hidden_states(x, {}, buffer).data(), x.data());
  const auto seen = router.hidden_states(x, {.training = true, .seed = 1}, buffer);
  const moe::Matrix<double> ratio = seen.map().cwiseQuotient(x);
  EXPECT_GE(ratio.minCoeff(), .9);
  EXPECT_LE(ratio.maxCoeff(), 1.1);
  EXPECT_GT(ratio.maxCoeff() - ratio.minCoeff(), .05);
  EXPECT_THROW(moe::SparseMixerRouter<double>({.d_model = 6, .num_experts = 5, .input_jitter = 1},
                                              test_support::random_matrix<double>(5, 6, 1)),
               std::invalid_argument);
}

}  // namespace sparse_mixer_router_test
