// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <moe/losses/metrics.hpp>
#include <moe/routing/base_router.hpp>

#include "support/layers.hpp"
#include "support/reference.hpp"

namespace base_router_test {

using moe::Index;
using moe::Routing;
using test_support::random_matrix;

TEST(BaseRouter, IsBalancedInTrainingAndGreedyInUse) {
  const auto centroids = random_matrix<double>(4, 6, 1);
  const moe::BaseRouter<double> router(centroids);
  const auto x = random_matrix<double>(32, 6, 2);
  Routing<double> training;
  Routing<double> use;
  router.route(x, {.training = true}, training);
  router.route(x, {}, use);
  EXPECT_EQ(moe::metrics::expert_load(training), (std::vector<Index>{8, 8, 8, 8}));
  EXPECT_NE(training.experts, use.experts);
  for (Index t = 0; t < 32; ++t) {
    const auto z = reference::linear(centroids, reference::row_of(x, t));
    EXPECT_EQ(use.experts(t, 0), reference::top_k(z, 1)[0]);
    for (const auto* routing : {&training, &use}) {
      const double logit = z[static_cast<std::size_t>(routing->experts(t, 0))];
      EXPECT_NEAR(routing->weights(t, 0), 1 / (1 + std::exp(-logit)), 1e-14);
    }
  }
}

}  // namespace base_router_test
