// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <stdexcept>

#include <gtest/gtest.h>

#include <moe/routing/noisy_topk_router.hpp>

#include "support/layers.hpp"
#include "support/reference.hpp"

namespace noisy_topk_router_test {

using moe::Index;
using moe::Matrix;
using moe::Routing;
using test_support::random_matrix;

TEST(NoisyTopK, AddsNoiseOfItsDeviationInTrainingOnly) {
  const auto gate = random_matrix<double>(5, 7, 1);   // (E, D)
  const auto noise = random_matrix<double>(5, 7, 2);  // (E, D)
  const auto x = random_matrix<double>(9, 7, 3);      // (T, D)
  const auto draws = random_matrix<double>(9, 5, 4);  // (T, E)
  const moe::NoisyTopKRouter<double> router(
      {.d_model = 7, .num_experts = 5, .top_k = 2, .noise_epsilon = .25}, gate, noise);
  Routing<double> routing;
  moe::NoisyLogits<double> drawn;
  router.route(x, draws, {.training = true}, routing, drawn);
  for (Index t = 0; t < 9; ++t) {
    const auto clean = reference::linear(gate, reference::row_of(x, t));
    const auto raw = reference::linear(noise, reference::row_of(x, t));
    reference::Values noisy;
    for (std::size_t e = 0; e < 5; ++e) {
      const auto i = static_cast<Index>(e);
      const double deviation = std::log(1 + std::exp(raw[e])) + .25;
      noisy.push_back(clean[e] + draws(t, i) * deviation);
      EXPECT_NEAR(drawn.deviation(t, i), deviation, 1e-13);
      EXPECT_NEAR(drawn.noisy_logits(t, i), noisy[e], 1e-13);
      EXPECT_NEAR(routing.logits(t, i), clean[e], 1e-13);
    }
    const auto best = reference::top_k(noisy, 2);
    const double a = std::exp(noisy[static_cast<std::size_t>(best[0])]);
    const double b = std::exp(noisy[static_cast<std::size_t>(best[1])]);
    EXPECT_EQ(routing.experts(t, 0), best[0]);
    EXPECT_EQ(routing.experts(t, 1), best[1]);
    EXPECT_NEAR(routing.weights(t, 0), a / (a + b), 1e-13);
    EXPECT_NEAR(routing.weights.row(t).sum(), 1, 1e-15);
  }
  router.route(x, draws, {}, routing, drawn);
  EXPECT_EQ(drawn.noisy_logits.size(), 0);
  for (Index t = 0; t < 9; ++t)
    EXPECT_EQ(routing.experts(t, 0), reference::top_k(reference::row_of(routing.logits, t), 1)[0]);
}

TEST(NoisyTopK, DrawsFromItsSeed) {
  const moe::NoisyTopKRouter<float> router({.d_model = 7, .num_experts = 5, .top_k = 2},
                                           random_matrix<float>(5, 7, 1),
                                           random_matrix<float>(5, 7, 2));
  const auto x = random_matrix<float>(40, 7, 3);
  Routing<float> a;
  Routing<float> b;
  router.route(x, {.training = true, .seed = 1}, a);
  router.route(x, {.training = true, .seed = 1}, b);
  EXPECT_EQ(a.experts, b.experts);
  router.route(x, {.training = true, .seed = 2}, b);
  EXPECT_NE(a.experts, b.experts);
}

TEST(NoisyTopK, RefusesWhatCannotWork) {
  using Router = moe::NoisyTopKRouter<float>;
  const Matrix<float> w(3, 2);
  EXPECT_THROW(Router({.d_model = 2, .num_experts = 3, .top_k = 4}, w, w), std::invalid_argument);
  EXPECT_THROW(Router({.d_model = 2, .num_experts = 3, .top_k = 1}, w, Matrix<float>(2, 2)),
               moe::ShapeError);
}

}  // namespace noisy_topk_router_test
