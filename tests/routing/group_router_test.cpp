// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routing/group_router.hpp>
#include <moe/routing/presets.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/layers.hpp"

namespace group_router_test {

using moe::Index;
using moe::Matrix;
using moe::Routing;
using test_support::random_matrix;

moe::TopKRouter<double> inner() {
  return {{.d_model = 6, .num_experts = 5, .top_k = 2}, {.weight = random_matrix<double>(5, 6, 1)}};
}

TEST(GroupRouter, DecidesOnceForAGroupByItsMean) {
  const moe::GroupRouter router(inner());
  const auto x = random_matrix<double>(5, 6, 2);
  const std::vector<std::int32_t> groups{0, 2, 0, 2, 2};  // Group 1 is empty.
  Routing<double> routing;
  router.route(x, {.token_groups = groups}, routing);
  Matrix<double> means(2, 6);
  means.row(0) = (x.row(0) + x.row(2)) / 2;
  means.row(1) = (x.row(1) + x.row(3) + x.row(4)) / 3;
  Routing<double> expected;
  inner().route(means, {}, expected);
  for (Index t = 0; t < 5; ++t) {
    const Index g = groups[static_cast<std::size_t>(t)] / 2;
    EXPECT_EQ(routing.experts.row(t), expected.experts.row(g));
    EXPECT_TRUE(routing.weights.row(t).isApprox(expected.weights.row(g), 1e-12));
    EXPECT_TRUE(routing.scores.row(t).isApprox(expected.scores.row(g), 1e-12));
  }
  router.route(x, {}, routing);
  for (Index t = 1; t < 5; ++t) EXPECT_EQ(routing.weights.row(t), routing.weights.row(0));
}

TEST(GroupRouter, OrByARowOfTheCallers) {
  const moe::GroupRouter router(inner());
  const auto x = random_matrix<double>(4, 6, 2);
  const auto tasks = random_matrix<double>(3, 6, 3);
  const std::vector<std::int32_t> groups{2, 0, 2, 1};
  Routing<double> routing;
  router.route(x, tasks, {.keep_logits = false, .token_groups = groups}, routing);
  Routing<double> expected;
  inner().route(tasks, {}, expected);
  for (Index t = 0; t < 4; ++t)
    EXPECT_EQ(routing.weights.row(t), expected.weights.row(groups[static_cast<std::size_t>(t)]));
  EXPECT_EQ(routing.logits.size(), 0);
  const std::vector<std::int32_t> beyond{2, 0, 3, 1};
  EXPECT_THROW(router.route(x, tasks, {.token_groups = beyond}, routing), std::invalid_argument);
  const std::vector<std::int32_t> negative{2, 0, -1, 1};
  EXPECT_THROW(router.route(x, {.token_groups = negative}, routing), std::invalid_argument);
  EXPECT_THROW(router.route(x.topRows(3).eval(), {.token_groups = groups}, routing),
               moe::ShapeError);
  router.route(Matrix<double>(0, 6), {}, routing);
  EXPECT_EQ(routing.tokens(), 0);
}

TEST(GroupRouter, TakesLargeNamesAndTheJitterOfItsRouter) {
  const auto x = random_matrix<double>(3, 6, 2);
  Routing<double> routing;
  const std::vector<std::int32_t> large{2147483647, 0, 2147483647};
  const std::vector<std::int32_t> small{1, 0, 1};
  moe::GroupRouter(inner()).route(x, {.token_groups = large}, routing);
  Routing<double> expected;
  moe::GroupRouter(inner()).route(x, {.token_groups = small}, expected);
  EXPECT_EQ(routing.weights, expected.weights);

  const moe::GroupRouter jittered(moe::TopKRouter<double>(
      {.d_model = 6, .num_experts = 5, .top_k = 2, .rule = moe::presets::mixtral(.1)},
      {.weight = random_matrix<double>(5, 6, 1)}));
  moe::GrowingMatrix<double> buffer;
  moe::GrowingMatrix<double> own;
  const auto seen = jittered.hidden_states(x, {.training = true, .seed = 3}, buffer);
  EXPECT_NE(seen.data(), static_cast<const double*>(x.data()));
  EXPECT_EQ(seen.map(),
            jittered.router().hidden_states(x, {.training = true, .seed = 3}, own).map());
}

}  // namespace group_router_test
